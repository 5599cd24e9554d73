/**
 * Loaded into the processes of a mount (`NODE_OPTIONS=--import …`): an engine dies by SIGKILL in the middle of a request.
 *
 * The file DIE_IN says in which, once: `taken 16` when it has taken up a request of that opcode, and done nothing; `done 16` when it
 * has done everything but answer it. It is gone when the engine dies.
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { ENGINE_DESCRIPTORS } from '../../src/daemon/messages.ts';

const ORDER = process.env['DIE_IN'] ?? '';
/** The request whose answer is waited for, by its `unique`: threads of the engine share it. */
const WAITED_FOR = `${ORDER}.unique`;
const OPCODE_AT = 4;
const UNIQUE_AT = 8;
const IN_HEADER_BYTES = 40;

const { readSync, writeSync, existsSync, readFileSync, writeFileSync, rmSync } = fs;

const die = (path: string): never => {
  rmSync(path);
  process.kill(process.pid, 'SIGKILL');
  for (;;) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000);
};

const headerOf = (bytes: NodeJS.ArrayBufferView, at: number): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset + at);

const taken = (header: DataView): void => {
  if (!existsSync(ORDER)) return;
  const [when, opcode] = readFileSync(ORDER, 'utf8').split(' ');
  if (header.getUint32(OPCODE_AT, true) !== Number(opcode)) return;
  if (when === 'taken') die(ORDER);
  writeFileSync(WAITED_FOR, String(header.getBigUint64(UNIQUE_AT, true)));
  rmSync(ORDER);
};

const answered = (header: DataView): void => {
  if (!existsSync(WAITED_FOR)) return;
  const unique = readFileSync(WAITED_FOR, 'utf8');
  if (unique === String(header.getBigUint64(UNIQUE_AT, true))) die(WAITED_FOR);
};

type Transfer = (
  fd: number,
  bytes: NodeJS.ArrayBufferView,
  at?: number,
  ...more: unknown[]
) => number;

const reading: Transfer = (fd, bytes, ...more) => {
  const got = (readSync as unknown as Transfer)(fd, bytes, ...more);
  if (fd === ENGINE_DESCRIPTORS.fuse && got >= IN_HEADER_BYTES)
    taken(headerOf(bytes, more[0] ?? 0));
  return got;
};
fs.readSync = reading as unknown as typeof readSync;

const writing: Transfer = (fd, bytes, ...more) => {
  if (fd === ENGINE_DESCRIPTORS.fuse) answered(headerOf(bytes, more[0] ?? 0));
  return (writeSync as unknown as Transfer)(fd, bytes, ...more);
};
fs.writeSync = writing as unknown as typeof writeSync;

syncBuiltinESMExports();
