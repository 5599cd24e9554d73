/**
 * The header of LUKS version 1 (LUKS On-Disk Format Specification 1.2.3, "Partition header"), as qcow2 embeds it: read
 * and checked field by field before anything is computed or allocated by it, and encoded. Big-endian.
 *
 *     0 magic, 6 version, 8 cipher name, 40 cipher mode, 72 hash, 104 payload sector, 108 key bytes, 112 digest of the
 *     master key, 132 its salt, 164 its iterations, 168 UUID, 208 eight key slots of 48 bytes:
 *     0 active, 4 iterations, 8 salt, 40 sector of the key material, 44 stripes
 */
import { getCiphers, getHashes } from 'node:crypto';
import { BlockError, invalidImage } from '../../../src/base/block-error.ts';
import { viewOf } from '../../../src/base/byte-order.ts';
import { alignUp } from '../../../src/base/range.ts';
import { digestBytes } from './anti-forensic.ts';
import { type CipherSpec, CRYPT_SECTOR_BYTES, keyBytesOf } from './sector-cipher.ts';

export const LUKS_HEADER_BYTES = 592;
export const KEY_SLOTS = 8;
/** The only number of stripes there is: QEMU refuses others. */
export const STRIPES = 4000;
/** More would keep a thread busy for a minute for each key that is tried. What takes two seconds, as QEMU makes it, is some millions. */
export const MAX_ITERATIONS = 1 << 25;
/** Of all slots that a key is tried on, and the digests of what comes out. */
export const MAX_WORK = 2 * MAX_ITERATIONS;
export const DIGEST_BYTES = 20;
export const SALT_BYTES = 32;

const MAGIC = Uint8Array.of(0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe);
const ACTIVE = 0x00ac_71f3;
const INACTIVE = 0x0000_dead;
const NAME_BYTES = 32;
const UUID_BYTES = 40;
const FIELD = {
  version: 6,
  cipherName: 8,
  cipherMode: 40,
  hash: 72,
  payloadSector: 104,
  keyBytes: 108,
  digest: 112,
  digestSalt: 132,
  digestIterations: 164,
  uuid: 168,
  slots: 208,
} as const;
const SLOT_BYTES = 48;
const SLOT = { active: 0, iterations: 4, salt: 8, keySector: 40, stripes: 44 } as const;

/** Hashes that QEMU and Node both have, as LUKS names them. */
const HASHES: ReadonlySet<string> = new Set(
  ['md5', 'sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160'].filter((name) =>
    getHashes().includes(name),
  ),
);

export interface KeySlot {
  readonly index: number;
  readonly active: boolean;
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Of the key material, from the header's first byte. */
  readonly keyOffset: number;
  readonly stripes: number;
}

export interface LuksHeader {
  /** The cipher, less its key. */
  readonly cipher: Omit<CipherSpec, 'key'>;
  readonly hash: string;
  readonly payloadOffset: number;
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
  readonly uuid: string;
  readonly slots: readonly KeySlot[];
}

/** Where the header lies in the image file. */
export interface LuksPlace {
  readonly path: string;
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Bytes of a slot's key material, whole sectors. */
export const materialBytes = (header: LuksHeader): number =>
  alignUp(keyBytesOf(header.cipher) * STRIPES, CRYPT_SECTOR_BYTES);

/**
 * `bytes`: the first LUKS_HEADER_BYTES. Errors: kind invalid-image naming field and value; unsupported for a cipher or
 * hash that is not handled, by its name.
 */
export const parseLuksHeader = (bytes: Uint8Array, place: LuksPlace): LuksHeader => {
  const view = viewOf(bytes);
  if (MAGIC.some((byte, i) => bytes[i] !== byte)) {
    throw invalidImage('the encryption header has not the magic of LUKS', at(place, 0));
  }
  const version = view.getUint16(FIELD.version);
  if (version !== 1) throw unsupported(`LUKS version ${version}`, place);
  const cipher = parseCipher(bytes, place);
  const hash = hashNamed(textAt(bytes, FIELD.hash, NAME_BYTES), place);
  const keyBytes = view.getUint32(FIELD.keyBytes);
  if (keyBytes !== keyBytesOf(cipher)) {
    const message = `LUKS field key-bytes is ${keyBytes}, not the ${keyBytesOf(cipher)} of its cipher`;
    throw invalidImage(message, at(place, FIELD.keyBytes));
  }
  const header = {
    cipher,
    hash,
    payloadOffset: view.getUint32(FIELD.payloadSector) * CRYPT_SECTOR_BYTES,
    digest: bytes.slice(FIELD.digest, FIELD.digest + DIGEST_BYTES),
    digestSalt: bytes.slice(FIELD.digestSalt, FIELD.digestSalt + SALT_BYTES),
    digestIterations: iterationsAt(view, FIELD.digestIterations, 'mk-digest-iterations', place),
    uuid: textAt(bytes, FIELD.uuid, UUID_BYTES),
    slots: Array.from({ length: KEY_SLOTS }, (_, i) => parseSlot(bytes, i, place)),
  };
  const active = header.slots.filter((slot) => slot.active);
  for (const slot of active) checkMaterial(slot, header, place);
  const work = active.reduce((sum, s) => sum + s.iterations + header.digestIterations, 0);
  if (work > MAX_WORK) {
    const message = `trying a key on its ${active.length} LUKS key slots would take ${work} iterations, more than ${MAX_WORK}`;
    throw invalidImage(message, at(place, FIELD.slots));
  }
  return header;
};

/** `aes` with 16, 24 or 32 bytes a key, in the modes `cbc` and `xts`. */
const parseCipher = (bytes: Uint8Array, place: LuksPlace): Omit<CipherSpec, 'key'> => {
  const name = textAt(bytes, FIELD.cipherName, NAME_BYTES);
  const modeText = textAt(bytes, FIELD.cipherMode, NAME_BYTES);
  const keyBytes = viewOf(bytes).getUint32(FIELD.keyBytes);
  const whole = `${name}-${modeText}`;
  const { mode, iv, ivHash } =
    /^(?<mode>[a-z0-9]+)-(?<iv>[a-z0-9]+)(?::(?<ivHash>[a-z0-9]+))?$/.exec(modeText)?.groups ?? {
      mode: modeText,
    };
  if (name !== 'aes') throw unsupported(`the cipher ${whole}`, place);
  if (mode !== 'cbc' && mode !== 'xts') throw unsupported(`the cipher mode ${whole}`, place);
  if (iv !== 'plain' && iv !== 'plain64' && iv !== 'essiv')
    throw unsupported(`the cipher mode ${whole}`, place);
  const keyBits = (keyBytes / (mode === 'xts' ? 2 : 1)) * 8;
  if (keyBits !== 128 && keyBits !== 192 && keyBits !== 256) {
    const message = `LUKS field key-bytes is ${keyBytes}, which ${whole} does not have`;
    throw invalidImage(message, at(place, FIELD.keyBytes));
  }
  if (iv !== 'essiv') return { keyBits, mode, iv, ivHash: null };
  const hash = hashNamed(ivHash ?? '', place);
  // Its digest is the key of a cipher.
  if (!essivFits(hash)) throw unsupported(`the cipher mode ${whole}`, place);
  return { keyBits, mode, iv, ivHash: hash };
};

/** Whether a hash's digest is an AES key. */
export const essivFits = (hash: string): boolean =>
  isHash(hash) && getCiphers().includes(`aes-${digestBytes(hash) * 8}-ecb`);

/** Whether a hash is handled. */
export const isHash = (name: string): boolean => HASHES.has(name);

const hashNamed = (name: string, place: LuksPlace): string => {
  if (isHash(name)) return name;
  throw unsupported(name === '' ? 'a cipher without a hash' : `the hash ${name}`, place);
};

const parseSlot = (bytes: Uint8Array, index: number, place: LuksPlace): KeySlot => {
  const start = FIELD.slots + index * SLOT_BYTES;
  const view = viewOf(bytes);
  const state = view.getUint32(start + SLOT.active);
  if (state !== ACTIVE && state !== INACTIVE) {
    const message = `LUKS key slot ${index} is neither active nor inactive (0x${state.toString(16)})`;
    throw invalidImage(message, at(place, start));
  }
  const active = state === ACTIVE;
  const name = `iterations of key slot ${index}`;
  return {
    index,
    active,
    iterations: active ? iterationsAt(view, start + SLOT.iterations, name, place) : 0,
    salt: bytes.slice(start + SLOT.salt, start + SLOT.salt + SALT_BYTES),
    keyOffset: view.getUint32(start + SLOT.keySector) * CRYPT_SECTOR_BYTES,
    stripes: view.getUint32(start + SLOT.stripes),
  };
};

const checkMaterial = (slot: KeySlot, header: LuksHeader, place: LuksPlace): void => {
  const start = FIELD.slots + slot.index * SLOT_BYTES;
  if (slot.stripes !== STRIPES) {
    const message = `LUKS key slot ${slot.index} has ${slot.stripes} stripes, not ${STRIPES}`;
    throw invalidImage(message, at(place, start + SLOT.stripes));
  }
  const end = slot.keyOffset + materialBytes(header);
  if (slot.keyOffset < LUKS_HEADER_BYTES || end > place.lengthBytes) {
    const message = `the key material of LUKS key slot ${slot.index}, from ${slot.keyOffset} to ${end}, does not lie in its header of ${place.lengthBytes} bytes`;
    throw invalidImage(message, at(place, start + SLOT.keySector));
  }
};

const iterationsAt = (view: DataView, field: number, name: string, place: LuksPlace): number => {
  const iterations = view.getUint32(field);
  if (iterations >= 1 && iterations <= MAX_ITERATIONS) return iterations;
  const message = `LUKS field ${name} is ${iterations}, not 1 to ${MAX_ITERATIONS}`;
  throw invalidImage(message, at(place, field));
};

const textAt = (bytes: Uint8Array, start: number, length: number): string => {
  const field = bytes.subarray(start, start + length);
  const end = field.indexOf(0);
  return Buffer.from(field.subarray(0, end < 0 ? length : end)).toString('latin1');
};

const at = (place: LuksPlace, field: number) => ({
  path: place.path,
  offset: place.offset + field,
});

const unsupported = (what: string, { path }: LuksPlace): BlockError =>
  new BlockError({
    kind: 'unsupported',
    message: `is encrypted with ${what}, which is not supported`,
    path,
    op: 'open',
  });

/** As it stands on disk; the key material is beside it. */
export const encodeLuksHeader = (header: LuksHeader): Uint8Array => {
  const bytes = new Uint8Array(LUKS_HEADER_BYTES);
  const view = viewOf(bytes);
  const { mode, iv, ivHash } = header.cipher;
  const text = (field: number, value: string): void =>
    bytes.set(Buffer.from(value, 'latin1'), field);
  bytes.set(MAGIC);
  view.setUint16(FIELD.version, 1);
  text(FIELD.cipherName, 'aes');
  text(FIELD.cipherMode, `${mode}-${iv}${ivHash === null ? '' : `:${ivHash}`}`);
  text(FIELD.hash, header.hash);
  view.setUint32(FIELD.payloadSector, header.payloadOffset / CRYPT_SECTOR_BYTES);
  view.setUint32(FIELD.keyBytes, keyBytesOf(header.cipher));
  bytes.set(header.digest, FIELD.digest);
  bytes.set(header.digestSalt, FIELD.digestSalt);
  view.setUint32(FIELD.digestIterations, header.digestIterations);
  text(FIELD.uuid, header.uuid);
  for (const slot of header.slots) {
    const start = FIELD.slots + slot.index * SLOT_BYTES;
    view.setUint32(start + SLOT.active, slot.active ? ACTIVE : INACTIVE);
    view.setUint32(start + SLOT.iterations, slot.iterations);
    bytes.set(slot.salt, start + SLOT.salt);
    view.setUint32(start + SLOT.keySector, slot.keyOffset / CRYPT_SECTOR_BYTES);
    view.setUint32(start + SLOT.stripes, slot.stripes);
  }
  return bytes;
};
