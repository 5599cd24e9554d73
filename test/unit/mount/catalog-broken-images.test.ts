/** Images that cannot be opened: how they show, and what becomes of them when they can be. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Entry } from '../../../mount/directory.ts';
import { writeStub } from '../../support/stub-format.ts';
import { catalogFixture, contentOf, lookup } from './catalog-fixture.ts';

test('an image that another program holds shows with mode 0, answers EBUSY, and opens when it is free', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path);
  f.locks.foreign.add(path);
  const catalog = await f.mount();
  const entry = await lookup(catalog, 'disk.raw');
  assert.deepEqual(await sizeAndMode(entry), { sizeBytes: 0, mode: 0 });
  await assert.rejects(entry.view.open(), { errno: 'EBUSY' });
  assert.match(f.lines.join(''), /another program holds it/);
  f.locks.foreign.clear();
  await assert.rejects(entry.view.open(), { errno: 'ESTALE' });
  const free = await lookup(catalog, 'disk.raw');
  assert.notEqual(free.nodeId, entry.nodeId, 'a kernel that was told size 0 looks it up again');
  await free.view.open();
  assert.equal((await free.attributes()).sizeBytes, 1024);
});

const sizeAndMode = async (entry: Entry): Promise<{ sizeBytes: number; mode: number }> => {
  const { sizeBytes, mode } = await entry.attributes();
  return { sizeBytes, mode };
};

test('what cannot be opened shows with size 0 and mode 0, its errno fits, log and status say why', async (t) => {
  const f = await catalogFixture(t);
  await writeFile(join(f.images, 'cut.stub'), 'STUB{}');
  await writeStub(join(f.images, 'lost.stub'), { backing: 'nowhere.stub' });
  await writeStub(join(f.images, 'escape.stub'), { backing: '/etc/passwd' });
  await writeStub(join(f.images, 'protocol.stub'), { backing: 'nbd://host/disk' });
  await writeStub(join(f.images, 'loop-a.stub'), { backing: 'loop-b.stub' });
  await writeStub(join(f.images, 'loop-b.stub'), { backing: 'loop-a.stub' });
  await writeStub(join(f.images, 'self.stub'), { backing: 'self.stub' });
  await writeStub(join(f.images, 'good.stub'), {}, Buffer.from('good'));
  const catalog = await f.mount();
  const errnoOf = {
    'cut.raw': 'EIO',
    'lost.raw': 'ENOENT',
    'escape.raw': 'EACCES',
    'protocol.raw': 'EACCES',
    'loop-a.raw': 'ELOOP',
    'loop-b.raw': 'ELOOP',
    'self.raw': 'ELOOP',
  };
  const status = await catalog.status();
  for (const [name, errno] of Object.entries(errnoOf)) {
    const entry = await lookup(catalog, name);
    assert.deepEqual(await sizeAndMode(entry), { sizeBytes: 0, mode: 0 }, name);
    await assert.rejects(entry.view.open(), { errno }, name);
    assert.equal(status.views.find((v) => v.name === name)?.error?.errno, errno, name);
    assert.ok(
      f.lines.some((line) => line.includes(name)),
      `${name} is in the log`,
    );
  }
  assert.equal((await contentOf(await lookup(catalog, 'good.raw'))).toString(), 'good');
});

test('an image that fails only when it is opened shows so afterwards, and is tried again', async (t) => {
  const f = await catalogFixture(t);
  const path = join(f.images, 'disk.stub');
  await writeStub(path, { unopenable: true });
  const catalog = await f.mount();
  const whole = await lookup(catalog, 'disk.raw');
  assert.equal((await whole.attributes()).sizeBytes, 1024);
  await assert.rejects(whole.view.open(), { errno: 'EIO' });
  const entry = await lookup(catalog, 'disk.raw');
  assert.deepEqual(await sizeAndMode(entry), { sizeBytes: 0, mode: 0 });
  assert.notEqual(entry.nodeId, whole.nodeId, 'a kernel that was told a size looks it up again');
  await assert.rejects(entry.view.open(), { errno: 'EIO' });
  assert.equal((await lookup(catalog, 'disk.raw')).nodeId, entry.nodeId);
  await writeStub(path, {}, Buffer.from('mended'));
  const mended = await lookup(catalog, 'disk.raw');
  assert.equal((await mended.attributes()).sizeBytes, 6);
  assert.equal((await contentOf(mended)).toString(), 'mended');
});
