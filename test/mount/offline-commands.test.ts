import assert from 'node:assert/strict';
import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { mountImages } from '../support/mounted.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { vdiskfs } from '../support/vdiskfs.ts';

test('an image that a mount holds is refused, naming the view to use', async (t) => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const images = join(root, 'images');
  await mkdir(images);
  const image = join(images, 'disk.img');
  await qemuImg(['create', '-q', '-f', 'raw', image, '1M']);
  const mounted = await mountImages(cleanup, {
    backend: 'kernel',
    sources: [images],
    mountpoint: join(root, 'mnt'),
  });
  const view = mounted.path('disk.raw');
  const handle = await open(view, 'r+');
  cleanup.after(() => handle.close());
  const line = `vdiskfs: ${image}: a vdiskfs mount holds it: use its view ${view}\n`;
  for (const args of [
    ['info', image],
    ['map', image],
    ['create', '-f', 'raw', image, '2M'],
  ]) {
    const done = await vdiskfs(args);
    assert.equal(done.status, 1);
    assert.equal(done.stderr, line);
  }
  assert.equal((await vdiskfs(['info', '--lock', 'off', image])).status, 0);
  const shown = await vdiskfs(['info', '--json', view]);
  assert.equal(JSON.parse(shown.stdout)['virtual-size'], 1 << 20);
});
