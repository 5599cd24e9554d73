/**
 * Runs command lines in a process that has the program loaded already: the same code from the command line on, without the start of
 * Node and the loading of modules, which are most of the time of a short command. For rooms that run hundreds of them; that commands
 * share a process also shows what one leaves behind (a lock, a descriptor) that the end of its process would hide.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { CommandReply, CommandRequest } from './command-server.ts';
import { documentOf, type Finished, type RunOptions } from './vdiskfs.ts';

const SERVER = fileURLToPath(new URL('command-server.js', import.meta.url));
const DEFAULT_TIMEOUT_MS = 20_000;

/** Those that wait for a command. */
const idle: ChildProcess[] = [];

const takeServer = (): ChildProcess => {
  const child =
    idle.pop() ?? fork(SERVER, { execArgv: [], stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
  child.ref();
  child.channel?.ref();
  return child;
};

// An idle one does not keep the test from ending.
const giveBack = (child: ChildProcess): void => {
  child.unref();
  child.channel?.unref();
  idle.push(child);
};

/** As `vdiskfs` of `vdiskfs.ts`. Commands at the same time run in processes of their own. */
export const vdiskfs = (args: readonly string[], options: RunOptions = {}): Promise<Finished> => {
  const child = takeServer();
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    const settle = (): void => {
      clearTimeout(timer);
      child.removeAllListeners();
    };
    child.once('error', reject);
    child.once('exit', (status, signal) => {
      settle();
      resolve({ status, signal, stdout: '', stderr: 'the process of the command has ended' });
    });
    child.once('message', (reply: CommandReply) => {
      settle();
      giveBack(child);
      resolve({ signal: null, ...reply });
    });
    const request: CommandRequest = { args, cwd: options.cwd ?? process.cwd() };
    child.send(request);
  });
};

/** As `vdiskfsJson` of `vdiskfs.ts`. */
export const vdiskfsJson = async (
  args: readonly string[],
  accept: readonly number[] = [0],
): Promise<unknown> => documentOf(args, await vdiskfs([...args, '--json']), accept);
