import assert from 'node:assert/strict';
import { createCipheriv, createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { PooledCipher } from '../../../../../drivers/qcow2/encryption/cipher-pool.ts';
import {
  type CipherSpec,
  CRYPT_SECTOR_BYTES,
  keyBytesOf,
  SectorCipher,
} from '../../../../../drivers/qcow2/encryption/sector-cipher.ts';

/** Past 2^32 sectors, where plain and plain64 differ. */
const SECTORS = [0, 1, 2 ** 32 - 2, 2 ** 40 + 5];

const specOf = (kind: Omit<CipherSpec, 'key'>): CipherSpec => ({
  ...kind,
  key: randomBytes(keyBytesOf(kind)),
});

const KINDS: readonly Omit<CipherSpec, 'key'>[] = [
  { keyBits: 128, mode: 'xts', iv: 'plain64', ivHash: null },
  { keyBits: 256, mode: 'xts', iv: 'plain64', ivHash: null },
  { keyBits: 256, mode: 'xts', iv: 'plain', ivHash: null },
  { keyBits: 256, mode: 'xts', iv: 'essiv', ivHash: 'sha256' },
  { keyBits: 128, mode: 'cbc', iv: 'plain64', ivHash: null },
  { keyBits: 192, mode: 'cbc', iv: 'plain', ivHash: null },
  { keyBits: 256, mode: 'cbc', iv: 'essiv', ivHash: 'sha256' },
  { keyBits: 128, mode: 'cbc', iv: 'essiv', ivHash: 'md5' },
];

/** By the definition: a cipher object of OpenSSL's for each sector. */
const reference = (spec: CipherSpec, sector: number): Buffer => {
  const iv = Buffer.alloc(16);
  iv.writeUInt32LE(sector % 2 ** 32);
  if (spec.iv !== 'plain') iv.writeUInt32LE(Math.floor(sector / 2 ** 32), 4);
  if (spec.iv !== 'essiv') return iv;
  const key = createHash(spec.ivHash ?? '')
    .update(spec.key)
    .digest();
  const cipher = createCipheriv(`aes-${key.length * 8}-ecb`, key, null).setAutoPadding(false);
  return cipher.update(iv);
};

const encryptedByDefinition = (spec: CipherSpec, first: number, plain: Buffer): Buffer => {
  const sectors: Buffer[] = [];
  for (let at = 0; at < plain.length; at += CRYPT_SECTOR_BYTES) {
    const iv = reference(spec, first + at / CRYPT_SECTOR_BYTES);
    const cipher = createCipheriv(`aes-${spec.keyBits}-${spec.mode}`, spec.key, iv);
    cipher.setAutoPadding(false);
    sectors.push(cipher.update(plain.subarray(at, at + CRYPT_SECTOR_BYTES)));
  }
  return Buffer.concat(sectors);
};

for (const kind of KINDS) {
  const name = `aes-${kind.keyBits}-${kind.mode}-${kind.iv}`;
  test(`${name} is what OpenSSL makes of each sector, and comes back`, () => {
    const spec = specOf(kind);
    const cipher = new SectorCipher(spec);
    for (const first of SECTORS) {
      for (const sectors of [1, 3, 128, 300]) {
        const plain = randomBytes(sectors * CRYPT_SECTOR_BYTES);
        const bytes = new Uint8Array(plain);
        cipher.encrypt(first, bytes);
        assert.ok(encryptedByDefinition(spec, first, plain).equals(bytes), `sector ${first}`);
        cipher.decrypt(first, bytes);
        assert.ok(plain.equals(bytes), `sector ${first}`);
      }
    }
  });
}

test('aes-192-xts, which OpenSSL lacks, comes back, and is different for each sector', () => {
  const cipher = new SectorCipher(
    specOf({ keyBits: 192, mode: 'xts', iv: 'plain64', ivHash: null }),
  );
  const bytes = new Uint8Array(2 * CRYPT_SECTOR_BYTES).fill(7);
  cipher.encrypt(9, bytes);
  assert.notDeepEqual(bytes.slice(0, 512), bytes.slice(512));
  cipher.decrypt(9, bytes);
  assert.ok(bytes.every((byte) => byte === 7));
});

test('the threads make the same of any length as the caller does, many at a time', async () => {
  const spec = specOf({ keyBits: 256, mode: 'xts', iv: 'plain64', ivHash: null });
  const pooled = new PooledCipher(spec);
  const alone = new SectorCipher(spec);
  const lengths = [512, 16_384, 16_896, 65_536, 131_072, 131_584, 1 << 20];
  await Promise.all(
    lengths.map(async (length, i) => {
      const plain = randomBytes(length);
      const expected = new Uint8Array(plain);
      alone.encrypt(i, expected);
      const encrypted = await pooled.run('encrypt', i, new Uint8Array(plain));
      assert.deepEqual(encrypted, expected);
      assert.ok(plain.equals(await pooled.run('decrypt', i, encrypted)));
    }),
  );
  pooled.close();
});
