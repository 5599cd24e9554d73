/** An image much larger than its cache has room for: which faults a guest has, and which it does not. */
import assert from 'node:assert/strict';
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { test } from 'node:test';
import { qemuImg } from '../support/qemu-img.ts';
import { vdiskfsJson } from '../support/vdiskfs.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const MIB = 2 ** 20;
/** Other requests, of the file's attributes, say, are counted as faults too. */
const OTHERS = 8;
/** Of the table: 512 clusters. */
const SLICE_BYTES = 32 * MIB;
/** The table has room for some 200 slices. */
const CACHE_BYTES = MIB;
const BLOCK_BYTES = 4096;

/** A guest that reads past the kernel's pages; each of its reads is one request. */
class Reader {
  readonly #file: FileHandle;
  readonly #mountpoint: string;
  readonly #block = Buffer.alloc(BLOCK_BYTES);

  constructor(file: FileHandle, mountpoint: string) {
    this.#file = file;
    this.#mountpoint = mountpoint;
  }

  async read(slice: number, inSlice: number): Promise<void> {
    const at = slice * SLICE_BYTES + inSlice * BLOCK_BYTES;
    const { bytesRead } = await this.#file.read(this.#block, 0, BLOCK_BYTES, at);
    assert.equal(bytesRead, BLOCK_BYTES);
  }

  async jumpAbout(from: number, slices: number): Promise<void> {
    for (let slice = from; slice < from + slices; slice++) await this.read(slice, slice % 100);
  }

  /** How many faults the reads have. */
  async faultsOf(reads: () => Promise<void>): Promise<number> {
    const before = await this.#faults();
    await reads();
    return (await this.#faults()) - before;
  }

  async #faults(): Promise<number> {
    const status = (await vdiskfsJson(['status', this.#mountpoint])) as {
      readonly counters: { readonly faults: number };
    };
    return status.counters.faults;
  }
}

test('a guest that jumps about in 4 TiB drives nothing out that is used; who stays, or reads on, has one more fault a slice at most', async (t) => {
  const place = await placeOf(t, subject);
  await qemuImg(['create', '-q', '-f', 'qcow2', place.image('huge.qcow2'), '4T']);
  const mounted = await place.mount(['--l2-cache-size', String(CACHE_BYTES)]);
  const file = await open(mounted.path('huge.raw'), constants.O_RDONLY | constants.O_DIRECT);
  try {
    const reader = new Reader(file, mounted.mountpoint);
    const jumps = await reader.faultsOf(() => reader.jumpAbout(0, 1500));
    assert.ok(jumps >= 1000, `${jumps} faults: the first ones were filled ahead`);

    const hot = Array.from({ length: 20 }, (_, i) => 50_000 + 11 * i);
    const stay = async (times: number): Promise<void> => {
      for (let i = 0; i < times; i++) for (const slice of hot) await reader.read(slice, i);
    };
    const first = await reader.faultsOf(() => stay(10));
    assert.ok(first <= 2 * hot.length + OTHERS, `${first} faults of ${hot.length} slices`);
    await reader.jumpAbout(2000, 1000);
    const again = await reader.faultsOf(() => stay(2));
    assert.ok(again <= OTHERS, `${again} faults: what is used has not stayed`);

    const readOn = async (): Promise<void> => {
      for (let slice = 90_000; slice < 90_050; slice++)
        for (let i = 0; i < 20; i++) await reader.read(slice, i);
    };
    const faults = await reader.faultsOf(readOn);
    assert.ok(faults <= 2 * 50 + OTHERS, `${faults} faults of 50 slices`);
  } finally {
    await file.close();
  }
  await mounted.unmount();
});
