/**
 * A guest that reads and writes numbered blocks of some views all the time, and notes what it did and when: for tests of
 * hand-overs, each host's side of which has one.
 *
 *     node hand-over-guest.js ID VIEW...
 *
 * Each view has one loop of direct reads and writes and some of reads through the kernel's pages, of descriptors that stay open. It ends when its stdin does, after what is in flight; then it prints its
 * notes, JSON of `GuestNote[]`.
 */
import { constants, type FileHandle, open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

export const BLOCK_BYTES = 4096;
export const BLOCKS = 24;
/** Of these, the ones that are read through the kernel's pages, each by a loop of its own: a page stays, once it is there. */
const HOT_BLOCKS = 4;
/** Apart enough to lie in clusters, and in what a kernel reads ahead, of their own. */
export const BLOCK_DISTANCE = 192 << 10;

export interface GuestNote {
  readonly view: number;
  readonly kind: 'write' | 'direct read' | 'cached read';
  readonly block: number;
  /** Unique: of the writer and of its write; 0 for what was never written. */
  readonly value: number;
  /** Of the machine's monotonic clock, in ms. */
  readonly start: number;
  readonly end: number;
}

const PAUSE_MS = 1;
const WRITERS = 16;

const nowMs = (): number => Number(process.hrtime.bigint()) / 1e6;

const main = async (id: number, paths: readonly string[]): Promise<void> => {
  let isEnding = false;
  process.stdin.once('close', () => {
    isEnding = true;
  });
  process.stdin.resume();
  const notes: GuestNote[] = [];
  let sequence = 0;
  const note = async (
    fields: Pick<GuestNote, 'view' | 'kind' | 'block'>,
    run: () => Promise<number>,
  ): Promise<void> => {
    const start = nowMs();
    const value = await run();
    notes.push({ ...fields, value, start, end: nowMs() });
  };
  const read = async (file: FileHandle, block: number): Promise<number> => {
    const buffer = Buffer.alloc(BLOCK_BYTES);
    await file.read(buffer, 0, BLOCK_BYTES, block * BLOCK_DISTANCE);
    return buffer.readUInt32LE(0);
  };
  const write = async (file: FileHandle, block: number): Promise<number> => {
    const value = ++sequence * WRITERS + id;
    const buffer = Buffer.alloc(BLOCK_BYTES);
    for (let at = 0; at < BLOCK_BYTES; at += 4) buffer.writeUInt32LE(value, at);
    await file.write(buffer, 0, BLOCK_BYTES, block * BLOCK_DISTANCE);
    return value;
  };
  const direct = async (view: number, path: string): Promise<void> => {
    const file = await open(path, constants.O_RDWR | constants.O_DIRECT);
    for (let turn = 0; !isEnding; turn++) {
      const block = Math.floor(Math.random() * (turn % 2 === 0 ? HOT_BLOCKS : BLOCKS));
      const isWrite = turn % 3 === 0;
      const kind = isWrite ? 'write' : 'direct read';
      await note({ view, kind, block }, () => (isWrite ? write : read)(file, block));
      await sleep(PAUSE_MS);
    }
    await file.close();
  };
  const cached = async (view: number, path: string, block: number): Promise<void> => {
    const file = await open(path, 'r');
    while (!isEnding) {
      await note({ view, kind: 'cached read', block }, () => read(file, block));
      await sleep(PAUSE_MS);
    }
    await file.close();
  };
  const loops = paths.flatMap((path, view) => [
    direct(view, path),
    ...Array.from({ length: HOT_BLOCKS }, (_, block) => cached(view, path, block)),
  ]);
  process.stdout.write('ready\n');
  await Promise.all(loops);
  process.stdout.write(`${JSON.stringify(notes)}\n`);
};

const [id, ...paths] = process.argv.slice(2);
// Imported for its types and numbers, it does nothing.
if (id !== undefined && process.argv[1]?.includes('hand-over-guest') === true)
  await main(Number(id), paths);
