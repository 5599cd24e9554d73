/** What is known of stand-ins while the disk that they are kept on hangs, in this engine and in the next. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { access, mkdir, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import type { StandIn } from '../../../mount/catalog/stand-ins.ts';
import { GIVE_UP_MS } from '../../../src/base/bounded-wait.ts';
import { createLog, silentLog } from '../../../src/base/log.ts';
import { type KeptStandIns, StandInStore } from '../../../src/daemon/stand-in-store.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';
import { breakCall, type Stall, stall } from '../../support/stalled-files.ts';

const ORIGINAL = '/images/a.qcow2';

const standIn = (target: string): StandIn => ({
  original: ORIGINAL,
  fileName: 'a.qcow2',
  named: false,
  declaredName: null,
  key: '1:2:3',
  target,
  format: 'qcow2',
});

const [A, B] = [standIn('/targets/a.qcow2'), standIn('/targets/b.qcow2')];

const scene = async (t: Cleanup) => {
  const directory = join(await scratchDirectory(t), 'state');
  await mkdir(directory);
  const digest = createHash('sha256').update(ORIGINAL).digest('hex').slice(0, 16);
  const lines: string[] = [];
  const log = createLog({ level: 'info', write: (line) => lines.push(line), journald: false });
  const told: (KeptStandIns | null)[] = [];
  const tell = async (kept: KeptStandIns | null): Promise<void> => void told.push(kept);
  const options = { directory, log, tell };
  const onDisk = async (): Promise<readonly StandIn[]> =>
    (await StandInStore.load({ directory, log: silentLog })).all;
  return { directory, path: join(directory, `${digest}.view`), lines, told, options, onDisk };
};

type Scene = Awaited<ReturnType<typeof scene>>;

/** A has been recorded; B is to be, and a call hangs for longer than is waited for. */
const stalledPut = async (t: TestContext, found: Scene, stalled: () => Stall) => {
  const store = await StandInStore.load(found.options);
  await store.put(A);
  found.told.length = 0;
  const { reached, end } = stalled();
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const outcome = store.put(B).then(
    () => null,
    (error: unknown) => String(error),
  );
  await reached;
  t.mock.timers.tick(GIVE_UP_MS);
  const error = await outcome;
  t.mock.timers.reset();
  return { store, error, end };
};

test('a record that is not made in time is not made later either', async (t) => {
  const found = await scene(t);
  const { path, told, onDisk } = found;
  const fresh = `${path}.new`;
  const { store, error, end } = await stalledPut(t, found, () => stall(t, 'open', fresh));
  assert.match(error ?? '', /does not answer for 5 s/);
  assert.deepEqual(store.all, [A]);
  assert.deepEqual(told, [null, { records: [A], owed: [] }]);
  end();
  // One change after the other.
  const other = { ...A, original: '/images/other.qcow2' };
  await store.put(other);
  await store.remove(other.original);
  assert.deepEqual(await onDisk(), [A]);
  await assert.rejects(access(fresh), { code: 'ENOENT' });
});

test('a record that may be made after it was given up is taken back, and engines that come know of that', async (t) => {
  const found = await scene(t);
  const { path, told, lines, onDisk, options } = found;
  const renaming = (): Stall => stall(t, 'rename', `${path}.new`);
  const { store, error, end } = await stalledPut(t, found, renaming);
  assert.match(error ?? '', /does not answer for 5 s/);
  assert.deepEqual(store.all, [A]);
  assert.deepEqual(told, [null, { records: [A], owed: [ORIGINAL] }]);
  assert.match(
    lines.join(''),
    /^error .*\.view: does not answer for 5 s: a pivot is given up, and/,
  );
  end();
  await store.settled();
  assert.deepEqual(await onDisk(), [A]);
  await turn();
  assert.deepEqual(told.at(-1), { records: [A], owed: [] });

  const later = StandInStore.inherit(options, { records: [], owed: [ORIGINAL] });
  assert.deepEqual(later.all, []);
  await later.settled();
  assert.deepEqual(await onDisk(), []);
  await turn();
  assert.deepEqual(told.at(-1), { records: [], owed: [] });
});

test('a record that is made is not taken back because its directory is not synced in time', async (t) => {
  const found = await scene(t);
  const { directory, told, lines, onDisk } = found;
  const { store, error } = await stalledPut(t, found, () => stall(t, 'open', directory));
  assert.equal(error, null);
  assert.deepEqual(store.all, [B]);
  assert.deepEqual(told, [null, { records: [B], owed: [] }]);
  assert.match(lines.join(''), /^error .*a power cut may undo what a view stands for: .*does not/);
  assert.deepEqual(await onDisk(), [B]);
});

test('an engine that inherits what views stand for asks no disk, and one that does not waits five seconds', async (t) => {
  const { directory, told, options } = await scene(t);
  const { reached } = stall(t, 'readdir', directory);
  assert.deepEqual(StandInStore.inherit(options, { records: [A], owed: [] }).all, [A]);
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const loading = assert.rejects(StandInStore.load(options), {
    errno: 'ETIMEDOUT',
    path: directory,
  });
  await reached;
  t.mock.timers.tick(GIVE_UP_MS);
  await loading;
  assert.deepEqual(told, []);
});

test('a record that cannot be read is not passed over; what is none is', async (t) => {
  const { directory, path, lines, options } = await scene(t);
  await (await StandInStore.load(options)).put(A);
  await writeFile(join(directory, 'text.view'), 'no JSON');
  await writeFile(join(directory, 'null.view'), 'null');
  await mkdir(join(directory, 'directory.view'));
  await symlink(path, join(directory, 'link.view'));
  assert.deepEqual((await StandInStore.load(options)).all, [A]);
  assert.equal(lines.filter((line) => line.startsWith('warning')).length, 4);
  breakCall(t, 'open', path);
  await assert.rejects(StandInStore.load(options), {
    errno: 'EIO',
    path,
    hint: /which image a view has gone on with/,
  });
});
