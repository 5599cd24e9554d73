import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { DirtyBitmap } from '../../../src/block/dirty-bitmap.ts';
import { countOf, SEED } from '../../support/run-parameters.ts';

/** A granule each, in a plain array. */
class Model {
  lengthBytes: number;
  readonly granularity: number;
  dirty: boolean[] = [];

  constructor(lengthBytes: number, granularity: number) {
    this.lengthBytes = lengthBytes;
    this.granularity = granularity;
    this.dirty = Array.from({ length: Math.ceil(lengthBytes / granularity) }, () => false);
  }

  end(granule: number): number {
    return Math.min(this.lengthBytes, (granule + 1) * this.granularity);
  }

  mark(start: number, length: number): void {
    const { granularity } = this;
    this.dirty = this.dirty.map(
      (d, g) =>
        d || (length > 0 && g * granularity < start + length && (g + 1) * granularity > start),
    );
  }

  clear(start: number, length: number): void {
    this.dirty = this.dirty.map(
      (d, g) => d && !(g * this.granularity >= start && this.end(g) <= start + length),
    );
  }

  resize(lengthBytes: number): void {
    this.lengthBytes = lengthBytes;
    const count = Math.ceil(lengthBytes / this.granularity);
    this.dirty = Array.from({ length: count }, (_, g) => this.dirty[g] ?? false);
  }

  ranges(): { start: number; lengthBytes: number }[] {
    const out: { start: number; lengthBytes: number }[] = [];
    this.dirty.forEach((d, g) => {
      if (!d) return;
      const last = out.at(-1);
      const start = g * this.granularity;
      if (last !== undefined && last.start + last.lengthBytes === start) {
        out[out.length - 1] = { start: last.start, lengthBytes: this.end(g) - last.start };
      } else out.push({ start, lengthBytes: this.end(g) - start });
    });
    return out;
  }
}

type Step =
  | { readonly kind: 'mark' | 'clear'; readonly start: number; readonly length: number }
  | { readonly kind: 'resize'; readonly length: number }
  | { readonly kind: 'copy' };

/** Lengths around the borders of leaves (32768 granules of 512 bytes are 16 MiB) and bytes. */
const LENGTH = fc.oneof(
  fc.nat(64 << 10),
  fc.nat(40 << 20),
  fc.constantFrom(16 << 20, (16 << 20) + 1, (32 << 20) - 512),
);
const STEP: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom('mark' as const, 'clear' as const),
      start: LENGTH,
      length: LENGTH,
    }),
  },
  { weight: 1, arbitrary: LENGTH.map((length) => ({ kind: 'resize' as const, length })) },
  { weight: 1, arbitrary: fc.constant({ kind: 'copy' as const }) },
);

/** Through the stored form, in pieces of `pieceBytes`. */
const restored = (bitmap: DirtyBitmap, pieceBytes: number): DirtyBitmap => {
  const again = new DirtyBitmap(bitmap);
  for (let first = 0; first < bitmap.granules; first += pieceBytes * 8) {
    const piece = new Uint8Array(pieceBytes).fill(0xa5);
    const kind = bitmap.copyBits(first, piece);
    if (kind === 'clean') continue;
    again.addBits(first, kind === 'dirty' ? new Uint8Array(pieceBytes).fill(0xff) : piece);
  }
  return again;
};

test('a dirty bitmap does what a plain array of granules does', () => {
  fc.assert(
    fc.property(
      LENGTH,
      fc.constantFrom(512, 4096, 65536),
      fc.array(STEP, { maxLength: 12 }),
      fc.constantFrom(512, 4096, 65536),
      (length, granularity, steps, pieceBytes) => {
        let bitmap = new DirtyBitmap({ lengthBytes: length, granularityBytes: granularity });
        const model = new Model(length, granularity);
        for (const step of steps) {
          if (step.kind === 'copy') bitmap = restored(bitmap.copy(), pieceBytes);
          else if (step.kind === 'resize') {
            bitmap.resize(step.length);
            model.resize(step.length);
          } else {
            bitmap[step.kind](step.start, step.length);
            model[step.kind](step.start, step.length);
          }
          assert.deepEqual([...bitmap.dirtyRanges()], model.ranges());
          assert.equal(bitmap.dirtyBytes, model.dirty.filter((d) => d).length * granularity);
        }
        for (const from of [0, Math.floor(length / 3), length - 1]) {
          if (from < 0 || from >= model.lengthBytes) continue;
          const isDirty = model.dirty[Math.floor(from / granularity)] === true;
          assert.equal(bitmap.isDirty(from), isDirty);
          assert.equal((isDirty ? bitmap.nextDirty(from) : bitmap.nextClean(from))?.start, from);
        }
      },
    ),
    { numRuns: countOf(80), seed: SEED },
  );
});

test('merging adds every granule that the other touches, of any granularity', () => {
  const size = fc.nat(5 << 20);
  fc.assert(
    fc.property(
      fc.constantFrom(512, 4096, 65536),
      fc.constantFrom(512, 4096, 65536),
      fc.array(fc.tuple(size, size), { maxLength: 6 }),
      fc.array(fc.tuple(size, size), { maxLength: 6 }),
      (granularity, otherGranularity, marks, otherMarks) => {
        const lengthBytes = 5_000_000;
        const bitmap = new DirtyBitmap({ lengthBytes, granularityBytes: granularity });
        const other = new DirtyBitmap({ lengthBytes, granularityBytes: otherGranularity });
        const model = new Model(lengthBytes, granularity);
        for (const [start, length] of marks) {
          bitmap.mark(start, length);
          model.mark(start, length);
        }
        for (const [start, length] of otherMarks) other.mark(start, length);
        for (const { start, lengthBytes: length } of other.dirtyRanges()) model.mark(start, length);
        bitmap.merge(other);
        assert.deepEqual([...bitmap.dirtyRanges()], model.ranges());
      },
    ),
    { numRuns: countOf(60), seed: SEED },
  );
});

test('the stored form is that of qcow2: granule i is bit i % 8 of byte i / 8', () => {
  const bitmap = new DirtyBitmap({ lengthBytes: 20 * 512, granularityBytes: 512 });
  for (const granule of [0, 9, 19]) bitmap.mark(granule * 512, 1);
  const bytes = new Uint8Array(8);
  assert.equal(bitmap.copyBits(0, bytes), 'mixed');
  assert.deepEqual([...bytes], [0b1, 0b10, 0b1000, 0, 0, 0, 0, 0]);
  bitmap.markAll();
  assert.equal(bitmap.copyBits(0, bytes), 'dirty');
  bitmap.clearAll();
  assert.equal(bitmap.copyBits(0, bytes), 'clean');
});

// Looking at granule after granule would read 2^33 bits for each question: hours, not seconds.
test('the next dirty and the next clean range in 4 TiB of 512-byte granules are found without a scan', () => {
  const lengthBytes = 2 ** 42;
  const bitmap = new DirtyBitmap({ lengthBytes, granularityBytes: 512 });
  bitmap.mark(lengthBytes - 1, 1);
  for (let i = 0; i < 20_000; i++) {
    assert.equal(bitmap.nextDirty(i * 512)?.start, lengthBytes - 512);
  }
  bitmap.markAll();
  bitmap.clear(lengthBytes - 512, 512);
  for (let i = 0; i < 20_000; i++) {
    assert.deepEqual(bitmap.nextClean(i * 512), { start: lengthBytes - 512, lengthBytes: 512 });
  }
});

test('memory follows what is partly dirty, and ends at about a bit for each granule', () => {
  const lengthBytes = 2 ** 42;
  const bitmap = new DirtyBitmap({ lengthBytes, granularityBytes: 512 });
  bitmap.markAll();
  assert.equal(bitmap.dirtyBytes, lengthBytes);
  assert.ok(bitmap.memoryBytes < 4096, `all dirty takes ${bitmap.memoryBytes} bytes`);
  bitmap.clearAll();
  for (let i = 0; i < 1000; i++) bitmap.mark(i * 2 ** 32, 1);
  assert.ok(bitmap.memoryBytes < 1000 * 8192, `1000 far marks take ${bitmap.memoryBytes} bytes`);
  bitmap.clearAll();
  for (let granule = 0; granule < 1 << 20; granule += 2) bitmap.mark(granule * 512, 1);
  const limit = ((1 << 20) / 8) * 1.2;
  assert.ok(bitmap.memoryBytes < limit, `the worst pattern takes ${bitmap.memoryBytes} bytes`);
});
