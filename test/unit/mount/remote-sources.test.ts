/** URLs as sources of a mount, and as bases of its images: nobody waits for a server that does not answer. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { RemoteLooks } from '../../../mount/catalog/remote-looks.ts';
import type { Catalog } from '../../../mount/catalog.ts';
import type { Entry } from '../../../mount/directory.ts';
import { BlockError } from '../../../src/base/block-error.ts';
import { guestOffset } from '../../../src/base/units.ts';
import { httpOrigin } from '../../support/http-origin.ts';
import { eventually } from '../../support/mounted.ts';
import { patternBytes } from '../../support/remote-node.ts';
import { catalogFixture } from './catalog-fixture.ts';

const CONTENT = patternBytes(100_000);

const entryOf = async (catalog: Catalog, name: string): Promise<Entry> => {
  const entry = await catalog.lookup(name);
  assert.ok(entry !== null, `${name} is shown`);
  return entry;
};

const readStart = async (entry: Entry): Promise<Buffer> => {
  const buffer = Buffer.alloc(1000);
  await entry.view.read(guestOffset(0), buffer);
  return buffer;
};

const hasErrno = (errno: string) => (error: unknown) =>
  error instanceof BlockError && error.errno === errno;

test('a URL is a view by the last part of its path, read-only, without a lock', async (t) => {
  const f = await catalogFixture(t);
  const origin = await httpOrigin(t, CONTENT);
  const catalog = await f.mount({ sources: [{ name: null, path: origin.url('a/my%20disk.img') }] });
  const entry = await entryOf(catalog, 'my disk.raw');
  const attributes = await entry.attributes();
  assert.equal(attributes.sizeBytes, CONTENT.length);
  assert.equal(attributes.mode, 0o400);
  assert.match(entry.view.readOnlyReason ?? '', /for reading only/);
  assert.deepEqual(await readStart(entry), CONTENT.subarray(0, 1000));
  assert.equal(f.locks.held.size, 0);
  assert.equal((await catalog.space()).totalBytes, CONTENT.length);
  assert.equal((await catalog.rootAttributes()).mode, 0o755);
});

test('a server that does not answer delays a mount by seconds at most, and its view is listed', async (t) => {
  const f = await catalogFixture(t);
  await writeFile(join(f.images, 'local.img'), CONTENT);
  const origin = await httpOrigin(t, CONTENT);
  origin.behaviour = () => true;
  const began = performance.now();
  const catalog = await f.mount({
    sources: [
      { name: null, path: f.images },
      { name: 'far', path: origin.url() },
    ],
  });
  assert.ok(performance.now() - began < 6000, `${performance.now() - began} ms`);
  const far = await entryOf(catalog, 'far.raw');
  const { sizeBytes, mode } = await far.attributes();
  assert.deepEqual({ sizeBytes, mode }, { sizeBytes: 0, mode: 0 });
  const { views } = await catalog.status();
  assert.match(views.find((v) => v.name === 'far.raw')?.error?.text ?? '', /not answered yet/);
  const again = performance.now();
  assert.deepEqual(await readStart(await entryOf(catalog, 'local.raw')), CONTENT.subarray(0, 1000));
  await entryOf(catalog, 'far.raw');
  assert.ok(performance.now() - again < 2000, 'and nobody waits for it again');
  origin.behaviour = () => false;
  for (const { connection } of origin.asked) connection.destroy();
  await eventually(
    'the view is there when its server answers',
    async () => {
      const entry = await entryOf(catalog, 'far.raw');
      return (await entry.attributes()).sizeBytes === CONTENT.length;
    },
    40_000,
  );
  const mended = await entryOf(catalog, 'far.raw');
  assert.notEqual(mended.nodeId, far.nodeId, 'a kernel knows the size of the old node');
  assert.deepEqual(await readStart(mended), CONTENT.subarray(0, 1000));
});

test('a single URL whose server is not there fails the mount', async (t) => {
  const f = await catalogFixture(t);
  const origin = await httpOrigin(t, CONTENT);
  await origin.stop();
  await assert.rejects(
    f.mount({ sources: [{ name: null, path: origin.url() }] }),
    (error: unknown) => error instanceof BlockError && /ECONNREFUSED/.test(error.message),
  );
  await origin.start();
});

test('a file that changes on its server is ESTALE, and then another node with the new content', async (t) => {
  const f = await catalogFixture(t);
  const origin = await httpOrigin(t, CONTENT);
  const catalog = await f.mount({ sources: [{ name: null, path: origin.url() }] });
  const before = await entryOf(catalog, 'disk.raw');
  catalog.opened(before);
  assert.deepEqual(await readStart(before), CONTENT.subarray(0, 1000));
  origin.content = patternBytes(50_000, 7);
  origin.etag = '"two"';
  await assert.rejects(readStart(before), hasErrno('ESTALE'));
  const after = await entryOf(catalog, 'disk.raw');
  assert.notEqual(after.nodeId, before.nodeId);
  assert.equal((await after.attributes()).sizeBytes, 50_000);
  assert.deepEqual(await readStart(after), origin.content.subarray(0, 1000));
  await assert.rejects(readStart(before), hasErrno('ESTALE'), 'the open handle stays what it was');
  catalog.released(before);
});

test('one that changed while nobody had it open is ESTALE at the opening, so that old pages go', async (t) => {
  const f = await catalogFixture(t);
  const origin = await httpOrigin(t, CONTENT);
  const catalog = await f.mount({ sources: [{ name: null, path: origin.url() }] });
  const before = await entryOf(catalog, 'disk.raw');
  await readStart(before);
  await before.view.close();
  origin.etag = '"two"';
  await assert.rejects(readStart(before), hasErrno('ESTALE'));
  await eventually('a new node takes its place', async () => {
    return (await entryOf(catalog, 'disk.raw')).nodeId !== before.nodeId;
  });
});

test('looks at one thing are one look; whoever waits too long is told, and told again at once', async () => {
  let looks = 0;
  let answered = 0;
  let finish = (): void => undefined;
  const remote = new RemoteLooks({ answered: () => answered++, patienceMs: 50 });
  const work = async (): Promise<string> => {
    looks++;
    await new Promise<void>((resolve) => (finish = resolve));
    return 'found';
  };
  const look = (patient = false) => remote.look('x', work, { patient });
  const patient = look(true);
  await Promise.all([1, 2, 3].map(() => assert.rejects(look(), /not answered yet/)));
  assert.equal(looks, 1);
  const began = performance.now();
  await assert.rejects(look(), /not answered yet/);
  assert.ok(performance.now() - began < 45);
  finish();
  assert.equal(await patient, 'found');
  assert.equal(answered, 1);
  assert.equal(await look(), 'found');
  assert.equal(looks, 1, 'what was found a moment ago is not asked for again');
  remote.forget();
  const next = look();
  finish();
  assert.equal(await next, 'found');
  assert.equal(looks, 2);
});
