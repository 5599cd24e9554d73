import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NO_ENTRY } from '../../../../drivers/qcow2/entry.ts';
import { equalSubclusters, maskOf, runsOf } from '../../../../drivers/qcow2/subclusters.ts';
import { seededRandom } from '../../../../src/base/random.ts';
import { countOf, SEED } from '../../../support/run-parameters.ts';

const BITS = Array.from({ length: 32 }, (_, bit) => bit);
const isSet = (word: number, bit: number): boolean => ((word >>> bit) & 1) === 1;

test('a mask has the bits from one to another, for every pair', () => {
  for (const from of BITS) {
    for (const end of [...BITS, 32]) {
      const mask = maskOf(from, end);
      assert.ok(mask >= 0, 'unsigned');
      for (const bit of BITS) assert.equal(isSet(mask, bit), bit >= from && bit < end);
    }
  }
});

test(`runs and equal neighbours are those that counting bit by bit finds (seed ${SEED})`, () => {
  const random = seededRandom(SEED);
  const words = [0, 1, 0x8000_0000, 0xffff_ffff, 0x7fff_fffe];
  for (let i = 0; i < countOf(200); i++) {
    const any = (): number => (random.below(2) === 0 ? random.pick(words) : random.below(2 ** 32));
    const allocated = any();
    const zeroes = (any() & ~allocated) >>> 0;
    const bits = [...runsOf(allocated)].flatMap(({ first, count }) =>
      BITS.filter((bit) => bit >= first && bit < first + count),
    );
    assert.deepEqual(
      bits,
      BITS.filter((bit) => isSet(allocated, bit)),
    );
    for (const from of BITS) {
      const isAs = (bit: number): boolean =>
        isSet(allocated, bit) === isSet(allocated, from) &&
        isSet(zeroes, bit) === isSet(zeroes, from);
      const first = BITS.find((bit) => bit > from && !isAs(bit)) ?? 32;
      assert.equal(equalSubclusters({ ...NO_ENTRY, zeroes, allocated }, from), first - from);
    }
  }
});
