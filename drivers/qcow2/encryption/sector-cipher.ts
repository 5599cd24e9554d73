/**
 * Encryption of sectors of 512 bytes, each with an initialisation vector made of its number: the ciphers of LUKS1 and
 * of qcow2's old AES encryption. Synchronous, and without anything of Node's but `node:crypto`, so that it runs in
 * threads of its own.
 *
 * A cipher object costs 3 to 10 µs in Node, and `aes-*-xts` handles one sector with each. So many sectors go through
 * one object of ECB mode, and what the modes of IEEE 1619 (XTS) and SP 800-38A (CBC) put around it is done here: several
 * times as fast, and it gives XTS with keys of 192 bits, which OpenSSL lacks. CBC can only be decrypted so; each
 * sector is encrypted with an object of its own.
 */
import {
  type Cipher,
  createCipheriv,
  createDecipheriv,
  createHash,
  type Decipher,
} from 'node:crypto';
import { endianness } from 'node:os';
import { assert } from '../../../src/base/assert.ts';
import { viewOf } from '../../../src/base/byte-order.ts';

export const CRYPT_SECTOR_BYTES = 512;

export type CipherMode = 'cbc' | 'xts';
export type IvGenerator = 'plain' | 'plain64' | 'essiv';

/** What a cipher is made of; goes to other threads as it is. */
export interface CipherSpec {
  /** Of one AES key; XTS has two of them. */
  readonly keyBits: 128 | 192 | 256;
  readonly mode: CipherMode;
  readonly iv: IvGenerator;
  /** The hash of ESSIV; null for the other generators. Its digest has the length of an AES key. */
  readonly ivHash: string | null;
  readonly key: Uint8Array;
}

/** Bytes of the key of a cipher. */
export const keyBytesOf = ({ keyBits, mode }: Pick<CipherSpec, 'keyBits' | 'mode'>): number =>
  (keyBits / 8) * (mode === 'xts' ? 2 : 1);

const BLOCK_BYTES = 16;
const BLOCKS_PER_SECTOR = CRYPT_SECTOR_BYTES / BLOCK_BYTES;
const SECTOR_WORDS = CRYPT_SECTOR_BYTES / 4;
/** Sectors at once: what they take stays in the processor's cache. */
const BATCH_SECTORS = 128;
const TWO_32 = 2 ** 32;

export class SectorCipher {
  readonly #spec: CipherSpec;
  readonly #bits: 128 | 192 | 256;
  readonly #dataKey: Uint8Array;
  readonly #tweakKey: Uint8Array;
  readonly #essiv: { readonly key: Uint8Array; readonly bits: number } | null;
  readonly #tweaks = new Uint32Array(BATCH_SECTORS * SECTOR_WORDS);
  readonly #mixed = new Uint32Array(BATCH_SECTORS * SECTOR_WORDS);

  constructor(spec: CipherSpec) {
    assert(endianness() === 'LE', 'tweaks are doubled as little-endian words');
    assert(spec.key.length === keyBytesOf(spec), 'the key has the length of its cipher');
    this.#spec = spec;
    this.#bits = spec.keyBits;
    const half = spec.keyBits / 8;
    this.#dataKey = spec.key.slice(0, half);
    this.#tweakKey = spec.key.slice(half);
    this.#essiv = null;
    if (spec.iv === 'essiv') {
      const key = createHash(spec.ivHash ?? '')
        .update(spec.key)
        .digest();
      this.#essiv = { key, bits: key.length * 8 };
    }
  }

  /** In place. `bytes`: whole sectors, the first with number `sector`. */
  encrypt(sector: number, bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#spec.mode === 'xts') this.#inBatches(sector, bytes, 'encrypt');
    else this.#encryptCbc(sector, bytes);
  }

  /** As `encrypt`. */
  decrypt(sector: number, bytes: Uint8Array<ArrayBuffer>): void {
    this.#inBatches(sector, bytes, 'decrypt');
  }

  #inBatches(first: number, bytes: Uint8Array<ArrayBuffer>, direction: Direction): void {
    assert(bytes.length % CRYPT_SECTOR_BYTES === 0, 'whole sectors are encrypted');
    assert(bytes.byteOffset % 4 === 0, 'sectors are words');
    for (let at = 0; at < bytes.length; at += BATCH_SECTORS * CRYPT_SECTOR_BYTES) {
      const part = bytes.subarray(at, at + BATCH_SECTORS * CRYPT_SECTOR_BYTES);
      const sector = first + at / CRYPT_SECTOR_BYTES;
      if (this.#spec.mode === 'xts') this.#xts(sector, part, direction);
      else this.#decryptCbc(sector, part);
    }
  }

  #xts(sector: number, bytes: Uint8Array<ArrayBuffer>, direction: Direction): void {
    const sectors = bytes.length / CRYPT_SECTOR_BYTES;
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    const first = wordsOf(this.#ecb(this.#tweakKey, this.#ivs(sector, sectors), 'encrypt'));
    mixTweaks(words, first, this.#tweaks, this.#mixed);
    const mixed = new Uint8Array(this.#mixed.buffer, 0, bytes.length);
    const done = wordsOf(this.#ecb(this.#dataKey, mixed, direction));
    for (let w = 0; w < words.length; w++) words[w] = (done[w] ?? 0) ^ (this.#tweaks[w] ?? 0);
  }

  // One object for all: each first block is then mixed with the end of the sector before instead of its own vector.
  #decryptCbc(sector: number, bytes: Uint8Array<ArrayBuffer>): void {
    const sectors = bytes.length / CRYPT_SECTOR_BYTES;
    const ivs = wordsOf(this.#ivs(sector, sectors));
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    const cipher = createDecipheriv(`aes-${this.#bits}-cbc`, this.#dataKey, Buffer.alloc(16));
    const plain = wordsOf(unpadded(cipher).update(bytes));
    for (let s = 0; s < sectors; s++) {
      const at = s * SECTOR_WORDS;
      for (let w = 0; w < 4; w++) {
        const before = s === 0 ? 0 : (words[at - 4 + w] ?? 0);
        plain[at + w] = (plain[at + w] ?? 0) ^ before ^ (ivs[s * 4 + w] ?? 0);
      }
    }
    words.set(plain);
  }

  #encryptCbc(sector: number, bytes: Uint8Array): void {
    const sectors = bytes.length / CRYPT_SECTOR_BYTES;
    const ivs = this.#ivs(sector, sectors);
    for (let s = 0; s < sectors; s++) {
      const iv = ivs.subarray(s * BLOCK_BYTES, (s + 1) * BLOCK_BYTES);
      const cipher = createCipheriv(`aes-${this.#bits}-cbc`, this.#dataKey, iv);
      const at = s * CRYPT_SECTOR_BYTES;
      bytes.set(unpadded(cipher).update(bytes.subarray(at, at + CRYPT_SECTOR_BYTES)), at);
    }
  }

  /** One vector of 16 bytes for each sector, before XTS encrypts it. */
  #ivs(first: number, sectors: number): Uint8Array {
    const ivs = new Uint8Array(sectors * BLOCK_BYTES);
    const view = viewOf(ivs);
    for (let s = 0; s < sectors; s++) {
      view.setUint32(s * BLOCK_BYTES, (first + s) % TWO_32, true);
      if (this.#spec.iv !== 'plain')
        view.setUint32(s * BLOCK_BYTES + 4, Math.floor((first + s) / TWO_32), true);
    }
    if (this.#essiv === null) return ivs;
    const { key, bits } = this.#essiv;
    return unpadded(createCipheriv(`aes-${bits}-ecb`, key, null)).update(ivs);
  }

  #ecb(key: Uint8Array, bytes: Uint8Array, direction: Direction): Buffer {
    const name = `aes-${this.#bits}-ecb`;
    const cipher =
      direction === 'encrypt' ? createCipheriv(name, key, null) : createDecipheriv(name, key, null);
    return unpadded(cipher).update(bytes);
  }
}

type Direction = 'encrypt' | 'decrypt';

const unpadded = <T extends Cipher | Decipher>(cipher: T): T => {
  cipher.setAutoPadding(false);
  return cipher;
};

const wordsOf = (bytes: Uint8Array): Uint32Array => {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Uint32Array(aligned.buffer, aligned.byteOffset, aligned.length / 4);
};

/**
 * Fills `tweaks` with the tweak of each block (that of a sector's first block is given, each next one is the double of
 * the one before in GF(2^128)), and `mixed` with the words combined with them.
 */
const mixTweaks = (
  words: Uint32Array,
  first: Uint32Array,
  tweaks: Uint32Array,
  mixed: Uint32Array,
): void => {
  for (let at = 0, s = 0; at < words.length; s += 4) {
    let [a, b, c, d] = [first[s] ?? 0, first[s + 1] ?? 0, first[s + 2] ?? 0, first[s + 3] ?? 0];
    for (let block = 0; block < BLOCKS_PER_SECTOR; block++, at += 4) {
      tweaks[at] = a;
      tweaks[at + 1] = b;
      tweaks[at + 2] = c;
      tweaks[at + 3] = d;
      mixed[at] = (words[at] ?? 0) ^ a;
      mixed[at + 1] = (words[at + 1] ?? 0) ^ b;
      mixed[at + 2] = (words[at + 2] ?? 0) ^ c;
      mixed[at + 3] = (words[at + 3] ?? 0) ^ d;
      const carry = (d >>> 31) * 0x87;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
  }
};
