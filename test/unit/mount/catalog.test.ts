/** What a directory of views shows: which files, under which names, and what is told of them. */
import assert from 'node:assert/strict';
import { chmod, mkdir, readFile, symlink, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../../src/base/units.ts';
import { writeStub } from '../../support/stub-format.ts';
import { catalogFixture, contentOf, lookup, namesOf } from './catalog-fixture.ts';

test('images by content and raw files by extension are shown, the rest is listed as ignored', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'disk.stub'));
  await writeStub(join(f.images, 'unnamed'));
  for (const name of ['a.img', 'b.iso', 'c.DD', 'd.raw', 'notes.txt', '.hidden.img']) {
    await writeFile(join(f.images, name), 'x'.repeat(700));
  }
  await mkdir(join(f.images, 'sub.img'));
  const catalog = await f.mount();
  const shown = ['a.raw', 'b.raw', 'c.raw', 'd.raw', 'disk.raw', 'unnamed.raw'];
  assert.deepEqual(await namesOf(catalog), shown);
  const { ignored } = await catalog.status();
  assert.deepEqual(
    ignored.map((i) => i.path),
    [join(f.images, 'notes.txt')],
  );
  assert.match(ignored[0]?.reason ?? '', /no known image format/);
});

test('a .raw file is raw whatever it holds, an .img file is what its content says', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'a.raw'), {}, Buffer.from('inside'));
  await writeStub(join(f.images, 'b.img'), {}, Buffer.from('inside'));
  const catalog = await f.mount();
  const a = await contentOf(await lookup(catalog, 'a.raw'));
  const b = await contentOf(await lookup(catalog, 'b.raw'));
  assert.equal(a.toString('latin1', 0, 4), 'STUB');
  assert.equal(b.toString(), 'inside');
});

test('symlinks count when they lead into the allowed directories, and one file has one view', async (t) => {
  const f = await catalogFixture(t);
  await mkdir(join(f.images, 'store'));
  await writeStub(join(f.images, 'store', 'one.stub'));
  await writeStub(join(f.outside, 'two.stub'));
  await writeStub(join(f.images, 'three.stub'));
  await symlink('store/one.stub', join(f.images, 'one.stub'));
  await symlink(join(f.outside, 'two.stub'), join(f.images, 'two.stub'));
  await symlink('three.stub', join(f.images, 'zz.stub'));
  const catalog = await f.mount();
  assert.deepEqual(await namesOf(catalog), ['one.raw', 'three.raw']);
  const reasons = (await catalog.status()).ignored.map((i) => i.reason).join('\n');
  assert.match(reasons, /outside the allowed directories/);
  assert.match(reasons, /same file as 'three.stub'/);
});

test('NAME=FILE, single files and --format decide what a file is and how it is called', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.outside, 'blob.bin');
  await writeStub(path, {}, Buffer.from('inside'));
  const probed = await f.mount({ sources: [{ name: 'system', path }] });
  assert.deepEqual(await namesOf(probed), ['system.raw']);
  assert.equal((await contentOf(await lookup(probed, 'system.raw'))).toString(), 'inside');
  const raw = await f.mount({ sources: [{ name: null, path }], format: 'raw' });
  assert.equal((await contentOf(await lookup(raw, 'blob.raw'))).length, 512 + 6);
});

test('a single source that cannot be opened fails the mount with its reason', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.outside, 'disk.stub');
  await writeStub(path, { unopenable: true });
  const sources = [{ name: null, path }];
  await assert.rejects(f.mount({ sources }), { kind: 'invalid-image' });
  await writeStub(path, { backing: 'missing.stub' });
  await assert.rejects(f.mount({ sources }), { errno: 'ENOENT' });
});

test('attributes are the image file’s owner, mode and times, and the size is the guest’s', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path, {}, new Uint8Array(1000));
  await chmod(path, 0o751);
  await utimes(path, 1_000_000, 2_000_000.5);
  await chmod(f.images, 0o750);
  const catalog = await f.mount();
  const attributes = await (await lookup(catalog, 'disk.raw')).attributes();
  assert.equal(attributes.sizeBytes, 1000);
  assert.equal(attributes.mode, 0o640);
  assert.equal(attributes.modifyTimeMs, 2_000_000_500);
  assert.ok(attributes.blocks > 0);
  assert.equal((await catalog.rootAttributes()).mode, 0o750);
});

test('extended attributes tell format, sizes and backing', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'base.stub'));
  await writeStub(join(f.images, 'top.stub'), { backing: 'base.stub' });
  const catalog = await f.mount();
  const values = await (await lookup(catalog, 'top.raw')).extendedAttributes();
  assert.equal(values.get('user.vdiskfs.format'), 'stub');
  assert.equal(values.get('user.vdiskfs.virtual-size'), '1024');
  assert.equal(values.get('user.vdiskfs.backing'), join(f.images, 'base.stub'));
  assert.equal(values.get('user.vdiskfs.dirty'), 'false');
  assert.equal(values.get('user.vdiskfs.jobs'), '[]');
  const root = await catalog.rootExtendedAttributes();
  assert.equal(root.get('user.vdiskfs.socket'), '/nowhere.sock');
  assert.equal(root.get('user.vdiskfs.pid'), String(process.pid));
});

test('two thousand images are listed within two seconds, and again at once', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'base.stub'));
  for (let i = 0; i < 2000; i++)
    await writeStub(join(f.images, `${i}.stub`), { backing: 'base.stub' });
  // The best of three: other tests share the machine's two cores.
  let elapsed = Number.POSITIVE_INFINITY;
  for (let round = 0; round < 3 && elapsed >= 2000; round++) {
    const begin = performance.now();
    const catalog = await f.mount();
    const entries = await catalog.entries();
    for (const entry of entries) await entry.attributes();
    assert.equal(entries.length, 2001);
    elapsed = performance.now() - begin;
    await catalog.close();
  }
  assert.ok(elapsed < 2000, `listed in ${Math.round(elapsed)} ms`);
});

test('writing through a view reaches the file, and a mount that ends has flushed it', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.img');
  await writeFile(path, Buffer.alloc(4096));
  const catalog = await f.mount();
  await (await lookup(catalog, 'disk.raw')).view.write(guestOffset(100), Buffer.from('hello'));
  await catalog.close();
  assert.equal((await readFile(path)).toString('latin1', 100, 105), 'hello');
});
