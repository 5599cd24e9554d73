/** What tests do to files of a mount, each in a process of its own that is killed when it takes too long. */
import { fileURLToPath } from 'node:url';
import { run } from './vdiskfs.ts';

const PROBE = fileURLToPath(new URL('./file-probe.js', import.meta.url));

/** Runs a program; its stdout. Throws with its output unless it exits 0. */
export const tool = async (
  program: string,
  args: readonly string[],
  timeoutMs = 30_000,
): Promise<string> => {
  const done = await run(program, args, { timeoutMs }).catch((error: unknown) => {
    throw new Error(`${program} is missing: ${String(error)}`);
  });
  if (done.status === 0) return done.stdout;
  const how = `exited ${done.status ?? done.signal}`;
  throw new Error(`${program} ${args.join(' ')} ${how}:\n${done.stdout}${done.stderr}`);
};

/** Runs a program that is expected to fail; what it wrote to stderr. Throws when it succeeds. */
export const failingTool = async (program: string, args: readonly string[]): Promise<string> => {
  const done = await run(program, args);
  if (done.status === 0) throw new Error(`${program} ${args.join(' ')} succeeded`);
  return done.stderr;
};

export const sha256 = async (path: string): Promise<string> =>
  (await tool('sha256sum', [path])).slice(0, 64);

const probe = (...args: string[]): Promise<string> => tool(process.execPath, [PROBE, ...args]);

/** Data extents by SEEK_DATA and SEEK_HOLE, as [start, end) in bytes. */
export const dataExtents = async (path: string): Promise<[number, number][]> =>
  JSON.parse(await probe('extents', path)) as [number, number][];

export const getXattr = (path: string, name: string): Promise<string> =>
  probe('getxattr', path, name);

export const xattrNames = async (path: string): Promise<string[]> =>
  (await probe('listxattr', path)).split('\n').filter((name) => name !== '');

/** Through a shared mapping. */
export const mmapRead = async (
  path: string,
  offset: number,
  lengthBytes: number,
): Promise<Buffer> =>
  Buffer.from(await probe('mmap-read', path, String(offset), String(lengthBytes)), 'hex');

/** Through a shared mapping, msynced. */
export const mmapWrite = async (path: string, offset: number, bytes: Uint8Array): Promise<void> => {
  await probe('mmap-write', path, String(offset), Buffer.from(bytes).toString('hex'));
};

/** `fallocate` of util-linux with its own options (`-p`, `-z`, `-n`). */
export const fallocateTool = (
  path: string,
  options: readonly string[],
  range: { readonly offset: number; readonly lengthBytes: number },
): Promise<string> =>
  tool('fallocate', [
    ...options,
    '-o',
    String(range.offset),
    '-l',
    String(range.lengthBytes),
    path,
  ]);
