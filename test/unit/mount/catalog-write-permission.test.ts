/** Which views may be written, and the locks that go with it. */
import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../../src/base/units.ts';
import { writeStub } from '../../support/stub-format.ts';
import { catalogFixture, eventually, lookup } from './catalog-fixture.ts';

test('a read-only mount shows no write bits, writes nothing, and locks for reading', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path);
  const catalog = await f.mount({ readOnly: true });
  const entry = await lookup(catalog, 'disk.raw');
  assert.equal((await entry.attributes()).mode & 0o222, 0);
  assert.equal(f.locks.modeOf(path), 'read');
  await assert.rejects(entry.view.write(guestOffset(0), Buffer.from('x')), { errno: 'EROFS' });
  await assert.rejects(entry.setTimes(0, 0), { errno: 'EROFS' });
});

test('an image that another one uses as backing, at any depth, is read-only and says for whom', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'base.stub'));
  await writeStub(join(f.images, 'middle.stub'), { backing: 'base.stub' });
  await writeStub(join(f.images, 'top.stub'), { backing: join(f.images, 'middle.stub') });
  const catalog = await f.mount();
  const views = new Map((await catalog.status()).views.map((v) => [v.name, v]));
  assert.match(views.get('base.raw')?.readOnlyReason ?? '', /'(middle|top).raw' uses it/);
  assert.match(views.get('middle.raw')?.readOnlyReason ?? '', /'top.raw' uses it/);
  assert.equal(views.get('top.raw')?.readOnlyReason, null);
  assert.deepEqual(
    views.get('top.raw')?.chain.map((c) => c.path),
    ['top', 'middle', 'base'].map((n) => join(f.images, `${n}.stub`)),
  );
});

test('an overlay that comes while its base is open for writing is busy until the base is released', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'base.stub'));
  const catalog = await f.mount();
  const base = await lookup(catalog, 'base.raw');
  await base.view.open();
  catalog.opened(base);
  await writeStub(join(f.images, 'top.stub'), { backing: 'base.stub' });
  const top = await lookup(catalog, 'top.raw');
  await base.view.write(guestOffset(0), Buffer.from('written'));
  await assert.rejects(top.view.open(), { errno: 'EBUSY' });
  catalog.released(base);
  await top.view.open();
  assert.equal(base.view.readOnly, true);
  await rm(join(f.images, 'top.stub'));
  await eventually('the base is writable again', async () => {
    await catalog.entries();
    return !base.view.readOnly;
  });
});

test('an image that needs a repair is read-only', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'a.stub'), { corrupt: true });
  await writeStub(join(f.images, 'b.stub'), { dirty: true });
  const catalog = await f.mount();
  for (const view of (await catalog.status()).views)
    assert.match(view.readOnlyReason ?? '', /repair/);
});

test('a shown image is locked until the mount ends, for writing when it may be written', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path);
  const catalog = await f.mount();
  assert.equal(f.locks.modeOf(path), 'write');
  await (await lookup(catalog, 'disk.raw')).view.open();
  await catalog.close();
  assert.equal(f.locks.modeOf(path), null);
});
