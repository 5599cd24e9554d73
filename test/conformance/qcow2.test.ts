import { writeFile } from 'node:fs/promises';
import { qcow2 } from '../../drivers/qcow2/index.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { conformance } from './suite.ts';

const options = (label: string, o: string) => ({
  label,
  make: async (path: string, bytes: number): Promise<void> => {
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', o, path, String(bytes)]);
  },
});

const overBacking = (label: string, o: string, backingBytes: (bytes: number) => number) => ({
  label,
  make: async (path: string, bytes: number): Promise<void> => {
    const base = `${path}.base`;
    await writeFile(base, new Uint8Array(backingBytes(bytes)).fill(0x42));
    const args = [
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      o,
      '-b',
      base,
      '-F',
      'raw',
      path,
      String(bytes),
    ];
    await qemuImg(args);
  },
});

const withSnapshot = (label: string, o: string) => ({
  label,
  make: async (path: string, bytes: number): Promise<void> => {
    const source = `${path}.source`;
    await writeFile(source, new Uint8Array(bytes).fill(0x21));
    await qemuImg(['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', o, source, path]);
    await qemuIo(path, ['write -P 0x99 100k 64k'], ['-f', 'qcow2']);
    await qemuImg(['snapshot', '-c', 'one', path]);
  },
});

const withDataFile = (label: string, o: string, isOverlay = false) => ({
  label,
  make: async (path: string, bytes: number): Promise<void> => {
    const base = `${path}.base`;
    if (isOverlay) await writeFile(base, new Uint8Array(bytes * 2).fill(0x42));
    const backing = isOverlay ? ['-b', base, '-F', 'raw'] : [];
    const args = ['create', '-q', '-f', 'qcow2', '-o', `data_file=${path}.data${o}`];
    await qemuImg([...args, ...backing, path, String(bytes)]);
  },
});

const packedWithZstd = {
  label: 'packed with zstd',
  make: async (path: string, bytes: number): Promise<void> => {
    const source = `${path}.source`;
    await writeFile(source, new Uint8Array(bytes).fill(0x21));
    const o = 'compression_type=zstd';
    await qemuImg(['convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', o, source, path]);
  },
};

conformance({
  descriptor: qcow2,
  variants: [
    options('with 64 KiB clusters', 'cluster_size=64k'),
    options('with 512 byte clusters and refcounts of one bit', 'cluster_size=512,refcount_bits=1'),
    options('version 2', 'compat=0.10'),
    options('with lazy refcounts', 'lazy_refcounts=on'),
    options('with 2 MiB clusters and refcounts of 64 bits', 'cluster_size=2M,refcount_bits=64'),
    packedWithZstd,
    withDataFile('with an external data file', ''),
    withDataFile('with a raw external data file', ',data_file_raw=on'),
    withDataFile('with an external data file, over a backing image', ',cluster_size=4k', true),
    options('with preallocated metadata', 'preallocation=metadata,cluster_size=4k'),
    options('with subclusters of 2 KiB', 'extended_l2=on,cluster_size=64k'),
    options('with subclusters of 512 bytes', 'extended_l2=on,cluster_size=16k'),
    options('with preallocated subclusters', 'extended_l2=on,preallocation=metadata'),
    overBacking(
      'with subclusters of 2 KiB over a shorter backing image',
      'extended_l2=on,cluster_size=64k',
      (bytes) => bytes - 100_000,
    ),
    overBacking(
      'with subclusters of 512 bytes over a longer backing image',
      'extended_l2=on,cluster_size=16k',
      (bytes) => bytes * 2,
    ),
    overBacking('over a shorter backing image', 'cluster_size=64k', (bytes) => bytes - 100_000),
    overBacking('over a longer backing image', 'cluster_size=4k', (bytes) => bytes * 2),
    overBacking('version 2 over a backing image', 'compat=0.10,cluster_size=4k', (bytes) => bytes),
  ],
  verify: async (path) => {
    await qemuImg(['check', '-q', '-f', 'qcow2', path]);
  },
});

// Shrinking is refused below a snapshot by QEMU; the rest holds for such an image too.
conformance({
  descriptor: { ...qcow2, capabilities: { ...qcow2.capabilities, shrink: false } },
  variants: [
    withSnapshot('with a snapshot and compressed clusters', 'cluster_size=4k'),
    withSnapshot(
      'with subclusters, a snapshot and compressed clusters',
      'extended_l2=on,cluster_size=16k',
    ),
  ],
  verify: async (path) => {
    await qemuImg(['check', '-q', '-f', 'qcow2', path]);
  },
});
