import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { mergeKey, splitKey } from '../../../../../drivers/qcow2/encryption/anti-forensic.ts';

test('a split key comes back whole, and not at all when one bit is missing', async () => {
  for (const [hash, keyBytes] of [
    ['sha1', 64],
    ['sha256', 48],
    ['sha512', 32],
    ['ripemd160', 16],
  ] as const) {
    const key = randomBytes(keyBytes);
    const split = await splitKey(key, { stripes: 300, hash });
    assert.equal(split.length, keyBytes * 300);
    assert.ok(key.equals(await mergeKey(split, { stripes: 300, hash })), hash);
    split[keyBytes * 7 + 3] = (split[keyBytes * 7 + 3] ?? 0) ^ 1;
    assert.ok(!key.equals(await mergeKey(split, { stripes: 300, hash })), hash);
  }
});

test('two stripes are merged as the definition has it: H(0 | s1) xor s2, part by part', async () => {
  const [first, second] = [randomBytes(40), randomBytes(40)];
  const part = (number: number, bytes: Buffer): Buffer =>
    createHash('sha256')
      .update(Buffer.of(0, 0, 0, number))
      .update(bytes)
      .digest();
  // 40 bytes are a digest of 32, and the first 8 of another.
  const mixed = Buffer.concat([part(0, first.subarray(0, 32)), part(1, first.subarray(32))]);
  const expected = second.map((byte, i) => byte ^ (mixed[i] ?? 0));
  const merged = await mergeKey(Buffer.concat([first, second]), { stripes: 2, hash: 'sha256' });
  assert.deepEqual(Buffer.from(merged), expected);
});
