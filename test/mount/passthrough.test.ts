/** `--passthrough`: the kernel reads and writes raw images by itself, and what it does is seen here too. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { type FileHandle, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { readAddCow, writeAddCow } from '../support/add-cow-file.ts';
import { tool } from '../support/file-tools.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
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
  readonly counters: { readonly requests: number; readonly readBytes: number };
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

/** A qcow2 image whose data file is raw, and what it holds. */
const dataFilePlace = async (
  t: Parameters<typeof placeOf>[0],
  options = 'data_file_raw=on',
): Promise<[Place, Buffer]> => {
  const place = await placeOf(t, subject);
  const data = `data_file=${place.image('disk.data')}`;
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', `${options},${data}`, image, String(BYTES)]);
  const bytes = randomBytes(BYTES);
  await writeFile(place.image('content'), bytes);
  await qemuIo(image, [`write -s ${place.image('content')} 0 ${BYTES}`]);
  return [place, bytes];
};

/** Whether reading all of it is the kernel's alone. What it has in its own pages for the view nobody is asked for. */
const isKernels = async (mountpoint: string, file: FileHandle): Promise<boolean> => {
  const before = await statusOf(mountpoint);
  await readAll(file);
  const bytes = (await statusOf(mountpoint)).counters.readBytes - before.counters.readBytes;
  assert.ok(bytes === 0 || bytes >= BYTES, `${bytes} bytes`);
  return bytes === 0;
};

test('a raw data file is read and written by the kernel, and grows the image with it', async (t) => {
  const [place, bytes] = await dataFilePlace(t);
  const mounted = await place.mount(['--passthrough']);
  const path = mounted.path('disk.raw');
  const file = await open(path, 'r+');
  const written = randomBytes(1 << 16);
  try {
    assert.ok(await isKernels(mounted.mountpoint, file));
    assert.deepEqual(await readAll(file), bytes);
    await file.write(written, 0, written.length, 1 << 20);
    written.copy(bytes, 1 << 20);
    await file.write(written, 0, 1000, BYTES + 3000);
    assert.equal((await stat(path)).size, BYTES + 4096, 'whole sectors');
    await file.write(written, 0, written.length, BYTES + (1 << 20));
    await file.sync();
    // What was synced is the image's, whatever happens now.
    const header = await readFile(place.image('disk.qcow2'));
    assert.equal(Number(header.readBigUInt64BE(24)), BYTES + (1 << 20) + (1 << 16));
    await file.truncate(BYTES + (2 << 20));
    assert.equal((await stat(path)).size, BYTES + (2 << 20));
  } finally {
    await file.close();
  }
  await mounted.unmount();
  const grown = Buffer.alloc(BYTES + (2 << 20));
  bytes.copy(grown);
  written.copy(grown, BYTES + 3000, 0, 1000);
  written.copy(grown, BYTES + (1 << 20));
  const image = place.image('disk.qcow2');
  await assertClean(image);
  await qemuImg(['convert', '-O', 'raw', image, place.image('flat')]);
  assert.ok((await readFile(place.image('flat'))).equals(grown), 'QEMU reads the same');
  assert.ok((await readFile(place.image('disk.data'))).equals(grown), 'and so does the file alone');
});

test('a data file that is written past its end by a kernel is taken up by the next engine', async (t) => {
  const [place, bytes] = await dataFilePlace(t);
  const mounted = await place.mount(['--passthrough']);
  const path = mounted.path('disk.raw');
  const file = await open(path, 'r+');
  const written = randomBytes(4096);
  try {
    const { pid } = await statusOf(mounted.mountpoint);
    await file.write(written, 0, written.length, BYTES);
    process.kill(pid, 'SIGKILL');
    await eventually('another engine serves', async () => {
      const now = await statusOf(mounted.mountpoint).catch(() => null);
      return now !== null && now.pid !== pid;
    });
    await file.truncate(BYTES + (1 << 20));
    const back = Buffer.alloc(4096);
    await file.read(back, 0, back.length, BYTES);
    assert.ok(back.equals(written), 'growing it cut nothing off');
  } finally {
    await file.close();
  }
  await mounted.unmount();
  await assertClean(place.image('disk.qcow2'));
  const flat = await readFile(place.image('disk.data'));
  assert.ok(flat.equals(Buffer.concat([bytes, written, Buffer.alloc((1 << 20) - 4096)])));
});

test('a dirty bitmap and passthrough keep each other out', async (t) => {
  const [place] = await dataFilePlace(t);
  const add = JSON.stringify({
    execute: 'block-dirty-bitmap-add',
    arguments: { node: 'disk', name: 'changes' },
  });
  const mounted = await place.mount(['--passthrough']);
  const path = mounted.path('disk.raw');
  const first = await open(path, 'r+');
  const refused = await vdiskfs(['qmp', mounted.mountpoint, add]);
  assert.match(`${refused.stdout}${refused.stderr}`, /passthrough/);
  await first.close();
  await eventually(
    'it is closed',
    async () => (await vdiskfs(['qmp', mounted.mountpoint, add])).status === 0,
  );
  const second = await open(path, 'r+');
  try {
    assert.equal(await isKernels(mounted.mountpoint, second), false);
  } finally {
    await second.close();
  }
});

test('a data file that is not raw, or not all of which is mapped, is not the kernel’s', async (t) => {
  for (const [options, zeroed] of [
    ['cluster_size=64k', false],
    ['data_file_raw=on', true],
  ] as const) {
    const [place, bytes] = await dataFilePlace(t, options);
    if (zeroed) {
      await qemuIo(place.image('disk.qcow2'), ['write -z 1M 64k']);
      bytes.fill(0, 1 << 20, (1 << 20) + (1 << 16));
    }
    const mounted = await place.mount(['--passthrough']);
    const file = await open(mounted.path('disk.raw'), 'r+');
    try {
      assert.equal(await isKernels(mounted.mountpoint, file), false, options);
      assert.deepEqual(await readAll(file), bytes);
      await file.write(bytes, 0, 4096, 1 << 20);
      bytes.copy(bytes, 1 << 20, 0, 4096);
    } finally {
      await file.close();
    }
    await mounted.unmount();
    await assertClean(place.image('disk.qcow2'));
    const flat = place.image('flat');
    await qemuImg(['convert', '-O', 'raw', place.image('disk.qcow2'), flat]);
    assert.ok((await readFile(flat)).equals(bytes), options);
    await rm(flat);
  }
});

test('a complete add-cow image is the kernel’s, and stays complete as it grows', async (t) => {
  const place = await placeOf(t, subject);
  const bytes = randomBytes(BYTES);
  await writeFile(place.image('base.img'), Buffer.alloc(BYTES, 1));
  await writeFile(place.image('disk.raw'), bytes);
  await writeAddCow(place.image('disk.add-cow'), {
    clusterBytes: 65_536,
    backing: { name: 'base.img', format: 'raw' },
    image: { name: 'disk.raw', format: 'raw' },
    isAllAllocated: true,
    bits: new Array<boolean>(BYTES / 65_536).fill(true),
  });
  const mounted = await place.mount(['--passthrough']);
  const file = await open(mounted.path('disk.raw'), 'r+');
  const written = randomBytes(100_000);
  try {
    assert.ok(await isKernels(mounted.mountpoint, file));
    await file.write(written, 0, written.length, BYTES);
    await file.sync();
    assert.equal((await stat(mounted.path('disk.raw'))).size, BYTES + written.length);
  } finally {
    await file.close();
  }
  await mounted.unmount();
  const grown = Buffer.concat([bytes, written]);
  assert.ok((await readFile(place.image('disk.raw'))).equals(grown));
  const header = await readAddCow(place.image('disk.add-cow'), grown.length);
  assert.equal(header.isAllAllocated, true);
  assert.ok(
    header.bits.every((bit) => bit),
    'who does not know the feature reads the same',
  );
  assert.equal((await vdiskfs(['check', place.image('disk.add-cow')])).status, 0);
});
