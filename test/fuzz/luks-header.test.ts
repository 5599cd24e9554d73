/**
 * Encryption headers that hold anything: an error that names what is wrong, or an image that is found locked, at once; never
 * a crash, an hour of stretching, or memory for a size that the header makes up. No key is needed to look at one.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  LUKS_HEADER_BYTES,
  MAX_ITERATIONS,
  MAX_WORK,
  parseLuksHeader,
} from '../../drivers/qcow2/encryption/luks-header.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import { keyOf, makeLuksImage } from '../support/encrypted.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const RUNS = { seed: SEED, numRuns: countOf(300) };
const OPENINGS = { seed: SEED, numRuns: countOf(40) };
/** Fields of 32 bits: key bytes, payload, iterations of the digest, and of slots 0 and 7 everything. */
const WORDS = [104, 108, 164, 208, 212, 248, 252, 544, 548, 584, 588];
const HOSTILE_WORD = fc.oneof(
  fc.constantFrom(0, 1, 0xffff_ffff, 0x8000_0000, MAX_ITERATIONS + 1, 0x00ac_71f3, 4000, 8, 0xdead),
  fc.integer({ min: 0, max: 0xffff_ffff }),
);

const sample = async (t: Cleanup) => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await makeLuksImage(path, { bytes: 1 << 20 });
  const image = await readFile(path);
  const start = image.indexOf('LUKS');
  return { directory, path, image, start };
};

const isClear = (error: unknown): void => {
  assert.ok(error instanceof BlockError, String(error));
  assert.ok(
    ['invalid-image', 'unsupported', 'not-permitted'].includes(error.kind),
    error.describe(),
  );
  assert.ok(!/this cannot be/.test(error.message), error.message);
};

test('a header of any bytes is understood or refused by field, value and offset', async (t) => {
  const { image, start } = await sample(t);
  const sound = image.subarray(start, start + LUKS_HEADER_BYTES);
  const place = { path: 'x', offset: 4096, lengthBytes: 1 << 20 };
  const change = fc.oneof(
    fc.record({ at: fc.constantFrom(...WORDS), word: HOSTILE_WORD }),
    fc.record({ at: fc.integer({ min: 0, max: LUKS_HEADER_BYTES - 4 }), word: HOSTILE_WORD }),
  );
  fc.assert(
    fc.property(fc.array(change, { minLength: 1, maxLength: 5 }), (changes) => {
      const bytes = Buffer.from(sound);
      for (const { at, word } of changes) bytes.writeUInt32BE(word, at);
      try {
        const header = parseLuksHeader(bytes, place);
        const tried = header.slots.filter((slot) => slot.active);
        const work = tried.reduce((sum, s) => sum + s.iterations + header.digestIterations, 0);
        assert.ok(work <= MAX_WORK);
      } catch (error) {
        isClear(error);
      }
    }),
    RUNS,
  );
});

test('a hostile header, or a pointer to one, fails the opening and nothing else', async (t) => {
  const { directory, path, image, start } = await sample(t);
  const graph = await testGraph({ directory, secrets: [keyOf(directory)] });
  const pointer = image.indexOf(Buffer.from('0537be77', 'hex'));
  const inPointer = fc.record({
    at: fc.constantFrom(pointer + 4, pointer + 8, pointer + 12, pointer + 16, pointer + 20),
    word: HOSTILE_WORD,
  });
  // Not the iterations: those that are allowed take as long as they say.
  const inHeader = fc.record({
    at: fc.constantFrom(...WORDS.filter((w) => w !== 164 && (w - 212) % 48 !== 0)),
    word: HOSTILE_WORD,
  });
  const moved = inHeader.map(({ at, word }) => ({ at: start + at, word }));
  const before = process.memoryUsage().rss;
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.oneof(inPointer, moved), { minLength: 1, maxLength: 3 }),
      async (changes) => {
        const hostile = Buffer.from(image);
        for (const { at, word } of changes) hostile.writeUInt32BE(word, at);
        await writeFile(path, hostile);
        try {
          const node = await graph.open({ path, format: 'qcow2', readOnly: true });
          await node.read(guestOffset(0), new Uint8Array(4096)).catch(isClear);
          await graph.close(node);
        } catch (error) {
          isClear(error);
        }
      },
    ),
    OPENINGS,
  );
  assert.ok(process.memoryUsage().rss - before < 256 << 20, 'memory stays within its bound');
});

test('eight slots that each ask for the most are refused together', async (t) => {
  const { image, start } = await sample(t);
  const bytes = Buffer.from(image.subarray(start, start + LUKS_HEADER_BYTES));
  for (let slot = 208; slot < LUKS_HEADER_BYTES; slot += 48) {
    bytes.writeUInt32BE(0x00ac_71f3, slot);
    bytes.writeUInt32BE(MAX_ITERATIONS, slot + 4);
  }
  assert.throws(
    () => parseLuksHeader(bytes, { path: 'x', offset: 0, lengthBytes: 1 << 21 }),
    /on its 8 LUKS key slots would take \d+ iterations/,
  );
});

test('iterations, stripes and key material out of range are named, with where they stand', async (t) => {
  const { image, start } = await sample(t);
  const place = { path: 'x', offset: 4096, lengthBytes: 1 << 20 };
  for (const [at, word, message] of [
    [164, 0, /mk-digest-iterations is 0, not 1 to/],
    [212, 0xffff_ffff, /iterations of key slot 0 is 4294967295/],
    [252, 1, /key slot 0 has 1 stripes, not 4000/],
    [248, 1, /key material of LUKS key slot 0, from 512 to/],
    [248, 0xffff_ffff, /does not lie in its header of 1048576 bytes/],
    [108, 17, /key-bytes is 17/],
    [208, 7, /key slot 0 is neither active nor inactive/],
  ] as const) {
    const bytes = Buffer.from(image.subarray(start, start + LUKS_HEADER_BYTES));
    bytes.writeUInt32BE(word, at);
    assert.throws(
      () => parseLuksHeader(bytes, place),
      (error: unknown) => {
        assert.ok(error instanceof BlockError);
        assert.match(error.message, message);
        assert.ok((error.offset ?? 0) >= 4096);
        return true;
      },
    );
  }
});
