/** Internal snapshots of an image that is mounted: their views, and making, applying and deleting them while it is used. */
import assert from 'node:assert/strict';
import { open, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { sha256, tool } from '../support/file-tools.ts';
import { eventually, type Mounted } from '../support/mounted.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const MIB = 1 << 20;

const snapshot = async (mounted: Mounted, ...args: string[]): Promise<void> => {
  const done = await vdiskfs(['snapshot', ...args, mounted.path('disk.raw')]);
  assert.equal(done.status, 0, done.stderr);
};

const refused = async (mounted: Mounted, args: readonly string[]): Promise<string> => {
  const done = await vdiskfs(['snapshot', ...args, mounted.path('disk.raw')]);
  assert.equal(done.status, 1, done.stderr);
  return done.stderr;
};

const firstByte = async (path: string, at = 0): Promise<number | undefined> => {
  const handle = await open(path, 'r');
  try {
    return (await handle.read(Buffer.alloc(1), 0, 1, at)).buffer[0];
  } finally {
    await handle.close();
  }
};

const fill = async (path: string, at: number, length: number, value: number): Promise<void> => {
  const handle = await open(path, 'r+');
  try {
    await handle.write(Buffer.alloc(length, value), 0, length, at);
  } finally {
    await handle.close();
  }
};

test('each snapshot is a read-only view beside its image, and comes and goes with it', async (t) => {
  const place = await placeOf(t, subject);
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '4M']);
  await qemuIo(image, ['write -P 1 0 4M']);
  await qemuImg(['snapshot', '-c', 'a/b', image]);
  await qemuImg(['resize', '-q', image, '8M']);
  await qemuIo(image, ['write -P 2 0 64k']);
  const mounted = await place.mount();
  const view = mounted.path('disk.raw');
  const first = mounted.path('disk@a%2Fb.raw');
  assert.deepEqual((await readdir(mounted.mountpoint)).sort(), ['disk.raw', 'disk@a%2Fb.raw']);
  assert.equal((await stat(first)).size, 4 * MIB);
  assert.equal((await stat(first)).mode & 0o777, 0o444);
  assert.deepEqual(await readFile(first), Buffer.alloc(4 * MIB, 1));
  await assert.rejects(open(first, 'r+'), { code: 'EROFS' });
  // What the kernel still holds is in it: nothing was synced.
  await fill(view, MIB, MIB, 3);
  await snapshot(mounted, '-c', 'second');
  await fill(view, MIB, 2 * MIB, 4);
  assert.equal(await firstByte(mounted.path('disk@second.raw'), MIB), 3);
  assert.equal(await firstByte(mounted.path('disk@second.raw'), 7 * MIB), 0);
  assert.equal(await firstByte(view, MIB), 4);
  assert.equal((await stat(mounted.path('disk@second.raw'))).size, 8 * MIB);
  const handle = await open(first, 'r');
  assert.match(await refused(mounted, ['-d', 'a/b']), /its view disk@a%2Fb\.raw is open/);
  await handle.close();
  await snapshot(mounted, '-d', 'a/b');
  assert.deepEqual((await readdir(mounted.mountpoint)).sort(), ['disk.raw', 'disk@second.raw']);
  await assert.rejects(stat(first), { code: 'ENOENT' });
  const list = (await vdiskfsJson(['snapshot', '-l', view])) as { name: string }[];
  assert.deepEqual(
    list.map(({ name }) => name),
    ['second'],
  );
  assert.match(await refused(mounted, ['-d', 'a/b']), /has no snapshot 'a\/b'/);
  await mounted.unmount();
  await assertClean(image);
});

test('applying a snapshot changes what is read, in its size, and waits for nobody who may write', async (t) => {
  const place = await placeOf(t, subject);
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '4M']);
  await qemuIo(image, ['write -P 1 0 4M']);
  const mounted = await place.mount();
  const view = mounted.path('disk.raw');
  await snapshot(mounted, '-c', 'small');
  assert.equal((await vdiskfs(['resize', view, '6M'])).status, 0);
  await fill(view, 0, 6 * MIB, 2);
  await snapshot(mounted, '-c', 'large');
  const writer = await open(view, 'r+');
  assert.match(await refused(mounted, ['-a', 'small']), /may be open for writing/);
  await writer.close();
  // A reader is told of the change: its pages are dropped.
  const reader = await open(view, 'r');
  const byte = async (at: number): Promise<number | undefined> => {
    const { bytesRead, buffer } = await reader.read(Buffer.alloc(1), 0, 1, at);
    return bytesRead === 0 ? undefined : buffer[0];
  };
  assert.deepEqual([await byte(0), await byte(5 * MIB)], [2, 2]);
  await snapshot(mounted, '-a', 'small');
  assert.deepEqual([await byte(0), await byte(5 * MIB)], [1, undefined]);
  assert.equal((await reader.stat()).size, 4 * MIB);
  assert.deepEqual(await readFile(view), Buffer.alloc(4 * MIB, 1));
  await fill(view, MIB, MIB, 9);
  await snapshot(mounted, '-a', 'large');
  assert.deepEqual([await byte(MIB), await byte(5 * MIB)], [2, 2]);
  await reader.close();
  assert.deepEqual(await readFile(mounted.path('disk@small.raw')), Buffer.alloc(4 * MIB, 1));
  await mounted.unmount();
  await assertClean(image);
  const flat = join(place.root, 'flat.raw');
  await qemuImg(['convert', '-O', 'raw', image, flat]);
  assert.deepEqual(await readFile(flat), Buffer.alloc(6 * MIB, 2));
});

test('snapshots that come and go under fio keep their content, and fio finds what it wrote', async (t) => {
  const place = await placeOf(t, subject);
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '64M']);
  await qemuIo(image, ['write -P 5 0 16M']);
  const mounted = await place.mount();
  const view = mounted.path('disk.raw');
  const job = join(place.root, 'job.fio');
  const options = ['rw=randwrite', 'bs=4k', 'size=4m', 'offset_increment=4m', 'numjobs=4'];
  const verify = ['loops=3', 'verify=crc32c', 'verify_fatal=1', 'verify_state_save=0'];
  const engine = ['direct=1', 'ioengine=libaio', 'iodepth=8', 'thinktime=200'];
  const lines = ['[global]', `filename=${view}`, ...options, ...verify, ...engine, '[x]', ''];
  await writeFile(job, lines.join('\n'));
  let running = true;
  const fio = tool('fio', [job], 120_000).finally(() => {
    running = false;
  });
  const kept = new Map<string, string>();
  for (let i = 0; i < 3 || (running && i < 6); i++) {
    await snapshot(mounted, '-c', `s${i}`);
    kept.set(`s${i}`, await sha256(mounted.path(`disk@s${i}.raw`)));
    if (i % 3 !== 2) continue;
    await snapshot(mounted, '-d', `s${i - 1}`);
    kept.delete(`s${i - 1}`);
  }
  await fio;
  for (const [name, sum] of kept)
    assert.equal(await sha256(mounted.path(`disk@${name}.raw`)), sum, name);
  await mounted.unmount();
  await assertClean(image);
  const flat = join(place.root, 'flat.raw');
  for (const [name, sum] of kept) {
    await qemuImg(['convert', '-O', 'raw', '-l', `snapshot.name=${name}`, image, flat]);
    assert.equal(await sha256(flat), sum, name);
  }
});

test('an engine that is killed while it makes, applies or deletes a snapshot leaves all that was answered', async (t) => {
  const place = await placeOf(t, subject);
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', image, '32M']);
  const mounted = await place.mount();
  const view = mounted.path('disk.raw');
  await fill(view, 0, 24 * MIB, 1);
  await snapshot(mounted, '-c', 'kept');
  for (let i = 0; i < 3; i++) {
    await fill(view, 0, 8 * MIB, 10 + i);
    await tool('sync', [view]);
    const { pid } = (await vdiskfsJson(['status', mounted.mountpoint])) as { pid: number };
    const working = vdiskfs(['snapshot', ['-c', '-d', '-c'][i] ?? '', 'other', view]);
    await sleep(450 + 40 * i);
    process.kill(pid, 'SIGKILL');
    await working;
    await eventually('the view answers', async () => (await firstByte(view)) === 10 + i, 20_000);
    await fill(view, 20 * MIB, MIB, 20 + i);
  }
  assert.equal(await firstByte(mounted.path('disk@kept.raw'), 4 * MIB), 1);
  await mounted.unmount();
  await assertClean(image);
  await qemuIo(image, ['read -P 12 0 8M', 'read -P 1 8M 12M', 'read -P 22 20M 1M']);
});
