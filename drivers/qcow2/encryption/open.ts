/** What an image's header says of its encryption (specification: "Full disk encryption header pointer"), and its cipher. */
import { BlockError, invalidImage } from '../../../src/base/block-error.ts';
import { readU64BE, viewOf } from '../../../src/base/byte-order.ts';
import { isAligned } from '../../../src/base/range.ts';
import { guestOffset } from '../../../src/base/units.ts';
import type { OpenRequest } from '../../../src/block/driver.ts';
import type { Node } from '../../../src/block/node.ts';
import type { Secret } from '../../../src/block/secrets.ts';
import type { Qcow2Header } from '../header.ts';
import { EncryptedData, type HostData, PlainData } from '../host-data.ts';
import { CRYPT_METHOD, EXTENSION } from '../layout.ts';
import { PooledCipher } from './cipher-pool.ts';
import { LUKS_HEADER_BYTES, type LuksHeader, parseLuksHeader } from './luks-header.ts';
import { openLuks } from './luks-key.ts';
import type { CipherSpec } from './sector-cipher.ts';

/** Where the encryption header lies in the image file, in bytes. */
export interface EncryptionHeaderPlace {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Of our own making or QEMU's it takes 2 MiB; more is not walked through. */
const MAX_HEADER_BYTES = 32 << 20;
const POINTER_BYTES = 16;

/** Null for an image without one. Errors: kind invalid-image for one that does not lie in the file. */
export const encryptionHeaderPlace = (
  header: Qcow2Header,
  fileBytes: number,
  path: string,
): EncryptionHeaderPlace | null => {
  if (header.cryptMethod !== CRYPT_METHOD.luks) return null;
  const bad = (what: string): BlockError =>
    invalidImage(`header extension 0x${EXTENSION.encryption.toString(16)} ${what}`, { path });
  const content = header.extensions.find((e) => e.type === EXTENSION.encryption)?.content;
  if (content === undefined) throw bad('is missing, which tells where the LUKS header is');
  if (content.length !== POINTER_BYTES) throw bad(`has ${content.length} bytes, not 16`);
  const view = viewOf(content);
  const [offset, lengthBytes] = [readU64BE(view, 0), readU64BE(view, 8)];
  const place = `names an encryption header at ${offset} of ${lengthBytes} bytes`;
  if (!isAligned(offset, header.clusterBytes))
    throw bad(`${place}: that is no multiple of the cluster size`);
  if (offset < header.clusterBytes) throw bad(`${place}: that is inside the qcow2 header`);
  // Not the other way round: NaN, which stands for more than 2^53, fails every comparison.
  if (!(lengthBytes >= LUKS_HEADER_BYTES && lengthBytes <= MAX_HEADER_BYTES))
    throw bad(`${place}: that is not ${LUKS_HEADER_BYTES} to ${MAX_HEADER_BYTES} bytes`);
  if (!(offset + lengthBytes <= fileBytes))
    throw bad(`${place}: that reaches past the end of the file (${fileBytes} bytes)`);
  return { offset, lengthBytes };
};

/** Reads the LUKS header; no key is needed. Null for an image without one. Errors: as `parseLuksHeader`. */
export const readLuks = async (
  header: Qcow2Header,
  file: Node,
  path: string,
): Promise<{ readonly luks: LuksHeader; readonly place: EncryptionHeaderPlace } | null> => {
  const place = encryptionHeaderPlace(header, file.lengthBytes, path);
  if (place === null) return null;
  const bytes = new Uint8Array(LUKS_HEADER_BYTES);
  await file.readClipped(guestOffset(place.offset), bytes);
  return { luks: parseLuksHeader(bytes, { path, ...place }), place };
};

/**
 * How the image's data is read and written, in `clusterFile`. Errors: EACCES naming the secrets for an encrypted image that none of them
 * opens, or for which there is none; unsupported for ciphers.
 */
export const openData = async (
  request: OpenRequest,
  header: Qcow2Header,
  clusterFile: Node,
): Promise<HostData> => {
  const { file, path, secrets } = request;
  if (header.cryptMethod === CRYPT_METHOD.none) return new PlainData(clusterFile);
  const found = await readLuks(header, file, path);
  // Who asks for mapping alone never reads: what they would get is never looked at.
  if (secrets === null) return new LockedData(path);
  const keys = await secrets();
  if (keys.length === 0) throw noKey(path);
  if (found === null) {
    const [secret] = keys;
    if (secret === undefined) throw noKey(path);
    return new EncryptedData(clusterFile, new PooledCipher(aesSpec(secret)), 'guest');
  }
  const { luks, place } = found;
  const read = async (offset: number, lengthBytes: number) => {
    const bytes = new Uint8Array(lengthBytes);
    await file.readClipped(guestOffset(place.offset + offset), bytes);
    return bytes;
  };
  for (const secret of keys) {
    const key = await openLuks(luks, secret, read);
    if (key === null) continue;
    return new EncryptedData(clusterFile, new PooledCipher({ ...luks.cipher, key }), 'host');
  }
  const names = keys.map(({ id }) => `'${id}'`).join(', ');
  throw new BlockError({
    kind: 'not-permitted',
    message: `is encrypted, and ${keys.length === 1 ? 'the key of secret' : 'none of the keys of secrets'} ${names} ${keys.length === 1 ? 'does not open it' : 'opens it'}`,
    path,
    op: 'open',
  });
};

const noKey = (path: string): BlockError =>
  new BlockError({
    kind: 'not-permitted',
    message: 'is encrypted, and no key was given for it',
    hint: 'give it with --secret id=ID,file=FILE',
    path,
    op: 'open',
  });

const AES_KEY_BYTES = 16;

/** The old encryption: the passphrase itself, cut or filled up with zeros. It has no way to tell a wrong one. */
const aesSpec = ({ bytes }: Secret): CipherSpec => {
  const key = new Uint8Array(AES_KEY_BYTES);
  key.set(bytes.subarray(0, AES_KEY_BYTES));
  return { keyBits: 128, mode: 'cbc', iv: 'plain64', ivHash: null, key };
};

/** Encrypted data without a key: it is there, and cannot be read. */
class LockedData implements HostData {
  readonly isEncrypted = true;
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  async read(): Promise<void> {
    throw noKey(this.#path);
  }

  async write(): Promise<void> {
    throw noKey(this.#path);
  }

  close(): void {}
}
