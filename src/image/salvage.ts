/**
 * Reading what can be read of a damaged image: `vdiskfs convert --salvage`. What cannot is zeros, sector by sector, and is
 * told.
 */
import { BlockError, toBlockError } from '../base/block-error.ts';
import { alignDown } from '../base/range.ts';

/** The unit that is lost as a whole: what a disk cannot read less of. */
const SECTOR_BYTES = 512;
/** Places that are remembered; the count goes on. */
const MAX_RANGES = 1000;

export interface LostRange {
  readonly start: number;
  readonly lengthBytes: number;
  /** Of its first sector. */
  readonly reason: string;
}

/** What could not be read, by offset in what is made of it. */
export class LostRanges {
  #ranges: LostRange[] = [];
  #lostBytes = 0;

  get lostBytes(): number {
    return this.#lostBytes;
  }

  /** In order, neighbours joined; the first thousand that were met. */
  get ranges(): readonly LostRange[] {
    return joined(this.#ranges);
  }

  add(range: LostRange): void {
    this.#lostBytes += range.lengthBytes;
    if (this.#ranges.length >= 2 * MAX_RANGES) this.#ranges = joined(this.#ranges);
    const last = this.#ranges.at(-1);
    if (last !== undefined && last.start + last.lengthBytes === range.start)
      this.#ranges[this.#ranges.length - 1] = join(last, range);
    else if (this.#ranges.length < 2 * MAX_RANGES) this.#ranges.push(range);
  }
}

const join = (a: LostRange, b: LostRange): LostRange => ({
  ...a,
  lengthBytes: a.lengthBytes + b.lengthBytes,
});

const joined = (ranges: readonly LostRange[]): LostRange[] => {
  const out: LostRange[] = [];
  for (const range of [...ranges].sort((a, b) => a.start - b.start)) {
    const last = out.at(-1);
    if (last !== undefined && last.start + last.lengthBytes === range.start)
      out[out.length - 1] = join(last, range);
    else out.push(range);
  }
  return out.slice(0, MAX_RANGES);
};

/**
 * Fills a buffer by `read`, halving a range that fails until one sector is left, which is zeros then. `offset` is where
 * `lost` will say it is. Errors: those of `read` that are no `BlockError`.
 */
export const readSalvaging = async (
  read: (offset: number, buffer: Uint8Array) => Promise<void>,
  offset: number,
  buffer: Uint8Array,
  lost: LostRanges,
): Promise<void> => {
  try {
    await read(offset, buffer);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const middle = alignDown(offset + buffer.length / 2, SECTOR_BYTES) - offset;
    const split = middle > 0 ? middle : alignDown(offset, SECTOR_BYTES) + SECTOR_BYTES - offset;
    if (split >= buffer.length) {
      buffer.fill(0);
      const reason = toBlockError(error).describe();
      lost.add({ start: offset, lengthBytes: buffer.length, reason });
      return;
    }
    await readSalvaging(read, offset, buffer.subarray(0, split), lost);
    await readSalvaging(read, offset + split, buffer.subarray(split), lost);
  }
};
