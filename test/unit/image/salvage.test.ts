import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BlockError } from '../../../src/base/block-error.ts';
import { LostRanges, readSalvaging } from '../../../src/image/salvage.ts';
import { SEED } from '../../support/run-parameters.ts';

const unreadable = (sector: number): BlockError =>
  new BlockError({ kind: 'io', message: `sector ${sector} is bad` });

test('what can be read is there, each bad sector is zeros and told, whatever the range', async () => {
  const place = fc.record({
    offset: fc.nat(3000),
    lengthBytes: fc.integer({ min: 1, max: 9000 }),
    bad: fc.uniqueArray(fc.nat(24)),
  });
  await fc.assert(
    fc.asyncProperty(place, async ({ offset, lengthBytes, bad }) => {
      const read = async (at: number, buffer: Uint8Array): Promise<void> => {
        // As disks do it: what comes before the bad sector may be there, and is not to be relied on.
        buffer.fill(0xee);
        const first = bad.find((s) => s * 512 < at + buffer.length && (s + 1) * 512 > at);
        if (first !== undefined) throw unreadable(first);
        for (let i = 0; i < buffer.length; i++) buffer[i] = 1 + ((at + i) % 250);
      };
      const lost = new LostRanges();
      const buffer = new Uint8Array(lengthBytes);
      await readSalvaging(read, offset, buffer, lost);
      const isLost = (at: number): boolean => bad.includes(Math.floor(at / 512));
      const expected = buffer.map((_, i) => (isLost(offset + i) ? 0 : 1 + ((offset + i) % 250)));
      assert.deepEqual(buffer, expected);
      const told = new Set<number>();
      for (const { start, lengthBytes: length } of lost.ranges)
        for (let at = start; at < start + length; at++) told.add(at);
      for (let at = offset; at < offset + lengthBytes; at++)
        assert.equal(told.has(at), isLost(at), `byte ${at}`);
      assert.equal(lost.lostBytes, told.size);
    }),
    { seed: SEED },
  );
});

test('a bug of ours is no bad sector', async () => {
  const read = async (): Promise<void> => {
    throw new TypeError('not a number');
  };
  const lost = new LostRanges();
  await assert.rejects(readSalvaging(read, 0, new Uint8Array(4096), lost), TypeError);
});

test('places are remembered up to a bound, and all bytes counted', () => {
  const lost = new LostRanges();
  for (let i = 0; i < 10_000; i++) lost.add({ start: i * 1024, lengthBytes: 512, reason: 'bad' });
  assert.equal(lost.ranges.length, 1000);
  assert.equal(lost.lostBytes, 10_000 * 512);
});
