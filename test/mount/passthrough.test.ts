/** `--passthrough`: the kernel reads and writes raw images by itself, and what it does is seen here too. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { type FileHandle, open, readFile, stat, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { tool } from '../support/file-tools.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { type MountSubject, type Place, placeOf } from './suite/subject.ts';

const subject: MountSubject = {
  backend: 'kernel',
  capabilities: {
    fallocate: true,
    seekHoles: true,
    setTimes: true,
    writebackCache: false,
    keepsCache: false,
  },
};

interface Status {
  readonly pid: number;
  readonly counters: { readonly requests: number };
}

const statusOf = async (mountpoint: string): Promise<Status> =>
  (await vdiskfsJson(['status', mountpoint])) as Status;

const BYTES = 8 << 20;

const rawPlace = async (t: Parameters<typeof placeOf>[0]): Promise<[Place, Buffer]> => {
  const place = await placeOf(t, subject);
  const bytes = randomBytes(BYTES);
  await writeFile(place.image('disk.raw'), bytes);
  return [place, bytes];
};

const readAll = async (file: FileHandle): Promise<Buffer> => {
  const buffer = Buffer.alloc(BYTES);
  for (let at = 0; at < BYTES; at += 1 << 16) await file.read(buffer, at, 1 << 16, at);
  return buffer;
};

test('reads and writes of a raw image do not reach the engine', async (t) => {
  const [place, bytes] = await rawPlace(t);
  const mounted = await place.mount(['--passthrough']);
  const file = await open(mounted.path('disk.raw'), 'r+');
  try {
    const before = await statusOf(mounted.mountpoint);
    assert.deepEqual(await readAll(file), bytes);
    const written = randomBytes(1 << 16);
    await file.write(written, 0, written.length, 1 << 20);
    written.copy(bytes, 1 << 20);
    const after = await statusOf(mounted.mountpoint);
    const asked = after.counters.requests - before.counters.requests;
    assert.ok(asked < 20, `${asked} requests for ${BYTES >> 16} reads`);
    // Past the end the file grows, and the view with it.
    await file.write(written, 0, written.length, BYTES);
    assert.equal((await stat(mounted.path('disk.raw'))).size, BYTES + written.length);
    await file.sync();
  } finally {
    await file.close();
  }
  assert.equal((await stat(mounted.path('disk.raw'))).size, BYTES + (1 << 16));
  await mounted.unmount();
  assert.deepEqual((await readFile(place.image('disk.raw'))).subarray(0, BYTES), bytes);
});

test('what is no flat file is served as ever, beside it', async (t) => {
  const [place] = await rawPlace(t);
  const image = place.image('mapped.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '16M']);
  const mounted = await place.mount(['--passthrough']);
  const bytes = randomBytes(1 << 20);
  await writeFile(place.image('pattern'), bytes);
  const to = `of=${mounted.path('mapped.raw')}`;
  await tool('dd', [`if=${place.image('pattern')}`, to, 'conv=notrunc,fsync', 'status=none']);
  const back = await readFile(mounted.path('mapped.raw'));
  assert.deepEqual(back.subarray(0, bytes.length), bytes);
  await mounted.unmount();
  await assertClean(image);
});

test('handles outlive the engine, and new ones go beside them', async (t) => {
  const [place, bytes] = await rawPlace(t);
  const mounted = await place.mount(['--passthrough']);
  const path = mounted.path('disk.raw');
  const first = await open(path, 'r');
  try {
    const { pid } = await statusOf(mounted.mountpoint);
    process.kill(pid, 'SIGKILL');
    await eventually('another engine serves', async () => {
      const now = await statusOf(mounted.mountpoint).catch(() => null);
      return now !== null && now.pid !== pid;
    });
    const second = await open(path, 'r+');
    assert.deepEqual(await readAll(second), bytes);
    await second.close();
    assert.deepEqual(await readAll(first), bytes);
  } finally {
    await first.close();
  }
  const third = await open(path, 'r+');
  assert.deepEqual(await readAll(third), bytes);
  await third.close();
});

test('where it cannot be had at all it is refused', async (t) => {
  const [place] = await rawPlace(t);
  const args = ['mount', '--passthrough', '--backend', 'fuse-native', place.images, place.root];
  const done = await vdiskfs(args);
  assert.equal(done.status, 2);
  assert.match(done.stderr, /--passthrough: the backend fuse-native does not have it/);
});
