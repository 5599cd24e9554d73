/** Views that go on over other images: what is remembered, in which order, and what a catalog makes of it later. */
import assert from 'node:assert/strict';
import { mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { StandIns } from '../../../mount/catalog/stand-ins.ts';
import type { Catalog } from '../../../mount/catalog.ts';
import { silentLog } from '../../../src/base/log.ts';
import { guestOffset } from '../../../src/base/units.ts';
import type { Node } from '../../../src/block/node.ts';
import type { View } from '../../../src/block/view.ts';
import { StandInStore } from '../../../src/daemon/stand-in-store.ts';
import { writeStub } from '../../support/stub-format.ts';
import { catalogFixture, type Fixture, namesOf } from './catalog-fixture.ts';

const viewNamed = async (catalog: Catalog, name: string): Promise<View> => {
  const entry = await catalog.lookup(name);
  assert.ok(entry !== null, `${name} is shown`);
  return entry.view;
};

const textOf = async (view: View): Promise<string> => {
  const buffer = Buffer.alloc(8);
  await view.read(guestOffset(0), buffer);
  return buffer.toString('latin1').replaceAll('\0', '');
};

const content = (text: string): Buffer => Buffer.concat([Buffer.from(text), Buffer.alloc(1000)]);

interface Scene {
  readonly f: Fixture;
  readonly source: string;
  readonly target: string;
  readonly stateDirectory: string;
  readonly mount: (standIns?: StandIns) => Promise<Catalog>;
  readonly pivot: (catalog: Catalog) => Promise<View>;
}

/** `disk.stub` in the source directory, `moved.stub` outside of it; `keeps`: of another directory. */
const scene = async (t: Parameters<typeof catalogFixture>[0]): Promise<Scene> => {
  const f = await catalogFixture(t);
  const source = join(f.images, 'disk.stub');
  const target = join(f.outside, 'moved.stub');
  const stateDirectory = join(f.outside, 'state');
  await writeStub(source, {}, content('old'));
  await writeStub(target, {}, content('new'));
  const mount = async (standIns?: StandIns): Promise<Catalog> =>
    f.mount({
      standIns:
        standIns ?? (await StandInStore.load({ directory: stateDirectory, log: silentLog })),
    });
  const pivot = async (catalog: Catalog): Promise<View> => {
    const view = await viewNamed(catalog, 'disk.raw');
    await view.open();
    const graph = f.graph();
    const node = await graph.open({
      path: target,
      format: 'stub',
      readOnly: false,
      asTarget: true,
    });
    let old: Node | null = null;
    try {
      await view.drained(async () => {
        old = await catalog.pivot(view, node, { reopens: false });
      });
    } finally {
      await graph.close(old ?? node);
    }
    await catalog.rescan();
    return view;
  };
  return { f, source, target, stateDirectory, mount, pivot };
};

test('a view goes on over the target with its name, its node and its locks', async (t) => {
  const { f, source, target, mount, pivot } = await scene(t);
  const catalog = await mount();
  const before = await catalog.lookup('disk.raw');
  const view = await pivot(catalog);
  const after = await catalog.lookup('disk.raw');
  assert.equal(after?.nodeId, before?.nodeId);
  assert.equal(after?.view, view);
  assert.equal(await textOf(view), 'new');
  assert.equal(f.locks.modeOf(target), 'write');
  assert.equal(f.locks.modeOf(source), null);
  const [status] = (await catalog.status()).views;
  assert.equal(status?.path, target);
  assert.equal(status?.standsInFor, source);
  await view.write(guestOffset(0), Buffer.from('written'));
  await view.close();
  assert.equal(await textOf(view), 'written', 'opened again, it is the target');
});

test('what it stands for is remembered before the root is swapped; what cannot be remembered does not happen', async (t) => {
  const { f, target, mount, pivot, source } = await scene(t);
  const seen: (string | undefined)[] = [];
  let catalog: Catalog | null = null;
  let fails = true;
  const standIns: StandIns = {
    all: [],
    put: async (record) => {
      seen.push((await viewNamed(catalog as Catalog, 'disk.raw')).root?.path, record.target);
      if (fails) throw new Error('the disk is full');
    },
    remove: async () => undefined,
  };
  catalog = await mount(standIns);
  await assert.rejects(pivot(catalog), /the disk is full/);
  const view = await viewNamed(catalog, 'disk.raw');
  assert.equal(await textOf(view), 'old');
  assert.equal(f.locks.modeOf(target), null);
  fails = false;
  await pivot(catalog);
  assert.deepEqual(seen, [source, target, source, target]);
});

test('catalogs that come later know it, also when the original is gone', async (t) => {
  const { source, mount, pivot } = await scene(t);
  const first = await mount();
  await pivot(first);
  await first.close();
  for (const isThere of [true, false]) {
    if (!isThere) await rm(source);
    const later = await mount();
    assert.deepEqual(await namesOf(later), ['disk.raw']);
    const view = await viewNamed(later, 'disk.raw');
    assert.equal(await textOf(view), 'new');
    assert.equal(view.readOnlyReason, null);
    await later.close();
  }
});

test('a target that is missing leaves the original, read-only; it is found again when it is back', async (t) => {
  const { target, mount, pivot } = await scene(t);
  const first = await mount();
  await pivot(first);
  await first.close();
  await rename(target, `${target}.away`);
  const without = await mount();
  const view = await viewNamed(without, 'disk.raw');
  assert.equal(await textOf(view), 'old');
  assert.match(view.readOnlyReason ?? '', /moved\.stub', which it went on with, is not there/);
  await without.close();
  await rename(`${target}.away`, target);
  const again = await mount();
  assert.equal(await textOf(await viewNamed(again, 'disk.raw')), 'new');
  await again.close();
});

test('another file that takes the place of the original is shown as what it is', async (t) => {
  const { source, mount, pivot } = await scene(t);
  const first = await mount();
  await pivot(first);
  await first.close();
  await writeStub(`${source}.other`, {}, content('other'));
  await rename(`${source}.other`, source);
  const later = await mount();
  assert.equal(await textOf(await viewNamed(later, 'disk.raw')), 'other');
});

test('a base that the original still has stays read-only', async (t) => {
  const s = await scene(t);
  await writeStub(join(s.f.images, 'base.stub'), {}, content('base'));
  await writeStub(s.source, { backing: 'base.stub' }, content('old'));
  const catalog = await s.mount();
  await s.pivot(catalog);
  const base = await viewNamed(catalog, 'base.raw');
  assert.match(base.readOnlyReason ?? '', /disk\.stub' uses it as its backing image/);
  await rm(s.source);
  await catalog.rescan();
  assert.equal((await viewNamed(catalog, 'base.raw')).readOnlyReason, null);
});

test('a file that is reserved has no view; one that is used cannot be reserved', async (t) => {
  const { f, source, mount } = await scene(t);
  const other = join(f.images, 'other.stub');
  await writeStub(other);
  const catalog = await mount();
  const release = await catalog.reserve(other, 'is a target');
  assert.deepEqual(await namesOf(catalog), ['disk.raw']);
  assert.equal(f.locks.modeOf(other), null);
  await release();
  assert.deepEqual(await namesOf(catalog), ['disk.raw', 'other.raw']);
  const entry = await catalog.lookup('disk.raw');
  assert.ok(entry !== null);
  catalog.opened(entry);
  await assert.rejects(catalog.reserve(source, 'is a target'), /its view disk\.raw is in use/);
});

test('records survive on disk one by one; what is none is left alone', async (t) => {
  const { f, stateDirectory } = await scene(t);
  const record = {
    original: '/images/a.qcow2',
    fileName: 'a.qcow2',
    named: false,
    declaredName: null,
    key: '1:2:3',
    target: 'nbd://there/a',
    format: 'raw',
  };
  const store = await StandInStore.load({ directory: stateDirectory, log: silentLog });
  await store.put(record);
  await store.put({ ...record, target: '/elsewhere/a.qcow2' });
  await store.put({ ...record, original: '/images/b.qcow2' });
  await mkdir(join(f.outside, 'more'));
  await writeFile(join(stateDirectory, 'broken.view'), '{');
  await writeFile(join(stateDirectory, '0123456789abcdef.view'), '{"version":1}');
  const again = await StandInStore.load({ directory: stateDirectory, log: silentLog });
  assert.deepEqual(again.all.map(({ original, target }) => [original, target]).sort(), [
    ['/images/a.qcow2', '/elsewhere/a.qcow2'],
    ['/images/b.qcow2', 'nbd://there/a'],
  ]);
  await again.remove('/images/a.qcow2');
  await again.remove('/images/b.qcow2');
  assert.equal((await readdir(stateDirectory)).length, 2, 'nothing of its own is left');
});
