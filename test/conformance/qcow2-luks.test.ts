/** The suite of all drivers over encrypted images; QEMU checks each finished one, and shows the same content. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { qcow2 } from '../../drivers/qcow2/index.ts';
import { guestOffset } from '../../src/base/units.ts';
import {
  keyOf,
  type LuksRecipe,
  makeLuksImage,
  qemuDecrypt,
  qemuKeyOptions,
  writeKey,
} from '../support/encrypted.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { testGraph } from '../support/test-graph.ts';
import { conformance } from './suite.ts';

/** Stretching and splitting a key take time: each kind of image is made once, and copied. */
const encrypted = (label: string, options: LuksRecipe['options'] = {}) => {
  let template: Buffer | null = null;
  const make = async (path: string, bytes: number): Promise<void> => {
    await writeKey(dirname(path));
    if (template === null) {
      await makeLuksImage(path, { bytes, options });
      template = await readFile(path);
    } else await writeFile(path, template);
  };
  return { label, make };
};

const overBacking = {
  label: 'version 2, encrypted, over a longer backing image',
  make: async (path: string, bytes: number): Promise<void> => {
    await writeFile(`${path}.base`, new Uint8Array(bytes + 100_000).fill(0x42));
    const backing = { filename: `${path}.base`, format: 'raw' };
    await makeLuksImage(path, { bytes, options: { compat: '0.10' }, backing });
  },
};

conformance({
  // Packed clusters are not encrypted, so they are not written.
  descriptor: { ...qcow2, capabilities: { ...qcow2.capabilities, compressedWrite: false } },
  secrets: (directory) => [keyOf(directory)],
  variants: [
    encrypted('encrypted, with 64 KiB clusters'),
    encrypted('encrypted by aes-128-cbc-essiv, with 512 byte clusters', {
      cluster_size: '512',
      'encrypt.cipher-alg': 'aes-128',
      'encrypt.cipher-mode': 'cbc',
      'encrypt.ivgen-alg': 'essiv',
    }),
    encrypted('encrypted, with extended L2 entries', {
      extended_l2: 'on',
      cluster_size: '16384',
    }),
    overBacking,
  ],
  verify: async (path) => {
    await Promise.all([
      qemuImg(['check', '-q', ...qemuKeyOptions(path)]),
      qemuDecrypt(path, `${path}.decrypted`),
    ]);
    const theirs = await readFile(`${path}.decrypted`);
    const directory = dirname(path);
    const graph = await testGraph({ directory, secrets: [keyOf(directory)] });
    const node = await graph.open({ path, format: 'qcow2', readOnly: true });
    const ours = Buffer.alloc(node.lengthBytes);
    await node.read(guestOffset(0), ours);
    await graph.close(node);
    assert.ok(ours.equals(theirs), 'QEMU shows the same content');
  },
});
