/** Writes bitmaps and a directory of them to clusters of their own, which nothing names before `settled`. */
import { present } from '../../src/base/assert.ts';
import { toBlockError } from '../../src/base/block-error.ts';
import { divideUp } from '../../src/base/range.ts';
import { guestOffset, hostOffsetOfCluster } from '../../src/base/units.ts';
import type { TrackedBitmap } from '../../src/block/dirty-tracking.ts';
import type { Allocation, Allocator } from './allocator.ts';
import {
  type BitmapExtension,
  encodeDirectory,
  FLAG,
  type StoredBitmap,
  tableEntriesFor,
} from './bitmap-directory.ts';
import { ALL_ONES, type BitmapTable, encodeTable } from './bitmap-table.ts';
import type { ImageState } from './state.ts';

export interface WrittenBitmap {
  readonly stored: StoredBitmap;
  readonly table: BitmapTable;
}

/** For one saving. */
export class BitmapWriter {
  readonly #state: ImageState;
  readonly #allocator: Allocator;
  readonly #made: Allocation[] = [];

  constructor(state: ImageState, allocator: Allocator) {
    this.#state = state;
    this.#allocator = allocator;
  }

  /** Bits and table. `old`: what the image has of it. Errors: ENOSPC, EIO. */
  async bitmap(bitmap: TrackedBitmap, old: StoredBitmap | null): Promise<WrittenBitmap> {
    const { clusterBytes } = this.#state;
    const { content, recording } = bitmap;
    const granularityBits = Math.log2(content.granularityBytes);
    const tableEntries = tableEntriesFor(content.lengthBytes, granularityBits, clusterBytes);
    const table = new Float64Array(tableEntries);
    const bits = new Uint8Array(clusterBytes);
    for (let i = 0; i < table.length; i++) {
      const kind = content.copyBits(i * clusterBytes * 8, bits);
      if (kind === 'dirty') table[i] = ALL_ONES;
      else if (kind === 'mixed') table[i] = await this.#write(bits);
    }
    const name = present(bitmap.name, 'a bitmap that an image keeps has a name');
    const stored: StoredBitmap = {
      name,
      nameBytes: old?.nameBytes ?? new TextEncoder().encode(name),
      tableOffset: await this.#write(encodeTable(table)),
      tableEntries,
      flags: (recording ? FLAG.auto : 0) | ((old?.flags ?? 0) & FLAG.extraDataCompatible),
      granularityBits,
      extra: old?.extra ?? new Uint8Array(0),
    };
    return { stored, table };
  }

  /** Errors: ENOSPC, EIO. */
  async directory(bitmaps: readonly StoredBitmap[]): Promise<BitmapExtension> {
    const directory = encodeDirectory(bitmaps);
    const directoryOffset = await this.#write(directory);
    return { bitmaps: bitmaps.length, directoryBytes: directory.length, directoryOffset };
  }

  /** All that was written is on disk and counted there when it returns. Errors: ENOSPC, EIO. */
  async settled(): Promise<void> {
    const { metadata, schedule } = this.#state;
    await this.#state.record(this.#made.flatMap(({ changes }) => changes));
    await schedule.request();
    for (const { first, count } of this.#made) metadata.addRun(first, count, 'other');
  }

  /** After a failure before `settled` has returned: nothing names what was written. */
  async giveBack(): Promise<void> {
    for (const allocation of this.#made) {
      await this.#allocator.giveBack(allocation).catch((error: unknown) => {
        const { log, path } = this.#state.request;
        log.error(path, `clusters are leaked: ${toBlockError(error).describe()}`);
      });
    }
  }

  /** To neighbouring clusters; their host offset. */
  async #write(bytes: Uint8Array): Promise<number> {
    const { file, clusterBytes } = this.#state;
    const clusters = divideUp(bytes.length, clusterBytes);
    const allocation =
      clusters === 1
        ? await this.#allocator.allocate(1)
        : await this.#allocator.allocateContiguous(clusters);
    this.#made.push(allocation);
    const hostOffset = hostOffsetOfCluster(allocation.first, clusterBytes);
    const padded = new Uint8Array(clusters * clusterBytes);
    padded.set(bytes);
    await file.write(guestOffset(hostOffset), padded);
    return hostOffset;
  }
}
