import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../src/base/assert.ts';
import { silentLog } from '../../src/base/log.ts';
import { QemuLocks } from '../../src/block/qemu-locks.ts';
import { holdWithQemu } from '../support/qemu-holder.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { vdiskfs } from '../support/vdiskfs.ts';

const rawImage = async (directory: string): Promise<string> => {
  const image = join(directory, 'disk.img');
  await qemuImg(['create', '-q', '-f', 'raw', image, '1M']);
  return image;
};

test('an image that QEMU writes is refused to every offline command', async (t) => {
  const image = await rawImage(await scratchDirectory(t));
  await writeFile(image, Buffer.alloc(1 << 20, 7));
  await holdWithQemu(t, image, ['-f', 'raw']);
  const commands = [
    ['info', image],
    ['map', image],
    ['check', image],
    ['create', '-f', 'raw', image, '2M'],
  ];
  for (const command of commands) {
    const done = await vdiskfs(command);
    assert.equal(done.status, 1, command.join(' '));
    assert.match(done.stderr, /another program .*: end that program, or use --lock off\n$/);
  }
  assert.equal((await vdiskfs(['compare', image, image])).status, 2);
  assert.deepEqual(await readFile(image), Buffer.alloc(1 << 20, 7));
});

test('--lock off looks at an image all the same', async (t) => {
  const image = await rawImage(await scratchDirectory(t));
  await holdWithQemu(t, image, ['-f', 'raw']);
  assert.equal((await vdiskfs(['info', '--lock', 'off', image])).status, 0);
  assert.equal((await vdiskfs(['info', '--lock', 'on', image])).status, 1);
});

test('readers share an image, but nobody may make a new one over it', async (t) => {
  const image = join(await scratchDirectory(t), 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
  await holdWithQemu(t, image, ['-r']);
  assert.equal((await vdiskfs(['info', image])).status, 0);
  const before = await readFile(image);
  assert.equal((await vdiskfs(['create', '-f', 'raw', image, '2M'])).status, 1);
  assert.deepEqual(await readFile(image), before);
});

test('a lock that was taken over keeps QEMU out also when QEMU has had an attempt refused', async (t) => {
  const image = join(await scratchDirectory(t), 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
  const kept: number[] = [];
  const opened = (_lock: unknown, fd: number): void => void kept.push(fd);
  const first = new QemuLocks({ require: 'on', log: silentLog, opened });
  const { tenure } = await first.acquire(image, 'read');
  const locks = new QemuLocks({ require: 'on', log: silentLog });
  t.after(() => locks.close());
  locks.adopt(present(kept[0], 'it was told of the descriptor'), present(tenure, 'it has locks'));
  const release = await holdWithQemu(t, image, ['-r']);
  await assert.rejects(locks.acquire(image, 'write'), { errno: 'EBUSY' });
  await release();
  await assert.rejects(qemuIo(image, ['write 0 512']), /lock/);
  assert.equal((await locks.acquire(image, 'write')).tenure, tenure);
  await assert.rejects(qemuIo(image, ['read 0 512'], ['-r']), /lock/);
});
