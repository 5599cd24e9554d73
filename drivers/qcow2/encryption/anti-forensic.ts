/**
 * The anti-forensic splitter of LUKS1 (TKS1, "AFsplit" and "AFmerge"): a key is spread over stripes, so that all of
 * them are needed to have it back.
 *
 *     s1 … s(n-1) random,  d(0) = 0,  d(k) = H(d(k-1) xor s(k)),  s(n) = d(n-1) xor key
 */
import { createHash, hash as digestOf, randomBytes } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import { viewOf } from '../../../src/base/byte-order.ts';

/** Stripes between two turns of the event loop: about a millisecond of hashing. */
const STRIPES_PER_TURN = 128;

export interface Splitting {
  readonly stripes: number;
  /** Of the header, as `node:crypto` names it. */
  readonly hash: string;
}

/** The key of `split`, which holds `stripes` times its length. */
export const mergeKey = async (split: Uint8Array, how: Splitting): Promise<Uint8Array> => {
  const keyBytes = split.length / how.stripes;
  const mixed = await diffuseStripes(split, keyBytes, how);
  return xorInto(mixed, split.subarray(split.length - keyBytes));
};

/** What `mergeKey` takes, of a key. */
export const splitKey = async (key: Uint8Array, how: Splitting): Promise<Uint8Array> => {
  const split = new Uint8Array(key.length * how.stripes);
  split.set(randomBytes(key.length * (how.stripes - 1)));
  const mixed = await diffuseStripes(split, key.length, how);
  split.set(xorInto(mixed, key), split.length - key.length);
  return split;
};

const diffuseStripes = async (
  split: Uint8Array,
  keyBytes: number,
  { stripes, hash }: Splitting,
): Promise<Uint8Array> => {
  let mixed: Uint8Array = new Uint8Array(keyBytes);
  for (let stripe = 0; stripe < stripes - 1; stripe++) {
    xorInto(mixed, split.subarray(stripe * keyBytes, (stripe + 1) * keyBytes));
    mixed = diffuse(mixed, hash);
    if (stripe % STRIPES_PER_TURN === STRIPES_PER_TURN - 1) await setImmediate();
  }
  return mixed;
};

/** Each part of a digest's length becomes the hash of its number and itself; the last one is cut off. */
const diffuse = (bytes: Uint8Array, hash: string): Uint8Array => {
  const out = new Uint8Array(bytes.length);
  const length = digestBytes(hash);
  const numbered = new Uint8Array(4 + length);
  for (let at = 0, part = 0; at < bytes.length; part++) {
    const input = bytes.subarray(at, at + length);
    viewOf(numbered).setUint32(0, part);
    numbered.set(input, 4);
    const digest = digestOf(hash, numbered.subarray(0, 4 + input.length), 'buffer');
    out.set(digest.subarray(0, input.length), at);
    at += length;
  }
  return out;
};

const lengths = new Map<string, number>();

/** Bytes of a hash's digest. */
export const digestBytes = (hash: string): number => {
  const known = lengths.get(hash);
  if (known !== undefined) return known;
  const length = createHash(hash).digest().length;
  lengths.set(hash, length);
  return length;
};

const xorInto = (target: Uint8Array, other: Uint8Array): Uint8Array => {
  for (let i = 0; i < target.length; i++) target[i] = (target[i] ?? 0) ^ (other[i] ?? 0);
  return target;
};
