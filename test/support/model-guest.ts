/** A guest of random steps beside a model of bytes: what it must see, and every moment of that. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { guestOffset } from '../../src/base/units.ts';
import type { View } from '../../src/block/view.ts';
import { isInjected } from './injected-faults.ts';

const KIB = 1024;
/** More than there are faults. */
const MOST_ATTEMPTS = 20;

export interface ModelStep {
  readonly kind: 'write' | 'discard' | 'zero' | 'flush';
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Lists of steps on a disk of so many bytes; others are brought into a guest's own part. */
export const modelSteps = (
  diskBytes: number,
  { minLength, maxLength }: { readonly minLength: number; readonly maxLength: number },
): fc.Arbitrary<ModelStep[]> =>
  fc.array(
    fc.record({
      kind: fc.constantFrom<ModelStep['kind']>(
        'write',
        'write',
        'write',
        'discard',
        'zero',
        'flush',
      ),
      offset: fc.nat(diskBytes - 1),
      lengthBytes: fc.integer({ min: 1, max: 160 * KIB }),
    }),
    { minLength, maxLength },
  );

/** What the guest sees, and every moment of it between two changes. */
export class ByteModel {
  readonly bytes: Buffer;
  readonly #moments: string[] = [];
  /** Steps that have failed: until they were done again, what they would have changed is one or the other. */
  failures = 0;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.changed();
  }

  changed(): void {
    this.#moments.push(digestOf(this.bytes));
  }

  /** The moment that is now, for `has`. */
  get now(): number {
    return this.#moments.length - 1;
  }

  /** Whether these were all bytes at one moment, at `since` or later. */
  has(bytes: Uint8Array, since = 0): boolean {
    return this.#moments.includes(digestOf(bytes), since);
  }
}

const digestOf = (bytes: Uint8Array): string => createHash('sha1').update(bytes).digest('hex');

/** Of a disk, for one guest. */
export interface GuestPart {
  readonly start: number;
  readonly end: number;
  /** Its bytes differ from those of other guests. */
  readonly fill: number;
  /** It reads what it wrote. Reads would meet faults that are meant for a job. */
  readonly reads: boolean;
}

/**
 * One guest; several have parts of the disk of their own, so that the model knows who was last. A step that meets an injected
 * fault is done again, as a program does that wants its data on the disk.
 */
export const runModelGuest = async (
  view: View,
  model: ByteModel,
  steps: readonly ModelStep[],
  part: GuestPart,
): Promise<void> => {
  for (const [index, step] of steps.entries()) {
    const span = part.end - part.start;
    const start = part.start + (step.offset % span);
    const length = Math.min(step.lengthBytes, part.end - start);
    const range = model.bytes.subarray(start, start + length);
    const fill = 1 + ((part.fill + index) % 250);
    await persistently(model, () => change(view, step.kind, { start, length, fill }));
    if (step.kind !== 'flush') range.fill(step.kind === 'write' ? fill : 0);
    model.changed();
    if (!part.reads) continue;
    const seen = Buffer.alloc(length);
    await persistently(model, async () => void (await view.read(guestOffset(start), seen)));
    assert.ok(seen.equals(range), `the guest reads what it wrote (${step.kind} at ${start})`);
  }
};

const change = async (
  view: View,
  kind: ModelStep['kind'],
  {
    start,
    length,
    fill,
  }: { readonly start: number; readonly length: number; readonly fill: number },
): Promise<void> => {
  const at = guestOffset(start);
  switch (kind) {
    case 'write':
      return view.write(at, Buffer.alloc(length, fill));
    case 'discard':
      return view.punchHole(at, length);
    case 'zero':
      return view.zeroRange(at, length, { keepSize: true });
    case 'flush':
      return view.flush();
  }
};

const persistently = async (model: ByteModel, run: () => Promise<void>): Promise<void> => {
  for (let attempt = 1; ; attempt++) {
    try {
      return await run();
    } catch (error) {
      if (!isInjected(error) || attempt === MOST_ATTEMPTS) throw error;
      model.failures++;
    }
  }
};
