/** What the store of jobs says is on disk is there after a power cut: the state directory lies on a file system in a file. Needs root. */
import assert from 'node:assert/strict';
import { access, mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { createLog, silentLog } from '../../../src/base/log.ts';
import { type JobRecord, JobStore } from '../../../src/job/job-store.ts';
import { loopFileSystem } from '../../support/loop-file-system.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';
import { breakCall } from '../../support/stalled-files.ts';

const FILE_SYSTEM_BYTES = 32 << 20;

const recordOf = (id: string, fields: Partial<JobRecord> = {}): JobRecord => ({
  id,
  command: 'block-stream',
  arguments: { device: id },
  imagePath: '/images/vm.qcow2',
  paused: false,
  result: null,
  ...fields,
});

const byId = (records: readonly JobRecord[]): readonly JobRecord[] =>
  [...records].sort((a, b) => (a.id < b.id ? -1 : 1));

test('what is kept, changed and forgotten of jobs is so after a power cut when the store has settled', async (t) => {
  const scratch = await scratchDirectory(t);
  const disk = await loopFileSystem('ext4', scratch, FILE_SYSTEM_BYTES);
  try {
    const store = new JobStore(join(disk.directory, 'state'), silentLog);
    /** What the next boot finds. */
    const cut = async (): Promise<readonly JobRecord[]> =>
      byId(await new JobStore(join(await disk.cut(), 'state'), silentLog).load());
    store.keep(recordOf('a'));
    store.keep(recordOf('b'));
    await store.settled();
    assert.deepEqual(await cut(), [recordOf('a'), recordOf('b')], 'kept');
    const ended = recordOf('a', { result: { error: null, offset: 10, lengthBytes: 10 } });
    store.keep(ended);
    await store.settled();
    assert.deepEqual(await cut(), [ended, recordOf('b')], 'changed');
    store.forget('b');
    await store.settled();
    assert.deepEqual(await cut(), [ended], 'forgotten');
    store.forget('a');
    await store.settled();
    assert.deepEqual(await cut(), [], 'the last one is forgotten');
    await assert.rejects(access(join(disk.directory, 'state')), 'a directory without jobs goes');
  } finally {
    await disk.close();
  }
});

const logged = async (t: Cleanup) => {
  const directory = join(await scratchDirectory(t), 'state');
  const lines: string[] = [];
  const log = createLog({ level: 'info', write: (line) => lines.push(line), journald: false });
  return { directory, lines, store: new JobStore(directory, log) };
};

test('of what is told at once the last is written, also of an id that was forgotten in between', async (t) => {
  const { directory, lines, store } = await logged(t);
  store.keep(recordOf('a', { paused: true }));
  store.forget('a');
  store.keep(recordOf('a'));
  store.keep(recordOf('b'));
  store.forget('b');
  await store.settled();
  assert.deepEqual(await new JobStore(directory, silentLog).load(), [recordOf('a')]);
  assert.deepEqual(await readdir(directory), ['a.job']);
  assert.deepEqual(lines, []);
});

test('a record that could not be written is written with the next change, and the log tells of it once', async (t) => {
  const { directory, lines, store } = await logged(t);
  await writeFile(directory, 'a file is in its place');
  for (let i = 0; i < 2; i++) store.keep(recordOf('a'));
  await store.settled();
  assert.equal(lines.length, 1);
  assert.match(lines[0] ?? '', /^warning .*state: jobs will not go on after a restart: /);
  await rm(directory);
  store.keep(recordOf('a'));
  await store.settled();
  assert.deepEqual(await new JobStore(directory, silentLog).load(), [recordOf('a')]);
});

test('a record that cannot be read does not hide the others, and the log says so, as it does of a directory that cannot be read', async (t) => {
  const { directory, lines, store } = await logged(t);
  store.keep(recordOf('a'));
  store.keep(recordOf('b'));
  await store.settled();
  await writeFile(join(directory, 'other.job'), '{"version":0}');
  breakCall(t, 'open', join(directory, 'a.job'));
  assert.deepEqual(await store.load(), [recordOf('b')]);
  assert.match(lines.join(''), /^warning .*state\/a\.job: i\/o error$/m);
  assert.match(lines.join(''), /^warning .*state\/other\.job: is no job of this version/m);
  lines.length = 0;
  breakCall(t, 'readdir', directory);
  assert.equal(await store.hasRecords(), false);
  assert.deepEqual(await store.load(), []);
  assert.equal(lines.length, 1);
  assert.match(
    lines[0] ?? '',
    /^warning .*state: jobs that are kept there wait for the next engine, or mount: i\/o error$/m,
  );
});

test('forgetting what is not there, where there is no directory, is no failure', async (t) => {
  const { directory, lines, store } = await logged(t);
  store.forget('a');
  await store.settled();
  await mkdir(directory);
  store.forget('a');
  await store.settled();
  assert.deepEqual(lines, []);
});
