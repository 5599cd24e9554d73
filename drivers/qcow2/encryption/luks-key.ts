/**
 * From a passphrase to the master key of a LUKS1 header, and a new header around a new key (LUKS On-Disk Format
 * Specification 1.2.3, "Key recovery", "Initialisation").
 *
 * Passphrases are stretched off the main thread, a few at a time in the whole process: a header may ask for a minute of
 * it, and the threads are the file I/O's too.
 */
import { pbkdf2, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import { alignUp } from '../../../src/base/range.ts';
import type { Secret } from '../../../src/block/secrets.ts';
import { mergeKey, splitKey } from './anti-forensic.ts';
import {
  DIGEST_BYTES,
  encodeLuksHeader,
  KEY_SLOTS,
  type KeySlot,
  type LuksHeader,
  MAX_ITERATIONS,
  materialBytes,
  SALT_BYTES,
  STRIPES,
} from './luks-header.ts';
import { type CipherSpec, keyBytesOf, SectorCipher } from './sector-cipher.ts';

const stretch = promisify(pbkdf2);

/** Passphrases that are stretched at the same time. */
const MAX_STRETCHING = 4;
let stretching = 0;
const waiting: (() => void)[] = [];

const stretchInTurn = async (
  secret: Uint8Array,
  salt: Uint8Array,
  iterations: number,
  keyBytes: number,
  hash: string,
): Promise<Uint8Array> => {
  if (stretching >= MAX_STRETCHING) await new Promise<void>((resolve) => waiting.push(resolve));
  else stretching++;
  try {
    return await stretch(secret, salt, iterations, keyBytes, hash);
  } finally {
    const next = waiting.shift();
    if (next === undefined) stretching--;
    else next();
  }
};

/** Reads bytes of the header, from its own start. */
export type ReadHeader = (offset: number, lengthBytes: number) => Promise<Uint8Array<ArrayBuffer>>;

/** The master key; null when no slot opens with the secret. Errors: EIO. */
export const openLuks = async (
  header: LuksHeader,
  secret: Secret,
  read: ReadHeader,
): Promise<Uint8Array | null> => {
  for (const slot of header.slots) {
    if (!slot.active) continue;
    const key = await openSlot(header, slot, secret, read);
    const digest = await digestOf(key, header);
    if (timingSafeEqual(digest, header.digest)) return key;
  }
  return null;
};

const openSlot = async (
  header: LuksHeader,
  slot: KeySlot,
  secret: Secret,
  read: ReadHeader,
): Promise<Uint8Array> => {
  const keyBytes = keyBytesOf(header.cipher);
  const { salt, iterations } = slot;
  const key = await stretchInTurn(secret.bytes, salt, iterations, keyBytes, header.hash);
  const material = await read(slot.keyOffset, materialBytes(header));
  new SectorCipher({ ...header.cipher, key }).decrypt(0, material);
  return mergeKey(material.subarray(0, keyBytes * STRIPES), {
    stripes: STRIPES,
    hash: header.hash,
  });
};

const digestOf = (key: Uint8Array, header: Omit<LuksHeader, 'digest'>): Promise<Uint8Array> =>
  stretchInTurn(key, header.digestSalt, header.digestIterations, DIGEST_BYTES, header.hash);

export interface NewLuks {
  readonly cipher: Omit<CipherSpec, 'key'>;
  readonly hash: string;
  /** How long trying a passphrase is to take, in ms. */
  readonly iterationMs: number;
}

/** Key material begins, and ends, at multiples of this. */
const MATERIAL_ALIGNMENT_BYTES = 4096;
const MIN_ITERATIONS = 1000;
/** The master key is random: it needs less. */
const DIGEST_SHARE = 1 / 8;

const materialStride = (cipher: NewLuks['cipher']): number =>
  alignUp(keyBytesOf(cipher) * STRIPES, MATERIAL_ALIGNMENT_BYTES);

/** Bytes of a new header with its key material. */
export const newLuksBytes = (cipher: NewLuks['cipher']): number =>
  MATERIAL_ALIGNMENT_BYTES + KEY_SLOTS * materialStride(cipher);

/** A header with a new master key, which slot 0 gives to the secret: `newLuksBytes` bytes. */
export const makeLuks = async (plan: NewLuks, secret: Secret): Promise<Uint8Array> => {
  const { cipher, hash, iterationMs } = plan;
  const keyBytes = keyBytesOf(cipher);
  const master = randomBytes(keyBytes);
  const iterations = await iterationsIn(iterationMs, hash, keyBytes);
  const stride = materialStride(cipher);
  const slots = Array.from({ length: KEY_SLOTS }, (_, index) => ({
    index,
    active: index === 0,
    iterations: index === 0 ? iterations : 0,
    salt: index === 0 ? randomBytes(SALT_BYTES) : new Uint8Array(SALT_BYTES),
    keyOffset: MATERIAL_ALIGNMENT_BYTES + index * stride,
    stripes: STRIPES,
  }));
  const unsigned = {
    cipher,
    hash,
    payloadOffset: newLuksBytes(cipher),
    digestSalt: randomBytes(SALT_BYTES),
    digestIterations: Math.max(MIN_ITERATIONS, Math.round(iterations * DIGEST_SHARE)),
    uuid: randomUUID(),
    slots,
  };
  const header: LuksHeader = { ...unsigned, digest: await digestOf(master, unsigned) };
  const bytes = new Uint8Array(newLuksBytes(cipher));
  bytes.set(encodeLuksHeader(header));
  const [slot] = slots;
  if (slot !== undefined) bytes.set(await sealSlot(header, slot, secret, master), slot.keyOffset);
  return bytes;
};

const sealSlot = async (
  header: LuksHeader,
  slot: KeySlot,
  secret: Secret,
  master: Uint8Array,
): Promise<Uint8Array> => {
  const { cipher, hash } = header;
  const { salt, iterations } = slot;
  const key = await stretchInTurn(secret.bytes, salt, iterations, master.length, hash);
  const material = new Uint8Array(materialBytes(header));
  material.set(await splitKey(master, { stripes: STRIPES, hash }));
  new SectorCipher({ ...cipher, key }).encrypt(0, material);
  return material;
};

const MEASURED_MS = 50;

/** Iterations that take the processor so long here. */
const iterationsIn = async (ms: number, hash: string, keyBytes: number): Promise<number> => {
  const salt = new Uint8Array(SALT_BYTES);
  for (let iterations = 1 << 12; ; iterations *= 2) {
    const before = process.cpuUsage();
    await stretch(salt, salt, iterations, keyBytes, hash);
    const { user, system } = process.cpuUsage(before);
    const takenMs = (user + system) / 1000;
    if (takenMs < MEASURED_MS && iterations < MAX_ITERATIONS) continue;
    const wanted = Math.round((iterations * ms) / takenMs);
    return Math.min(MAX_ITERATIONS, Math.max(MIN_ITERATIONS, wanted));
  }
};
