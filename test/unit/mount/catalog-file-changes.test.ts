/** Files that come, go and change under a mount: which node stands for which content. */
import assert from 'node:assert/strict';
import { rename, rm, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../../src/base/units.ts';
import { writeStub } from '../../support/stub-format.ts';
import { catalogFixture, contentOf, eventually, lookup, namesOf } from './catalog-fixture.ts';

test('new images appear and removed ones go, and kernels are told', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'a.stub'));
  const catalog = await f.mount();
  const told: string[] = [];
  catalog.onNameChanged((name) => told.push(name));
  await writeStub(join(f.images, 'b.stub'));
  assert.deepEqual(await namesOf(catalog), ['a.raw', 'b.raw']);
  await rm(join(f.images, 'a.stub'));
  await eventually('the removal is told without anybody looking', () => told.includes('a.raw'));
  assert.equal(await catalog.lookup('a.raw'), null);
});

test('a file that becomes an image after it was created is shown', async (t) => {
  const f = await catalogFixture(t);
  const catalog = await f.mount();
  await writeFile(join(f.images, 'slow'), '');
  assert.deepEqual(await namesOf(catalog), []);
  await writeStub(join(f.images, 'slow'));
  assert.deepEqual(await namesOf(catalog), ['slow.raw']);
});

test('an old file that is overwritten with an image is shown', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'old');
  await writeFile(path, 'text '.repeat(2000));
  await utimes(path, 1_000_000, 1_000_000);
  const catalog = await f.mount();
  assert.deepEqual(await namesOf(catalog), []);
  await writeStub(path);
  await eventually('it is shown', async () => (await namesOf(catalog)).includes('old.raw'));
});

test('a file that takes the place of another has a node id of its own and shows its own content', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path, {}, Buffer.from('old'));
  const catalog = await f.mount();
  const old = await lookup(catalog, 'disk.raw');
  assert.equal((await contentOf(old)).toString(), 'old');
  catalog.opened(old);
  await writeStub(join(f.images, '.new'), {}, Buffer.from('new'));
  await rename(join(f.images, '.new'), path);
  const fresh = await lookup(catalog, 'disk.raw');
  assert.notEqual(fresh.nodeId, old.nodeId);
  assert.equal((await contentOf(fresh)).toString(), 'new');
  assert.equal((await contentOf(old)).toString(), 'old');
  assert.equal(catalog.byNodeId(old.nodeId), old);
  catalog.released(old);
  catalog.forgotten(old.nodeId);
  await eventually('the old one is dropped', () => catalog.byNodeId(old.nodeId) === null);
});

test('a closed image that another program changed is another file, and its old id is stale', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path, {}, Buffer.from('old'));
  const catalog = await f.mount();
  const old = await lookup(catalog, 'disk.raw');
  await old.view.open();
  await old.view.close();
  await writeStub(path, {}, Buffer.from('other'));
  await assert.rejects(old.view.open(), { errno: 'ESTALE' });
  const fresh = await lookup(catalog, 'disk.raw');
  assert.notEqual(fresh.nodeId, old.nodeId);
  assert.equal((await contentOf(fresh)).toString(), 'other');
});

test('our own writes and times do not make an image another file', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path);
  const catalog = await f.mount();
  const entry = await lookup(catalog, 'disk.raw');
  catalog.opened(entry);
  await entry.view.write(guestOffset(0), Buffer.from('ours'));
  await entry.setTimes(null, 1_700_000_000_000);
  catalog.released(entry);
  await rm(path, { force: true });
  await eventually('it is gone', async () => (await catalog.lookup('disk.raw')) === null);
  await writeStub(path, {}, Buffer.from('same'));
  const again = await lookup(catalog, 'disk.raw');
  await again.setTimes(null, 1_700_000_000_000);
  assert.equal((await lookup(catalog, 'disk.raw')).nodeId, again.nodeId);
  assert.equal((await contentOf(again)).toString(), 'same');
});

test('an image that has grown has its new size when it is closed, too', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'disk.stub'));
  const catalog = await f.mount();
  const entry = await lookup(catalog, 'disk.raw');
  await entry.view.write(guestOffset(4000), Buffer.from('far'));
  await entry.view.close();
  assert.equal((await entry.attributes()).sizeBytes, 4003);
  assert.equal(await lookup(catalog, 'disk.raw'), entry);
});

test('ids are the same after a restart, while the same file keeps its content', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'disk.stub'));
  const first = await f.mount();
  const { nodeId } = await lookup(first, 'disk.raw');
  await first.close();
  await rename(join(f.images, 'disk.stub'), join(f.images, 'renamed.stub'));
  const second = await f.mount();
  assert.equal((await lookup(second, 'renamed.raw')).nodeId, nodeId);
});

test('an id that another content made stale stays so for a later engine', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path);
  const first = await f.mount();
  const stale = (await lookup(first, 'disk.raw')).nodeId;
  await writeStub(path, {}, Buffer.from('other'));
  await eventually('it is another node', async () => {
    await (await lookup(first, 'disk.raw')).attributes();
    return (await lookup(first, 'disk.raw')).nodeId !== stale;
  });
  const { nodeId } = await lookup(first, 'disk.raw');
  await first.close();
  const second = await f.mount();
  assert.equal((await lookup(second, 'disk.raw')).nodeId, nodeId);
});

test('a file that goes and comes back while it is open is another node', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path);
  const catalog = await f.mount();
  const before = await lookup(catalog, 'disk.raw');
  await before.view.open();
  catalog.opened(before);
  await rename(path, join(f.outside, 'disk.stub'));
  assert.equal(await catalog.lookup('disk.raw'), null);
  await rename(join(f.outside, 'disk.stub'), path);
  const after = await lookup(catalog, 'disk.raw');
  assert.notEqual(after.nodeId, before.nodeId);
  assert.equal(catalog.byNodeId(before.nodeId), before);
});

test('an open view keeps its name when a clash comes, a closed one gets its long name', async (t) => {
  const f = await catalogFixture(t);
  await writeStub(join(f.images, 'open.stub'));
  await writeStub(join(f.images, 'shut.stub'));
  const catalog = await f.mount();
  const entry = await lookup(catalog, 'open.raw');
  catalog.opened(entry);
  await writeFile(join(f.images, 'open.img'), 'x');
  await writeFile(join(f.images, 'shut.img'), 'x');
  const expected = ['open.img.raw', 'open.raw', 'shut.img.raw', 'shut.stub.raw'];
  assert.deepEqual(await namesOf(catalog), expected);
  assert.equal(await lookup(catalog, 'open.raw'), entry);
});
