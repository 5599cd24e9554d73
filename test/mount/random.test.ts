/**
 * Random operations on a mounted view against a flat file in memory: reads and writes of any alignment, direct ones,
 * mapped ones, punched and zeroed ranges, growth, fsync, and mounting again. Afterwards QEMU finds the image clean and
 * its content identical.
 */
import assert from 'node:assert/strict';
import { constants } from 'node:fs';
import { type FileHandle, open, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { tool } from '../support/file-tools.ts';
import type { Mounted } from '../support/mounted.ts';
import { assertClean, assertSameContent, qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type MountSubject, type Place, placeOf } from './suite/subject.ts';

const DISK_BYTES = 1 << 20;
const GROWTH_BYTES = 64 << 10;
const ALIGNMENT = 4096;

type Operation =
  | {
      readonly kind: 'write' | 'direct' | 'mapped' | 'read' | 'directRead' | 'punch' | 'zero';
      readonly at: number;
      readonly length: number;
      readonly value: number;
    }
  | { readonly kind: 'sync' | 'remount' | 'grow' };

const operation = (canFallocate: boolean): fc.Arbitrary<Operation> => {
  const range = {
    at: fc.nat(DISK_BYTES - 1),
    length: fc.integer({ min: 1, max: 90_000 }),
    value: fc.integer({ min: 1, max: 255 }),
  };
  const ranged = <K extends string>(kind: K) =>
    fc.record({ kind: fc.constant(kind), ...range }, { noNullPrototype: true });
  const plain = <K extends string>(kind: K) =>
    fc.record({ kind: fc.constant(kind) }, { noNullPrototype: true });
  const fallocated = canFallocate ? [ranged('punch'), ranged('zero')] : [];
  return fc.oneof(
    ranged('write'),
    ranged('write'),
    ranged('direct'),
    ranged('mapped'),
    ranged('read'),
    ranged('directRead'),
    ...fallocated,
    plain('sync'),
    plain('remount'),
    plain('grow'),
  );
};

interface Setting {
  readonly place: Place;
  readonly image: string;
  model: Uint8Array;
  mounted: Mounted;
  file: FileHandle;
}

const viewOf = (mounted: Mounted): string => mounted.path('disk.raw');

/** The range inside of the disk, in whole blocks for what needs that. */
const inside = (
  s: Setting,
  at: number,
  length: number,
  alignment: number,
): { at: number; length: number } => {
  const start = at - (at % alignment);
  const end = Math.min(s.model.length, Math.ceil((at + length) / alignment) * alignment);
  return { at: start, length: end - start };
};

/** Buffers for direct I/O: Node's own are not aligned, so a child does it. */
const dd = (args: readonly string[]): Promise<string> => tool('dd', [...args, 'status=none']);

const doOperation = async (s: Setting, op: Operation): Promise<void> => {
  switch (op.kind) {
    case 'sync':
      await s.file.sync();
      return;
    case 'grow': {
      const grown = new Uint8Array(s.model.length + GROWTH_BYTES);
      grown.set(s.model);
      s.model = grown;
      await s.file.truncate(grown.length);
      return;
    }
    case 'remount':
      await s.file.close();
      await s.mounted.unmount();
      await assertClean(s.image);
      s.mounted = await s.place.mount();
      s.file = await open(viewOf(s.mounted), 'r+');
      return;
    default:
      await doRanged(s, op);
  }
};

const doRanged = async (s: Setting, op: Extract<Operation, { at: number }>): Promise<void> => {
  const direct = op.kind === 'direct' || op.kind === 'directRead';
  const { at, length } = inside(s, op.at, op.length, direct ? ALIGNMENT : 1);
  const path = viewOf(s.mounted);
  const blocks = ['bs=4k', `count=${length / ALIGNMENT}`];
  switch (op.kind) {
    case 'write':
      await s.file.write(new Uint8Array(length).fill(op.value), 0, length, at);
      s.model.fill(op.value, at, at + length);
      return;
    case 'direct': {
      const source = join(s.place.root, 'direct');
      await writeFile(source, new Uint8Array(length).fill(op.value));
      await dd([
        `if=${source}`,
        `of=${path}`,
        ...blocks,
        `seek=${at / ALIGNMENT}`,
        'oflag=direct',
        'conv=notrunc',
      ]);
      s.model.fill(op.value, at, at + length);
      return;
    }
    case 'mapped':
      await tool('xfs_io', [
        '-c',
        `mmap 0 ${s.model.length}`,
        '-c',
        `mwrite -S ${op.value} ${at} ${length}`,
        '-c',
        'msync -s',
        path,
      ]);
      s.model.fill(op.value, at, at + length);
      return;
    case 'punch':
    case 'zero':
      await tool('xfs_io', [
        '-c',
        `${op.kind === 'punch' ? 'fpunch' : 'fzero -k'} ${at} ${length}`,
        path,
      ]);
      s.model.fill(0, at, at + length);
      return;
    case 'read': {
      const bytes = new Uint8Array(length);
      assert.equal((await s.file.read(bytes, 0, length, at)).bytesRead, length);
      assert.ok(
        Buffer.compare(bytes, s.model.subarray(at, at + length)) === 0,
        `read of ${length} at ${at}`,
      );
      return;
    }
    case 'directRead': {
      const target = join(s.place.root, 'direct');
      await dd([`if=${path}`, `of=${target}`, ...blocks, `skip=${at / ALIGNMENT}`, 'iflag=direct']);
      const file = await open(target, 'r');
      const bytes = await file.readFile();
      await file.close();
      assert.ok(
        Buffer.compare(bytes, s.model.subarray(at, at + length)) === 0,
        `direct read of ${length} at ${at}`,
      );
    }
  }
};

interface Case {
  readonly backend: MountSubject['backend'];
  readonly options: string;
  readonly backing: number;
  readonly runs: number;
}

const CASES: readonly Case[] = [
  { backend: 'kernel', options: 'cluster_size=512', backing: 0, runs: 1 },
  {
    backend: 'kernel',
    options: 'cluster_size=4k,compat=0.10',
    backing: DISK_BYTES / 2 + 100,
    runs: 1,
  },
  { backend: 'kernel', options: 'cluster_size=64k', backing: DISK_BYTES * 2, runs: 2 },
  { backend: 'fuse-native', options: 'cluster_size=64k', backing: DISK_BYTES, runs: 1 },
];

for (const c of CASES) {
  const over = c.backing === 0 ? 'alone' : `over ${c.backing} bytes`;
  test(`${c.backend}, ${c.options} ${over}: a view behaves as a flat file (seed ${SEED})`, async (t) => {
    const capabilities = {
      fallocate: c.backend === 'kernel',
      seekHoles: true,
      setTimes: true,
      writebackCache: true,
      keepsCache: true,
    };
    const steps = fc.array(operation(capabilities.fallocate), { minLength: 25, maxLength: 40 });
    let run = 0;
    await fc.assert(
      fc.asyncProperty(steps, async (operations) => {
        const place = await placeOf(t, { backend: c.backend, capabilities });
        const image = place.image('disk.qcow2');
        const model = new Uint8Array(DISK_BYTES);
        const link: string[] = [];
        if (c.backing > 0) {
          const base = new Uint8Array(c.backing).map((_, i) => 1 + (i % 253));
          model.set(base.subarray(0, DISK_BYTES));
          await writeFile(place.image('base.raw'), base);
          link.push('-b', 'base.raw', '-F', 'raw');
        }
        await qemuImg([
          'create',
          '-q',
          '-f',
          'qcow2',
          '-o',
          c.options,
          ...link,
          image,
          String(DISK_BYTES),
        ]);
        const mounted = await place.mount();
        const s: Setting = {
          place,
          image,
          model,
          mounted,
          file: await open(viewOf(mounted), constants.O_RDWR),
        };
        try {
          for (const op of operations) await doOperation(s, op);
        } finally {
          await s.file.close();
        }
        await s.mounted.unmount();
        await assertClean(image);
        const flat = join(place.root, `model${run++}.raw`);
        await writeFile(flat, s.model);
        await assertSameContent(image, flat);
      }),
      { seed: SEED, numRuns: countOf(c.runs), endOnFailure: true },
    );
  });
}
