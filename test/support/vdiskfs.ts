/** Runs the built command as a person does. */
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export interface Finished {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly cwd?: string;
  readonly timeoutMs?: number;
}

/** The built entry point, for tests that start it in ways of their own. */
export const PROGRAM = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

/** Runs a program to its end, killed after `timeoutMs` (20 s). Never throws for its exit status. */
export const run = (
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Finished> =>
  new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: options.cwd,
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: options.timeoutMs ?? 20_000,
      killSignal: 'SIGKILL',
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => out.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => err.push(chunk));
    child.on('error', reject);
    child.on('close', (status, signal) => {
      const text = (chunks: Buffer[]) => Buffer.concat(chunks).toString('utf8');
      resolve({ status, signal, stdout: text(out), stderr: text(err) });
    });
  });

export const vdiskfs = (args: readonly string[], options: RunOptions = {}): Promise<Finished> =>
  run(process.execPath, [PROGRAM, ...args], options);

/** As `vdiskfs … --json`, parsed. Throws with stderr when it does not exit 0 (or one of `accept`). */
export const vdiskfsJson = async (
  args: readonly string[],
  accept: readonly number[] = [0],
): Promise<unknown> => documentOf(args, await vdiskfs([...args, '--json']), accept);

/** The JSON that a command has printed. Throws with stderr when it did not exit with one of `accept`. */
export const documentOf = (
  args: readonly string[],
  done: Finished,
  accept: readonly number[],
): unknown => {
  if (done.status === null || !accept.includes(done.status)) {
    throw new Error(
      `vdiskfs ${args.join(' ')} exited ${done.status ?? done.signal}: ${done.stderr}`,
    );
  }
  return JSON.parse(done.stdout);
};
