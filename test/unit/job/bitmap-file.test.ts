/** A job's bitmap beside memory: what the next engine finds is never less than what was dirty. */
import assert from 'node:assert/strict';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { DirtyBitmap } from '../../../src/block/dirty-bitmap.ts';
import { BitmapFile } from '../../../src/job/bitmap-file.ts';
import { countOf, SEED } from '../../support/run-parameters.ts';
import { scratchDirectory } from '../../support/scratch.ts';

const SCOPE = { instance: 'boot 1 2', source: '/a', target: '/b' };
const GRANULARITY = 4096;

const fresh = (lengthBytes: number): DirtyBitmap =>
  new DirtyBitmap({ lengthBytes, granularityBytes: GRANULARITY });

test('what is loaded is what was dirty, after any marks and clears', async (t) => {
  const directory = await scratchDirectory(t);
  const steps = fc.array(
    fc.record({
      kind: fc.constantFrom('mark', 'copy', 'copy-and-write'),
      start: fc.nat(99),
      granules: fc.integer({ min: 1, max: 30 }),
    }),
    { maxLength: 40 },
  );
  let run = 0;
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 100 * GRANULARITY }), steps, (lengthBytes, list) => {
      const path = join(directory, String(run++));
      const content = fresh(lengthBytes);
      content.mark(0, lengthBytes / 2);
      const file = BitmapFile.create(path, SCOPE, content);
      assert.ok(file !== null);
      for (const { kind, start: at, granules } of list) {
        const start = Math.min(at * GRANULARITY, lengthBytes - 1);
        const length = Math.min(granules * GRANULARITY, lengthBytes - start);
        const aligned = start - (start % GRANULARITY);
        if (kind === 'mark') {
          file.mark(start, length);
          content.mark(start, length);
          continue;
        }
        content.clear(aligned, start + length - aligned);
        if (kind === 'copy-and-write') {
          file.mark(start, 1);
          content.mark(start, 1);
        }
        file.clear(aligned, start + length - aligned, content);
      }
      file.close();
      const loaded = BitmapFile.load(path, { ...SCOPE, lengthBytes });
      assert.ok(loaded !== null);
      assert.deepEqual([...loaded.content.dirtyRanges()], [...content.dirtyRanges()]);
      loaded.file.close();
    }),
    { seed: SEED, numRuns: countOf(60) },
  );
});

test('a file of another mount, other images or another length is not taken', async (t) => {
  const path = join(await scratchDirectory(t), 'bits');
  const content = fresh(10 * GRANULARITY);
  content.mark(0, 1);
  const file = BitmapFile.create(path, SCOPE, content);
  file?.close();
  const { lengthBytes } = content;
  const right = { ...SCOPE, lengthBytes };
  for (const wrong of [
    { ...right, instance: 'boot 1 3' },
    { ...right, source: '/c' },
    { ...right, target: '/c' },
    { ...right, lengthBytes: lengthBytes + 1 },
  ]) {
    assert.equal(BitmapFile.load(path, wrong), null);
  }
  BitmapFile.load(path, right)?.file.close();
  const bytes = await readFile(path);
  await writeFile(path, bytes.subarray(0, bytes.length - 1));
  assert.equal(BitmapFile.load(path, right), null, 'cut short');
  await writeFile(path, 'nonsense');
  assert.equal(BitmapFile.load(path, right), null);
});

test('what cannot be written any more is removed, and fails nobody', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'bits');
  const file = BitmapFile.create(path, SCOPE, fresh(10 * GRANULARITY));
  assert.ok(file !== null);
  file.mark(0, 1);
  file.discard();
  file.mark(GRANULARITY, 1);
  await assert.rejects(stat(path), /ENOENT/);
  assert.equal(BitmapFile.create(join(directory, 'no', 'bits'), SCOPE, fresh(1)), null);
});
