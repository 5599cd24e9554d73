/**
 * What a power cut can leave of a recorded file: everything that a finished flush covered, and of the rest any part,
 * sector by sector, in any order of overlapping writes.
 */
import type { Random } from '../../src/base/random.ts';
import type { Change, FileLog, LoggedChange } from './recording-file.ts';

const SECTOR_BYTES = 512;

/** Which of the changes that no flush covered have reached the disk. */
export type Survivors = 'all' | 'none' | Random;

/** The file at a cut after `events` events of the log. `start`: the file before the log began. */
export const imageAfterCut = (
  start: Uint8Array,
  log: FileLog,
  events: number,
  survivors: Survivors,
): Uint8Array => {
  const begun = log.changes.filter((c) => c.begun < events);
  const image = new GrowingImage(start);
  const open: LoggedChange[] = [];
  for (const logged of begun) {
    if (isDurable(logged, log, events)) image.apply(logged.change);
    else open.push(logged);
  }
  if (survivors === 'all') for (const { change } of open) image.apply(change);
  if (typeof survivors === 'string') return image.bytes;
  for (const { change } of shuffled(open, survivors)) applyTorn(image, change, survivors);
  return image.bytes;
};

export interface RecordedFile {
  /** Before the log began. */
  readonly start: Uint8Array;
  readonly log: FileLog;
}

/**
 * What files were after each change of one of them, had all before it reached the disk in their order: every prefix of the
 * log. The bytes are valid until the next is asked for.
 */
export function* prefixesOf(
  files: readonly RecordedFile[],
): Generator<{ readonly events: number; readonly images: readonly Uint8Array[] }> {
  const images = files.map(({ start }) => new GrowingImage(start));
  const changes = files.flatMap(({ log }, i) =>
    log.changes.map((c) => ({ ...c, image: images[i] })),
  );
  for (const { change, begun, image } of changes.sort((a, b) => a.begun - b.begun)) {
    image?.apply(change);
    yield { events: begun + 1, images: images.map(({ bytes }) => bytes) };
  }
}

/** Changed in place, so that a long log costs no copy of the file for each change. */
class GrowingImage {
  #buffer: Uint8Array;
  #lengthBytes: number;

  constructor(start: Uint8Array) {
    this.#buffer = Uint8Array.from(start);
    this.#lengthBytes = start.length;
  }

  get bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.#lengthBytes);
  }

  apply(change: Change): void {
    if (change.kind === 'resize') {
      this.#buffer.fill(0, change.lengthBytes);
      this.#lengthBytes = change.lengthBytes;
      this.#reserve();
      return;
    }
    const length = change.kind === 'write' ? change.bytes.length : change.lengthBytes;
    this.#lengthBytes = Math.max(this.#lengthBytes, change.offset + length);
    this.#reserve();
    if (change.kind === 'write') this.#buffer.set(change.bytes, change.offset);
    else this.#buffer.fill(0, change.offset, change.offset + length);
  }

  #reserve(): void {
    if (this.#lengthBytes <= this.#buffer.length) return;
    const larger = new Uint8Array(2 * this.#lengthBytes);
    larger.set(this.#buffer);
    this.#buffer = larger;
  }
}

export const isDurable = (c: LoggedChange, log: FileLog, events: number): boolean =>
  log.flushes.some((f) => f.ended < events && c.ended < f.begun);

/** About half of them; a write that overlaps a later one may reach the disk after it. */
const shuffled = (changes: readonly LoggedChange[], random: Random): LoggedChange[] => {
  const kept = changes.filter(() => random.below(2) === 0);
  for (let i = kept.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    const [a, b] = [kept[i], kept[j]];
    if (a !== undefined && b !== undefined && random.below(3) === 0) [kept[i], kept[j]] = [b, a];
  }
  return kept;
};

// Sectors are whole, a write need not be.
const applyTorn = (image: GrowingImage, change: Change, random: Random): void => {
  if (change.kind !== 'write' || random.below(3) > 0) {
    image.apply(change);
    return;
  }
  const end = change.offset + change.bytes.length;
  for (let at = change.offset; at < end; ) {
    const next = Math.min(end, at - (at % SECTOR_BYTES) + SECTOR_BYTES);
    const bytes = change.bytes.subarray(at - change.offset, next - change.offset);
    if (random.below(2) === 0) image.apply({ kind: 'write', offset: at, bytes });
    at = next;
  }
};
