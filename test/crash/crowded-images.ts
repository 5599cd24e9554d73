/** The images of concurrent-crash.test.ts: how each is made, and what others than our drivers say of it. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { guestOf, readAddCow, writeAddCow } from '../support/add-cow-file.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';

/** Where the guest's bytes lie; the last two in an image file beside the add-cow image. */
type Layout = 'qcow2' | 'data file' | 'raw data file' | 'add-cow, raw' | 'add-cow, qcow2';

export interface Case {
  readonly name: string;
  readonly layout: Layout;
  /** Of QEMU's qcow2. */
  readonly options: string;
  readonly clusterBytes: number;
  readonly sizeBytes: number;
  /** One of QEMU's is in the image. */
  readonly snapshot?: boolean;
  readonly packs?: boolean;
  /** Filled by QEMU before, so that the refcount table has to grow. */
  readonly filledBytes?: number;
}

export const CASES: readonly Case[] = [
  {
    name: 'small clusters',
    layout: 'qcow2',
    options: 'cluster_size=512',
    clusterBytes: 512,
    sizeBytes: 160 << 10,
  },
  {
    name: 'a refcount table that grows',
    layout: 'qcow2',
    options: 'cluster_size=512,refcount_bits=64',
    clusterBytes: 512,
    sizeBytes: 2600 << 10,
    filledBytes: 1985 << 10,
  },
  {
    name: 'a snapshot in the image',
    layout: 'qcow2',
    options: 'cluster_size=4k',
    clusterBytes: 4096,
    sizeBytes: 512 << 10,
    snapshot: true,
  },
  {
    name: 'packed clusters',
    layout: 'qcow2',
    options: 'cluster_size=4k',
    clusterBytes: 4096,
    sizeBytes: 400 << 10,
    snapshot: true,
    packs: true,
  },
  {
    name: 'version 2',
    layout: 'qcow2',
    options: 'cluster_size=1k,compat=0.10',
    clusterBytes: 1024,
    sizeBytes: 128 << 10,
  },
  {
    name: 'subclusters',
    layout: 'qcow2',
    options: 'extended_l2=on,cluster_size=16k',
    clusterBytes: 16_384,
    sizeBytes: 800 << 10,
    snapshot: true,
  },
  {
    name: 'an external data file',
    layout: 'data file',
    options: 'cluster_size=1k',
    clusterBytes: 1024,
    sizeBytes: 160 << 10,
  },
  {
    name: 'subclusters in an external data file',
    layout: 'data file',
    options: 'extended_l2=on,cluster_size=16k',
    clusterBytes: 16_384,
    sizeBytes: 800 << 10,
  },
  {
    name: 'an external data file that is raw',
    layout: 'raw data file',
    options: 'cluster_size=4k,data_file_raw=on',
    clusterBytes: 4096,
    sizeBytes: 400 << 10,
  },
  {
    name: 'add-cow',
    layout: 'add-cow, raw',
    options: '',
    clusterBytes: 4096,
    sizeBytes: (400 << 10) + 100,
  },
  {
    name: 'add-cow, whose image file is qcow2',
    layout: 'add-cow, qcow2',
    options: 'cluster_size=1k',
    clusterBytes: 4096,
    sizeBytes: 400 << 10,
  },
];

const FILES = {
  qcow2: ['disk.qcow2'],
  'data file': ['disk.qcow2', 'disk.data'],
  'raw data file': ['disk.qcow2', 'disk.data'],
  'add-cow, raw': ['disk.add-cow', 'disk.raw'],
  'add-cow, qcow2': ['disk.add-cow', 'disk.qcow2'],
} as const satisfies Record<Layout, readonly string[]>;

/** All of the image's own, the first of which is opened. */
export const filesOf = (directory: string, { layout }: Case): readonly string[] =>
  FILES[layout].map((name) => join(directory, name));

const isAddCow = ({ layout }: Case): boolean => layout.startsWith('add-cow');

/** As `Graph.open` takes it: add-cow images are known by their header alone. */
export const formatOf = (c: Case): string | null => (isAddCow(c) ? null : 'qcow2');

/** What a guest reads of it. All but a raw data file are over a backing file that is shorter than the image. */
export const makeImage = async (directory: string, c: Case): Promise<Uint8Array> => {
  const content = new Uint8Array(c.sizeBytes);
  if (c.layout !== 'raw data file') {
    const base = new Uint8Array(c.sizeBytes - 1000).map((_, i) => 1 + (i % 250));
    await writeFile(join(directory, 'base.raw'), base);
    content.set(base);
  }
  if (isAddCow(c)) await makeAddCow(directory, c);
  else await makeQcow2(directory, c, content);
  return content;
};

const makeQcow2 = async (directory: string, c: Case, content: Uint8Array): Promise<void> => {
  const [image = '', data] = filesOf(directory, c);
  const below = ['-b', join(directory, 'base.raw'), '-F', 'raw'];
  const options = data === undefined ? c.options : `${c.options},data_file=${data}`;
  const of = c.layout === 'raw data file' ? [] : below;
  const made = ['-q', '-f', 'qcow2', '-o', options, ...of];
  await qemuImg(['create', ...made, image, String(c.sizeBytes)]);
  const filledBytes = c.filledBytes ?? (c.snapshot === true ? 64 << 10 : 0);
  if (filledBytes > 0) await qemuIo(image, [`write -P 0xee 0 ${filledBytes}`], ['-f', 'qcow2']);
  if (c.snapshot === true) await qemuImg(['snapshot', '-c', 'before', image]);
  content.fill(0xee, 0, filledBytes);
};

const makeAddCow = async (directory: string, c: Case): Promise<void> => {
  const { clusterBytes, sizeBytes, layout, options } = c;
  const [path = '', image = ''] = filesOf(directory, c);
  const [, name] = FILES[layout];
  const format = layout === 'add-cow, raw' ? 'raw' : 'qcow2';
  // What lies below clear bits is hidden.
  if (format === 'raw') await writeFile(image, new Uint8Array(sizeBytes).fill(0xbb));
  else await qemuImg(['create', '-q', '-f', format, '-o', options, image, String(sizeBytes)]);
  await writeAddCow(path, {
    clusterBytes,
    backing: { name: 'base.raw', format: 'raw' },
    image: { name: String(name), format },
    isAllAllocated: false,
    bits: new Array<boolean>(Math.ceil(sizeBytes / clusterBytes)).fill(false),
  });
};

/** Leaks are allowed. */
export const assertSound = async (directory: string, c: Case, what: string): Promise<void> => {
  try {
    if (isAddCow(c)) await readAddCow(filesOf(directory, c)[0] ?? '', c.sizeBytes);
    for (const path of filesOf(directory, c))
      if (path.endsWith('.qcow2')) await qemuImg(['check', '-q', '-f', 'qcow2', path], [0, 3]);
  } catch (error) {
    throw new Error(`${what}: ${String(error)}`, { cause: error });
  }
};

/** `found`: what our driver reads. Others see the same in the files, where they may look into them. */
export const assertShown = async (
  directory: string,
  c: Case,
  found: Uint8Array,
  what: string,
): Promise<void> => {
  const [path = '', beside = ''] = filesOf(directory, c);
  const shown = new Uint8Array(c.sizeBytes);
  if (c.layout === 'add-cow, raw') {
    const base = new Uint8Array(c.sizeBytes);
    base.set(await readFile(join(directory, 'base.raw')));
    const image = new Uint8Array(await readFile(beside));
    shown.set(guestOf(await readAddCow(path, c.sizeBytes), image, base));
  } else if (c.layout === 'raw data file') shown.set(await readFile(beside));
  else return;
  assert.equal(Buffer.compare(shown, found), 0, `${what}: the files show the same`);
};
