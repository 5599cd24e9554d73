/** An image whose bytes lie in another file of the directory: one view, and the locks of both. */
import assert from 'node:assert/strict';
import { appendFile, rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../../src/base/units.ts';
import { writeAddCow } from '../../support/add-cow-file.ts';
import { catalogFixture, lookup, namesOf } from './catalog-fixture.ts';

const CLUSTER = 65_536;
const BYTES = 4 * CLUSTER + 100;

/** NAME.add-cow over base.img, whose data goes to IMAGE. */
const makeAddCow = async (directory: string, name: string, image: string): Promise<void> => {
  await writeAddCow(join(directory, `${name}.add-cow`), {
    clusterBytes: CLUSTER,
    backing: { name: 'base.img', format: 'raw' },
    image: { name: image, format: 'raw' },
    isAllAllocated: false,
    bits: new Array<boolean>(5).fill(false),
  });
};

const makeImages = async (directory: string): Promise<void> => {
  await writeFile(join(directory, 'base.img'), Buffer.alloc(BYTES, 0x42));
  await writeFile(join(directory, 'disk.raw'), '');
  await truncate(join(directory, 'disk.raw'), BYTES);
  await makeAddCow(directory, 'disk', 'disk.raw');
};

test('the image file of an add-cow image is not shown beside it, and takes no name', async (t) => {
  const f = await catalogFixture(t);
  await makeImages(f.images);
  const catalog = await f.mount();
  assert.deepEqual(await namesOf(catalog), ['base.raw', 'disk.raw']);
  const { views, ignored } = await catalog.status();
  assert.equal(views.find((v) => v.name === 'disk.raw')?.format, 'add-cow');
  assert.deepEqual(ignored, [
    { path: join(f.images, 'disk.raw'), reason: "holds the data of 'disk.add-cow'" },
  ]);
  const base = await lookup(catalog, 'base.raw');
  assert.match(base.view.readOnlyReason ?? '', /'disk.raw' uses it/);
  const disk = await lookup(catalog, 'disk.raw');
  assert.equal((await disk.attributes()).sizeBytes, BYTES, 'the size is known without opening it');
  await disk.view.write(guestOffset(10), Buffer.from('guest'));
  const found = Buffer.alloc(20);
  await disk.view.read(guestOffset(0), found);
  assert.deepEqual(
    found,
    Buffer.concat([Buffer.alloc(10, 0x42), Buffer.from('guest'), Buffer.alloc(5, 0x42)]),
  );
  await disk.view.close();
  assert.ok((await disk.attributes()).blocks >= CLUSTER / 512, 'the blocks of both files count');
});

test('the mount holds the locks of both files as long as it shows the image', async (t) => {
  const f = await catalogFixture(t);
  await makeImages(f.images);
  const catalog = await f.mount();
  await namesOf(catalog);
  const modes = (): unknown[] =>
    ['disk.add-cow', 'disk.raw'].map((name) => f.locks.modeOf(join(f.images, name)));
  assert.deepEqual(modes(), ['write', 'write']);
  await rm(join(f.images, 'disk.add-cow'));
  // The image file is a disk of its own again.
  assert.deepEqual(await namesOf(catalog), ['base.raw', 'disk.raw']);
  assert.equal((await lookup(catalog, 'disk.raw')).view.readOnly, false);
  const reader = await f.mount({ readOnly: true });
  await makeAddCow(f.images, 'disk', 'disk.raw');
  await namesOf(reader);
  assert.equal(f.locks.modeOf(join(f.images, 'disk.add-cow')), 'read');
});

test('an image file that another program holds makes the image busy, not half of it', async (t) => {
  const f = await catalogFixture(t);
  await makeImages(f.images);
  f.locks.foreign.add(join(f.images, 'disk.raw'));
  const catalog = await f.mount();
  const disk = await lookup(catalog, 'disk.raw');
  await assert.rejects(disk.view.open(), { errno: 'EBUSY' });
  f.locks.foreign.clear();
});

test('an image file that was changed behind the mount is looked at again', async (t) => {
  const f = await catalogFixture(t);
  await makeImages(f.images);
  const catalog = await f.mount();
  const disk = await lookup(catalog, 'disk.raw');
  await appendFile(join(f.images, 'disk.raw'), Buffer.alloc(1000));
  await assert.rejects(disk.view.open(), { errno: 'ESTALE' });
  const again = await lookup(catalog, 'disk.raw');
  assert.notEqual(again.nodeId, disk.nodeId);
  assert.equal((await again.attributes()).sizeBytes, BYTES + 1000);
});

test('without its image file an image is shown broken; one that names itself hides nothing', async (t) => {
  const f = await catalogFixture(t);
  await makeImages(f.images);
  await makeAddCow(f.images, 'lost', 'gone.raw');
  await makeAddCow(f.images, 'self', 'self.add-cow');
  await makeAddCow(f.images, 'base-too', 'base.img');
  const catalog = await f.mount();
  const names = ['base-too.raw', 'base.raw', 'disk.raw', 'lost.raw', 'self.raw'];
  assert.deepEqual(await namesOf(catalog), names);
  const { views } = await catalog.status();
  const errorOf = (name: string) => views.find((v) => v.name === name)?.error;
  assert.equal(errorOf('lost.raw')?.errno, 'ENOENT');
  assert.equal(errorOf('self.raw')?.errno, 'ELOOP');
  assert.equal(errorOf('base-too.raw')?.errno, 'ELOOP');
});

test('of two images with one image file, one is open at a time', async (t) => {
  const f = await catalogFixture(t);
  await makeImages(f.images);
  await makeAddCow(f.images, 'other', 'disk.raw');
  const catalog = await f.mount();
  const [disk, other] = [await lookup(catalog, 'disk.raw'), await lookup(catalog, 'other.raw')];
  await disk.view.open();
  await assert.rejects(other.view.open(), { errno: 'EBUSY' });
  await disk.view.close();
});
