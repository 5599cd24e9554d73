/** An image that another host has: what is held, what is told, and what comes back with it. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { extendedAttribute } from '../../src/os/mounts.ts';
import { tool } from '../support/file-tools.ts';
import { eventually, type Mounted, mountImages, refusedMount } from '../support/mounted.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';
import { run, vdiskfs } from '../support/vdiskfs.ts';
import { type Place, placeOf, KERNEL as subject } from './suite/subject.ts';

const MIB = 1 << 20;
const SIZE = 16 * MIB;
const PATIENCE_MS = 60_000;
/** Long enough for a request that is not held to be answered. */
const HELD_MS = 300;

interface ViewStatus {
  readonly name: string;
  readonly active: boolean;
  readonly readOnlyReason: string | null;
}
interface Status {
  readonly pid: number;
  readonly generation: number;
  readonly views: readonly ViewStatus[];
}

/** One command, of a connection of its own: engines come and go. */
const ask = async (mounted: Mounted, execute: string, given: object = {}): Promise<unknown> => {
  const socket = await extendedAttribute(mounted.mountpoint, 'user.vdiskfs.socket');
  const connection = await QmpConnection.open(socket ?? '');
  try {
    return await connection.execute(execute, given);
  } finally {
    connection.close();
  }
};

const statusOf = async (mounted: Mounted): Promise<Status> =>
  (await ask(mounted, '__vdiskfs_status')) as Status;

const activityOf = async (mounted: Mounted): Promise<readonly boolean[]> =>
  (await statusOf(mounted)).views.map((v) => v.active);

const setActive = async (
  mounted: Mounted,
  active: boolean,
  options: { readonly force?: boolean; readonly device?: string } = {},
): Promise<void> => {
  const { device = 'disk', ...force } = options;
  await ask(mounted, '__vdiskfs_set_active', { device, active, ...force });
};

const succeeds = async (...args: string[]): Promise<void> => {
  const done = await vdiskfs(args, { timeoutMs: PATIENCE_MS });
  assert.equal(done.status, 0, done.stderr);
};

const fails = async (why: RegExp, ...args: string[]): Promise<void> => {
  const done = await vdiskfs(args, { timeoutMs: PATIENCE_MS });
  assert.equal(done.status, 1, done.stdout);
  assert.match(done.stderr, why);
};

const imageIn = async (place: Place): Promise<string> => {
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, String(SIZE)]);
  await qemuIo(image, ['write -P 0x11 0 1M']);
  return image;
};

/** The first byte at an offset, through the kernel's pages. */
const byteAt = async (path: string, offset: number): Promise<number> => {
  const text = await tool('od', ['-An', '-tu1', `-j${offset}`, '-N1', path]);
  return Number(text.trim());
};

interface Reader {
  readonly child: ChildProcess;
  readonly ended: Promise<string>;
  hasEnded: boolean;
}

/** `od` of one byte, which waits where the view is held. */
const readerOf = (place: Place, path: string, offset: number): Reader => {
  const child = spawn('od', ['-An', '-tu1', `-j${offset}`, '-N1', path]);
  place.cleanup.after(async () => void child.kill('SIGKILL'));
  let out = '';
  child.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString('utf8');
  });
  const reader: Reader = {
    child,
    hasEnded: false,
    ended: new Promise((resolve) =>
      child.once('close', () => {
        reader.hasEnded = true;
        resolve(out.trim());
      }),
    ),
  };
  return reader;
};

test('what QEMU does to an inactive image, its size too, is what the view shows afterwards', async (t) => {
  const place = await placeOf(t, subject);
  const image = await imageIn(place);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  assert.equal(await byteAt(path, 0), 0x11);
  const refused = await run('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', image]);
  assert.match(refused.stderr + refused.stdout, /lock/);
  await succeeds('deactivate', path);
  await succeeds('deactivate', path);
  assert.deepEqual(await activityOf(mounted), [false]);
  assert.equal(await extendedAttribute(path, 'user.vdiskfs.active'), 'false');
  assert.match((await vdiskfs(['status', mounted.mountpoint])).stdout, /disk\.raw .*inactive/);
  assert.equal((await stat(path)).size, SIZE);
  const reader = readerOf(place, path, 0);
  await qemuIo(image, ['write -P 0x22 0 1M']);
  await qemuImg(['resize', '-q', image, String(SIZE + MIB)]);
  await qemuIo(image, [`write -P 0x33 ${SIZE} 64k`]);
  await sleep(HELD_MS);
  assert.equal(reader.hasEnded, false, 'a read waits');
  await succeeds('activate', path);
  await succeeds('activate', path);
  assert.equal(Number(await reader.ended), 0x22);
  assert.equal(await byteAt(path, 0), 0x22);
  assert.equal((await stat(path)).size, SIZE + MIB);
  assert.equal(await byteAt(path, SIZE), 0x33);
  assert.equal(await extendedAttribute(path, 'user.vdiskfs.active'), 'true');
  await tool('dd', ['if=/dev/zero', `of=${path}`, 'bs=64k', 'count=1', 'conv=notrunc,fsync']);
  await mounted.unmount();
  await assertClean(image);
});

test('two hosts never have an image at once, and a refused one stays inactive', async (t) => {
  const place = await placeOf(t, subject);
  await imageIn(place);
  const first = await place.mount();
  const second = await place.mount(['--inactive']);
  assert.deepEqual(await activityOf(second), [false]);
  await fails(/another program/, 'activate', second.path('disk.raw'));
  assert.deepEqual(await activityOf(second), [false]);
  await setActive(first, false);
  await setActive(second, true);
  await assert.rejects(setActive(first, true), /another program/);
  assert.deepEqual([await activityOf(first), await activityOf(second)], [[false], [true]]);
  await fails(/is no view/, 'activate', place.image('disk.qcow2'));
});

/**
 * A program with a file open for writing: `write BYTE OFFSET` (4096 of them), `sync`, `close`. Not this process: starting a
 * program closes its files, and a close waits for pages that are held.
 */
const WRITER = `
const fs = require('node:fs');
const fd = fs.openSync(process.argv[1], 'r+');
require('node:readline').createInterface({ input: process.stdin }).on('line', (line) => {
  const [verb, byte, offset] = line.split(' ');
  try {
    if (verb === 'write') fs.writeSync(fd, Buffer.alloc(4096, Number(byte)), 0, 4096, Number(offset));
    else if (verb === 'sync') fs.fsyncSync(fd);
    else fs.closeSync(fd);
    console.log('done');
  } catch (error) {
    console.log(error.code);
  }
});`;

const writerOf = (place: Place, path: string): ((command: string) => Promise<string>) => {
  const child = spawn(process.execPath, ['-e', WRITER, path], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  place.cleanup.after(async () => void child.kill('SIGKILL'));
  const answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return async (command) => {
    child.stdin.write(`${command}\n`);
    return (await answers.next()).value ?? 'ended';
  };
};

test('a view that is open for writing is not deactivated, unless forced: late writes of pages fail then', async (t) => {
  const place = await placeOf(t, subject);
  const image = await imageIn(place);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  const writer = writerOf(place, path);
  assert.equal(await writer(`write ${0x44} 0`), 'done');
  await assert.rejects(setActive(mounted, false), /open for writing/);
  assert.deepEqual(await activityOf(mounted), [true]);
  await setActive(mounted, false, { force: true });
  await qemuIo(image, ['read -P 0x44 0 4096', 'write -P 0x55 0 8192']);
  // Whole pages: the kernel takes them without asking.
  assert.equal(await writer(`write ${0x66} 0`), 'done');
  const synced = writer('sync');
  await sleep(HELD_MS);
  await setActive(mounted, true);
  assert.equal(await synced, 'EIO');
  assert.equal(await byteAt(path, 0), 0x55, "the other host's bytes are not overwritten");
  assert.equal(await writer(`write ${0x77} 4096`), 'done');
  assert.equal(await writer('sync'), 'done');
  assert.equal(await writer('close'), 'done');
  await mounted.unmount();
  await qemuIo(image, ['read -P 0x55 0 4096', 'read -P 0x77 4096 4096']);
  await assertClean(image);
});

test('inactive stays inactive when the engine dies or is swapped, and so does what is held', async (t) => {
  const place = await placeOf(t, subject);
  const image = await imageIn(place);
  const mounted = await place.mount();
  const path = mounted.path('disk.raw');
  // Answered, in no image yet: it is in the journal when the engine dies.
  await tool('dd', ['if=/dev/zero', `of=${path}`, 'bs=64k', 'count=1', 'conv=notrunc']);
  await tool('dd', [
    'if=/dev/zero',
    `of=${path}`,
    'bs=4k',
    'count=1',
    'seek=1024',
    'oflag=direct',
    'conv=notrunc',
  ]);
  process.kill((await statusOf(mounted)).pid, 'SIGKILL');
  await untilGeneration(mounted, 1);
  await setActive(mounted, false, { force: true });
  await qemuIo(image, ['read -P 0 0 64k', 'read -P 0 4M 4k', 'write -P 0x22 0 1M']);
  const readers = [readerOf(place, path, 0), readerOf(place, path, 8192)];
  await sleep(HELD_MS);
  process.kill((await statusOf(mounted)).pid, 'SIGKILL');
  await untilGeneration(mounted, 2);
  assert.deepEqual(await activityOf(mounted), [false]);
  await succeeds('restart', mounted.mountpoint);
  assert.deepEqual(await activityOf(mounted), [false]);
  await qemuIo(image, ['write -P 0x33 0 1M']);
  assert.deepEqual(
    readers.map((r) => r.hasEnded),
    [false, false],
  );
  readers[0]?.child.kill('SIGKILL');
  await readers[0]?.ended;
  await setActive(mounted, true);
  assert.equal(Number(await readers[1]?.ended), 0x33);
  process.kill((await statusOf(mounted)).pid, 'SIGKILL');
  await untilGeneration(mounted, 4);
  assert.deepEqual(await activityOf(mounted), [true]);
  await mounted.unmount();
  await assertClean(image);
});

const untilGeneration = (mounted: Mounted, generation: number): Promise<void> =>
  eventually(
    `engine ${generation} serves`,
    async () => (await statusOf(mounted).catch(() => null))?.generation === generation,
    PATIENCE_MS,
  );

test('a stream is interrupted and goes on afterwards; the whole mount begins inactive with --inactive', async (t) => {
  const place = await placeOf(t, subject);
  const base = await imageIn(place);
  await qemuImg([
    'create',
    '-q',
    '-f',
    'qcow2',
    '-b',
    base,
    '-F',
    'qcow2',
    place.image('vm.qcow2'),
  ]);
  const mountpoint = join(place.root, 'mnt');
  const mounted = await mountImages(place.cleanup, {
    backend: 'kernel',
    sources: [place.images],
    mountpoint,
    args: ['--state-dir', join(place.root, 'state')],
  });
  const path = mounted.path('vm.raw');
  await ask(mounted, 'block-stream', { device: 'vm', speed: 65_536 });
  const jobs = async (): Promise<readonly { device: string; speed: number }[]> =>
    (await ask(mounted, 'query-block-jobs')) as { device: string; speed: number }[];
  assert.equal((await jobs()).length, 1);
  await setActive(mounted, false, { device: 'vm' });
  assert.deepEqual(await jobs(), []);
  await assert.rejects(ask(mounted, 'block-stream', { device: 'vm' }), /inactive/);
  await fails(/inactive/, 'snapshot', '-c', 'one', path);
  await setActive(mounted, true, { device: 'vm' });
  assert.deepEqual(
    (await jobs()).map(({ device, speed }) => ({ device, speed })),
    [{ device: 'vm', speed: 65_536 }],
  );
  await mounted.unmount();
  const second = await place.mount(['--inactive']);
  const views = (await statusOf(second)).views;
  assert.deepEqual(
    views.map((v) => v.active),
    [false, false],
  );
  await qemuIo(place.image('vm.qcow2'), ['write -P 0x55 2M 64k']);
  await ask(second, 'blockdev-set-active', { active: true });
  assert.equal(await byteAt(second.path('vm.raw'), 2 * MIB), 0x55);
  assert.equal((await readFile(second.path('vm.raw'))).length, SIZE);
  await ask(second, 'blockdev-set-active', { active: false });
  assert.deepEqual(await activityOf(second), [false, false]);
});

test('the backend fuse-native hands nothing over, and status says so', async (t) => {
  const place = await placeOf(t, subject);
  await imageIn(place);
  const request = {
    backend: 'fuse-native' as const,
    sources: [place.images],
    mountpoint: join(place.root, 'native'),
  };
  const refused = await refusedMount({ ...request, args: ['--inactive'] });
  assert.equal(refused.status, 2, refused.stderr);
  assert.match(refused.stderr, /--inactive.*fuse-native|fuse-native.*hands no image over/);
  const mounted = await mountImages(place.cleanup, request);
  await assert.rejects(setActive(mounted, false), /fuse-native hands nothing over/);
  const told = await vdiskfs(['status', mounted.mountpoint]);
  assert.match(told.stdout, /fuse-native \(ends with its engine, hands nothing over\)/);
  await mounted.unmount();
});
