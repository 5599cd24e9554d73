/** What `qemu-img info` says of an image's encryption. */
import type { Node } from '../../../src/block/node.ts';
import type { Qcow2Header } from '../header.ts';
import type { KeySlot, LuksHeader } from './luks-header.ts';
import { readLuks } from './open.ts';

/** Of an encrypted image; no key is needed. Errors: as `readLuks`. */
export const inspectEncryption = async (
  header: Qcow2Header,
  file: Node,
  path: string,
): Promise<Record<string, unknown>> =>
  describeEncryption((await readLuks(header, file, path))?.luks ?? null);

/** Null: the old AES encryption. */
const describeEncryption = (luks: LuksHeader | null): Record<string, unknown> => {
  if (luks === null) return { format: 'aes' };
  const { cipher, hash, uuid, slots, payloadOffset, digestIterations } = luks;
  return {
    'ivgen-alg': cipher.iv,
    'hash-alg': hash,
    'cipher-alg': `aes-${cipher.keyBits}`,
    uuid,
    ...(cipher.ivHash === null ? {} : { 'ivgen-hash-alg': cipher.ivHash }),
    format: 'luks',
    'cipher-mode': cipher.mode,
    slots: slots.map(describeSlot),
    'payload-offset': payloadOffset,
    'master-key-iters': digestIterations,
  };
};

const describeSlot = ({ active, iterations, keyOffset, stripes }: KeySlot) =>
  active
    ? { active, iters: iterations, 'key-offset': keyOffset, stripes }
    : { active, 'key-offset': keyOffset };
