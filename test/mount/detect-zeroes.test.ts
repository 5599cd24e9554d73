import assert from 'node:assert/strict';
import { stat } from 'node:fs/promises';
import { test } from 'node:test';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import { MIB, writeRange } from './suite/bytes.ts';
import { KERNEL, placeOf } from './suite/subject.ts';

test('with --detect-zeroes unmap zeros that a program writes free what was there', async (t) => {
  const place = await placeOf(t, KERNEL);
  const path = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '16M']);
  const mounted = await place.mount(['--detect-zeroes', 'unmap']);
  const view = mounted.path('disk.raw');
  // Twice, so that workers could have learned where the clusters are.
  for (let i = 0; i < 2; i++) await writeRange(view, 0, Buffer.alloc(8 * MIB, 1));
  await writeRange(view, MIB, Buffer.alloc(6 * MIB));
  await mounted.unmount();
  const { blocks } = await stat(path);
  assert.ok(blocks * 512 < 3 * MIB, `${blocks * 512} bytes are left`);
  await assertClean(path);
  await qemuIo(path, ['read -P 1 0 1M', 'read -P 0 1M 6M', 'read -P 1 7M 1M']);
});

test('--detect-zeroes is refused where other options take its sense away', async (t) => {
  const place = await placeOf(t, KERNEL);
  for (const [args, message] of [
    [['--detect-zeroes', 'unmap', '--discard', 'ignore'], /unmap needs --discard unmap/],
    [['--detect-zeroes', 'sometimes'], /detect-zeroes/],
  ] as const) {
    const done = await vdiskfs(['mount', ...args, place.images, place.root]);
    assert.equal(done.status, 2);
    assert.match(done.stderr, message);
  }
});
