import { stat, truncate, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { addCow } from '../../drivers/add-cow/index.ts';
import { readAddCow, writeAddCow } from '../support/add-cow-file.ts';
import { qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { conformance, type Subject } from './suite.ts';

interface Shape {
  readonly clusterBytes: number;
  /** Null: none. */
  readonly backingBytes: ((bytes: number) => number) | null;
  /** What a new image file holds, which nobody may see; null: a hole. */
  readonly rest?: number;
  readonly imageFormat?: 'raw' | 'qcow2';
}

const makeImage = async (path: string, bytes: number, shape: Shape): Promise<void> => {
  const { rest, imageFormat = 'raw' } = shape;
  if (imageFormat === 'qcow2') await qemuImg(['create', '-q', '-f', 'qcow2', path, String(bytes)]);
  else if (rest !== undefined) await writeFile(path, new Uint8Array(bytes).fill(rest));
  else {
    await writeFile(path, '');
    await truncate(path, bytes);
  }
};

const variant = (label: string, shape: Shape): Subject['variants'][number] => ({
  label,
  make: async (path, bytes) => {
    const { clusterBytes, backingBytes, imageFormat = 'raw' } = shape;
    const name = basename(path);
    await makeImage(`${path}.image`, bytes, shape);
    if (backingBytes !== null)
      await writeFile(`${path}.base`, new Uint8Array(backingBytes(bytes)).fill(0x42));
    await writeAddCow(path, {
      clusterBytes,
      backing: backingBytes === null ? null : { name: `${name}.base`, format: 'raw' },
      image: { name: `${name}.image`, format: imageFormat },
      isAllAllocated: false,
      bits: new Array<boolean>(Math.ceil(bytes / clusterBytes)).fill(false),
    });
  },
});

const verify = async (path: string): Promise<void> => {
  const image = `${path}.image`;
  const info = (await qemuImgJson('info', [image])) as { format: string; 'virtual-size': number };
  if (info.format === 'qcow2') await qemuImg(['check', '-q', '-f', 'qcow2', image]);
  const bytes = info.format === 'qcow2' ? info['virtual-size'] : (await stat(image)).size;
  await readAddCow(path, bytes);
};

conformance({
  descriptor: addCow,
  variants: [
    variant('without a backing file', { clusterBytes: 65_536, backingBytes: null, rest: 0x99 }),
    variant('over a longer backing file, with 4 KiB clusters and old bytes in the image file', {
      clusterBytes: 4096,
      backingBytes: (bytes) => bytes * 2,
      rest: 0x99,
    }),
    variant('over a shorter backing file, with clusters of 512 bytes', {
      clusterBytes: 512,
      backingBytes: (bytes) => bytes - 100_001,
    }),
    variant('with a qcow2 image file', {
      clusterBytes: 4096,
      backingBytes: (bytes) => bytes * 2,
      imageFormat: 'qcow2',
    }),
  ],
  verify,
});
