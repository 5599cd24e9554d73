/** One image of every kind that the mount is to read, made by qemu-img, with content that tells clusters apart. */
import { open, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { seededRandom } from '../../../src/base/random.ts';
import { qemuImg, qemuIo } from '../../support/qemu-img.ts';

const MIB = 1 << 20;
/** No multiple of any cluster size, but of a sector. */
const SOURCE_BYTES = 5 * MIB + 1536;

/** Every path in the order of making: what is made later may lie on what was made before. */
export const makeMatrix = async (directory: string, seed: number): Promise<void> => {
  const at = (name: string): string => join(directory, name);
  await makeSource(at('source.raw'), seed);
  await makeFlat(at);
  await makeChains(at);
};

/** Random bytes, zeros that take space, and holes, in runs of many lengths. */
const makeSource = async (path: string, seed: number): Promise<void> => {
  const random = seededRandom(seed);
  const file = await open(path, 'w');
  try {
    for (let offset = 0; offset < SOURCE_BYTES; ) {
      const lengthBytes = Math.min(512 * (1 + random.below(600)), SOURCE_BYTES - offset);
      const kind = random.below(3);
      const bytes = Buffer.alloc(lengthBytes);
      if (kind === 0) random.fill(bytes);
      if (kind !== 2) await file.write(bytes, 0, lengthBytes, offset);
      offset += lengthBytes;
    }
    await file.truncate(SOURCE_BYTES);
  } finally {
    await file.close();
  }
};

type At = (name: string) => string;

const makeFlat = async (at: At): Promise<void> => {
  const convert = (name: string, options: string, ...flags: string[]): Promise<string> =>
    qemuImg(['convert', '-O', 'qcow2', ...flags, '-o', options, at('source.raw'), at(name)]);
  await convert('v2.qcow2', 'compat=0.10');
  for (const size of ['512', '4k', '64k', '2M'])
    await convert(`v3-${size}.qcow2`, `cluster_size=${size}`);
  await convert('v2-512.qcow2', 'compat=0.10,cluster_size=512');
  for (const bits of [1, 2, 4, 8, 32, 64])
    await convert(`rc${bits}.qcow2`, `refcount_bits=${bits}`);
  await convert('compressed.qcow2', 'compat=1.1', '-c');
  await convert('compressed-v2-4k.qcow2', 'compat=0.10,cluster_size=4k', '-c');
  await convert('zstd.qcow2', 'compression_type=zstd', '-c');
  await convert('metadata.qcow2', 'preallocation=metadata');
  await convert('falloc.qcow2', 'preallocation=falloc');
  await convert('zeroed.qcow2', 'compat=1.1');
  await qemuIo(at('zeroed.qcow2'), ['write -z 64k 256k', 'write -z -u 1M 512k', 'discard 2M 256k']);
  await convert('subclusters.qcow2', 'extended_l2=on');
  await qemuIo(at('subclusters.qcow2'), ['write -P 7 100k 3k', 'write -z 1030k 5k']);
  await convert('partly-compressed.qcow2', 'compat=1.1', '-c');
  await qemuIo(at('partly-compressed.qcow2'), ['write -P 0x5a 100k 70k', 'write -z 1M 64k']);
  await qemuImg(['create', '-q', '-f', 'qcow2', at('empty.qcow2'), '3M']);
  await qemuImg(['create', '-q', '-f', 'raw', at('empty.img'), '3M']);
};

const makeChains = async (at: At): Promise<void> => {
  const overlay = async (
    name: string,
    on: { backing: string; format: string; options?: string; size?: string },
  ): Promise<void> => {
    const options = on.options === undefined ? [] : ['-o', on.options];
    const size = on.size === undefined ? [] : [on.size];
    const backing = ['-b', on.backing, '-F', on.format];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...options, ...backing, at(name), ...size]);
    const commands = ['write -P 0xa1 3k 70k', 'write -P 0xa2 1M 100k', 'write -z 2M 64k'];
    await qemuIo(at(name), commands);
  };
  await overlay('on-raw.qcow2', { backing: 'source.raw', format: 'raw' });
  await overlay('on-absolute.qcow2', { backing: at('v3-64k.qcow2'), format: 'qcow2' });
  await overlay('on-small-clusters.qcow2', {
    backing: 'v3-512.qcow2',
    format: 'qcow2',
    options: 'cluster_size=64k',
  });
  await overlay('on-large-clusters.qcow2', {
    backing: 'v3-2M.qcow2',
    format: 'qcow2',
    options: 'cluster_size=4k',
  });
  await overlay('on-subclusters.qcow2', {
    backing: 'subclusters.qcow2',
    format: 'qcow2',
    options: 'extended_l2=on,cluster_size=128k',
  });
  await overlay('on-compressed.qcow2', { backing: 'compressed.qcow2', format: 'qcow2' });
  await overlay('longer.qcow2', { backing: 'v2.qcow2', format: 'qcow2', size: '7M' });
  await overlay('shorter.qcow2', { backing: 'v2.qcow2', format: 'qcow2', size: '3M' });
  await overlay('level2.qcow2', { backing: 'on-raw.qcow2', format: 'qcow2' });
  await overlay('level3.qcow2', {
    backing: 'level2.qcow2',
    format: 'qcow2',
    options: 'compat=0.10',
  });
  await overlay('on-longer.qcow2', { backing: 'longer.qcow2', format: 'qcow2', size: '6M' });
  await overlay('probed.qcow2', { backing: 'rc8.qcow2', format: 'qcow2' });
  await dropBackingFormat(at('probed.qcow2'));
};

const HEADER_BYTES_V3_AT = 100;
const BACKING_FORMAT_EXTENSION = 0xe279_2aca;
/** No type that anybody uses: readers pass over what they do not know. */
const UNKNOWN_EXTENSION = 0x5644_4b46;

/** Takes the declared format of the backing file away, as images from before QEMU 6.1 often are. */
export const dropBackingFormat = async (path: string): Promise<void> => {
  const file = await open(path, 'r+');
  try {
    const head = Buffer.alloc(4096);
    await file.read(head, 0, head.length, 0);
    let at = head.readUInt32BE(HEADER_BYTES_V3_AT);
    while (head.readUInt32BE(at) !== BACKING_FORMAT_EXTENSION) {
      if (head.readUInt32BE(at) === 0) throw new Error(`${path} declares no backing format`);
      at += 8 + Math.ceil(head.readUInt32BE(at + 4) / 8) * 8;
    }
    head.writeUInt32BE(UNKNOWN_EXTENSION, at);
    await file.write(head, at, 4, at);
  } finally {
    await file.close();
  }
};

/** A qcow2 image of this content. */
export const makeQcow2 = async (
  path: string,
  content: { readonly bytes: Uint8Array; readonly options?: string },
): Promise<void> => {
  const raw = `${path}.source`;
  await writeFile(raw, content.bytes);
  await truncate(raw, Math.ceil(content.bytes.length / 512) * 512);
  const options = content.options === undefined ? [] : ['-o', content.options];
  await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', ...options, raw, path]);
  await rm(raw);
};
