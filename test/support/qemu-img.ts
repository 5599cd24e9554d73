/**
 * QEMU's tools as oracle and as maker of fixtures. A missing tool is a failure that says what to install, never a
 * silent skip.
 */
import { type Finished, run } from './vdiskfs.ts';

/** QEMU says so of a busy machine when it finds out how long a key's hash takes. */
const NOT_MEASURED = 'Unable to get accurate CPU usage';
const TRIES = 5;

const runOnce = (tool: string, args: readonly string[]): Promise<Finished> =>
  run(tool, args, { timeoutMs: 60_000 }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
    throw new Error(`${tool} is missing: install the Debian package qemu-utils`);
  });

const runTool = async (tool: string, args: readonly string[], accept: readonly number[]) => {
  let done = await runOnce(tool, args);
  for (let i = 1; i < TRIES && done.status === 1 && done.stderr.includes(NOT_MEASURED); i++)
    done = await runOnce(tool, args);
  if (done.status === null || !accept.includes(done.status)) {
    const how = `exited ${done.status ?? done.signal}`;
    throw new Error(`${tool} ${args.join(' ')} ${how}:\n${done.stdout}${done.stderr}`);
  }
  return done;
};

/** Runs `qemu-img`; its stdout. Throws with its output unless it exits 0 (or one of `accept`). */
export const qemuImg = async (
  args: readonly string[],
  accept: readonly number[] = [0],
): Promise<string> => (await runTool('qemu-img', args, accept)).stdout;

/** `qemu-img COMMAND --output=json …`, parsed. */
export const qemuImgJson = async (
  command: 'info' | 'map' | 'check' | 'measure',
  args: readonly string[],
  accept: readonly number[] = [0],
): Promise<unknown> => JSON.parse(await qemuImg([command, '--output=json', ...args], accept));

/**
 * Runs commands of `qemu-io` (`write -P 0xab 0 64k`) on an image, one after the other in one process. `options` stand
 * in front (`['-f', 'raw']`). Throws when a command fails: qemu-io itself exits 0 then.
 */
export const qemuIo = async (
  image: string,
  commands: readonly string[],
  options: readonly string[] = [],
): Promise<string> => {
  const args = [...options, ...commands.flatMap((c) => ['-c', c]), image];
  const { stdout, stderr } = await runTool('qemu-io', args, [0]);
  const failed = /fail|error|invalid|can't/i.exec(stderr + stdout);
  if (failed !== null) throw new Error(`qemu-io ${args.join(' ')} failed:\n${stdout}${stderr}`);
  return stdout;
};

/** Fails unless `qemu-img check` finds nothing, neither error nor leak. */
export const assertClean = async (image: string): Promise<void> => {
  await qemuImg(['check', image]);
};

/** Fails unless both show the same bytes (zeros past the end of the shorter are equal). */
export const assertSameContent = async (a: string, b: string): Promise<void> => {
  await qemuImg(['compare', a, b]);
};

/** SHA-256 of the content as `qemu-img convert -O raw` gives it, hexadecimal. `scratch`: a path that it may write. */
export const contentSha256 = async (image: string, scratch: string): Promise<string> => {
  await qemuImg(['convert', '-O', 'raw', image, scratch]);
  const done = await run('sha256sum', [scratch], { timeoutMs: 60_000 });
  return done.stdout.slice(0, 64);
};
