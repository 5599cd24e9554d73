/**
 * What becomes of a request that is in flight when the engine is killed, each kind by itself: taken up and nothing done, or done
 * and not answered. The program that made it sees neither an error nor anything but its result.
 */
import assert from 'node:assert/strict';
import { stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { OPCODE } from '../../mount/kernel/abi.ts';
import { extendedAttribute } from '../../src/os/mounts.ts';
import { tool } from '../support/file-tools.ts';
import { type Mounted, mountImages } from '../support/mounted.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Place, placeOf, KERNEL as subject } from './suite/subject.ts';

const DIE_IN_REQUEST = fileURLToPath(new URL('../support/die-in-request.js', import.meta.url));
const KIB = 1 << 10;
const MIB = 1 << 20;
const SIZE = 16 * MIB;
const OLD = 0x11;
const NEW = 0x22;
const PATIENCE_MS = 60_000;

interface Case {
  readonly name: string;
  readonly opcode: number;
  /** What the program does; it fails when it sees an error. */
  readonly run: (path: string, newBytes: string, turn: number) => Promise<unknown>;
  /** qemu-io commands that hold afterwards, without a lock, while the mount has the image: what is in the image file. */
  readonly inImage?: readonly string[];
  /** And when it is closed. */
  readonly afterwards: readonly string[];
  readonly sizeBytes?: number;
}

const dd = (...args: string[]): Promise<string> => tool('dd', args, PATIENCE_MS);
const fallocate = (...args: string[]): Promise<string> => tool('fallocate', args, PATIENCE_MS);
const byteAt = async (path: string, ...flags: string[]): Promise<number> => {
  const line = `dd if=${path} bs=4k count=1 status=none ${flags.join(' ')} | od -An -tu1 -N1`;
  return Number((await tool('sh', ['-c', line], PATIENCE_MS)).trim());
};

const CASES: readonly Case[] = [
  {
    name: 'read, direct',
    opcode: OPCODE.READ,
    run: async (path) => assert.equal(await byteAt(path, 'iflag=direct'), OLD),
    afterwards: [`read -P ${OLD} 0 1M`],
  },
  {
    name: 'read into pages',
    opcode: OPCODE.READ,
    // What was read before is not asked for again.
    run: async (path, _, turn) => assert.equal(await byteAt(path, `skip=${turn * 230}`), OLD),
    afterwards: [`read -P ${OLD} 0 1M`],
  },
  {
    name: 'write in place',
    opcode: OPCODE.WRITE,
    run: (path, bytes) =>
      dd(`if=${bytes}`, `of=${path}`, 'bs=64k', 'count=1', 'oflag=direct', 'conv=notrunc'),
    afterwards: [`read -P ${NEW} 0 64k`, `read -P ${OLD} 64k 960k`],
  },
  {
    name: 'write that allocates',
    opcode: OPCODE.WRITE,
    run: (path, bytes) =>
      dd(
        `if=${bytes}`,
        `of=${path}`,
        'bs=4k',
        'count=1',
        'seek=1025',
        'oflag=direct',
        'conv=notrunc',
      ),
    afterwards: ['read -P 0 4M 4k', `read -P ${NEW} 4100k 4k`, 'read -P 0 4104k 56k'],
  },
  {
    name: 'write from pages',
    opcode: OPCODE.WRITE,
    run: (path, bytes) =>
      dd(`if=${bytes}`, `of=${path}`, 'bs=64k', 'count=8', 'seek=32', 'conv=notrunc,fsync'),
    inImage: [`read -P ${NEW} 2M 512k`],
    afterwards: [`read -P ${NEW} 2M 512k`, 'read -P 0 2560k 512k'],
  },
  {
    name: 'write past the end',
    opcode: OPCODE.WRITE,
    run: (path, bytes) =>
      dd(
        `if=${bytes}`,
        `of=${path}`,
        'bs=64k',
        'count=1',
        'seek=256',
        'oflag=direct',
        'conv=notrunc',
      ),
    afterwards: [`read -P ${NEW} 16M 64k`],
    sizeBytes: SIZE + 64 * KIB,
  },
  {
    name: 'fsync',
    opcode: OPCODE.FSYNC,
    run: (path, bytes) =>
      dd(`if=${bytes}`, `of=${path}`, 'bs=64k', 'count=1', 'seek=48', 'conv=notrunc,fsync'),
    inImage: [`read -P ${NEW} 3M 64k`],
    afterwards: [`read -P ${NEW} 3M 64k`],
  },
  {
    name: 'truncate',
    opcode: OPCODE.SETATTR,
    run: (path) => tool('truncate', ['-s', String(SIZE + 3 * MIB), path], PATIENCE_MS),
    afterwards: ['read -P 0 16M 3M'],
    sizeBytes: SIZE + 3 * MIB,
  },
  {
    name: 'fallocate that punches',
    opcode: OPCODE.FALLOCATE,
    run: (path) => fallocate('-p', '-o', '128k', '-l', '192k', path),
    afterwards: [`read -P ${OLD} 0 128k`, 'read -P 0 128k 192k', `read -P ${OLD} 320k 704k`],
  },
  {
    name: 'fallocate that zeroes',
    opcode: OPCODE.FALLOCATE,
    run: (path) => fallocate('-z', '-o', '100k', '-l', '10k', path),
    afterwards: [`read -P ${OLD} 0 100k`, 'read -P 0 100k 10k', `read -P ${OLD} 110k 914k`],
  },
  {
    name: 'fallocate that allocates, past the end',
    opcode: OPCODE.FALLOCATE,
    run: (path) => fallocate('-o', '15M', '-l', '2M', path),
    afterwards: [`read -P ${OLD} 0 1M`, 'read -P 0 15M 2M'],
    sizeBytes: SIZE + MIB,
  },
];

const mountOn = (place: Place, order: string): Promise<Mounted> =>
  mountImages(place.cleanup, {
    backend: 'kernel',
    sources: [place.images],
    mountpoint: join(place.root, 'mnt'),
    env: { NODE_OPTIONS: `--import ${DIE_IN_REQUEST}`, DIE_IN: order },
  });

const pidOf = (mounted: Mounted): Promise<string | null> =>
  extendedAttribute(mounted.mountpoint, 'user.vdiskfs.pid');

/** One after the other in one mount: a third death in short order would make the next engine a careful one. */
const MOMENTS = ['done', 'taken'] as const;

const dieIn = async (t: TestContext, c: Case): Promise<void> => {
  const place = await placeOf(t, subject);
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, String(SIZE)]);
  await qemuIo(image, [`write -P ${OLD} 0 1M`]);
  const newBytes = join(place.root, 'new');
  await writeFile(newBytes, Buffer.alloc(MIB, NEW));
  const order = join(place.root, 'die-in');
  const mounted = await mountOn(place, order);
  const path = mounted.path('disk.raw');
  for (const [turn, moment] of MOMENTS.entries()) {
    const before = await pidOf(mounted);
    await writeFile(order, `${moment} ${c.opcode}`);
    await c.run(path, newBytes, turn);
    assert.notEqual(await pidOf(mounted), before, `an engine has died, ${moment}`);
    assert.equal((await stat(path)).size, c.sizeBytes ?? SIZE);
    if (c.inImage !== undefined) await qemuIo(image, c.inImage, ['-U', '-r']);
  }
  await mounted.unmount();
  await qemuIo(image, c.afterwards);
  await assertClean(image);
};

test('an engine is killed with a request done and not answered, and then one taken up', {
  concurrency: 3,
}, async (t) => {
  await Promise.all(CASES.map((c) => t.test(c.name, (inner) => dieIn(inner, c))));
});
