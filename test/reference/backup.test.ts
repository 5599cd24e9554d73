/**
 * Backups under a guest that writes, against a model of bytes: whatever the order in which reads and writes end, the target shows
 * what the guest saw at the one moment, the guest sees what it wrote, and a bitmap has what was written since.
 */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { BlockError } from '../../src/base/block-error.ts';
import { silentLog } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../src/block/dirty-tracking.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import type { View } from '../../src/block/view.ts';
import { Backup, type BackupOptions } from '../../src/job/backup.ts';
import { BackupTarget } from '../../src/job/backup-target.ts';
import type { Job } from '../../src/job/job.ts';
import { JobList } from '../../src/job/job-list.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { imageView } from '../support/image-view.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const KIB = 1024;
/** Ends within a cluster. */
const BYTES = 1024 * KIB + 512;
const GRANULE = 16 * KIB;
const GUESTS = 3;

interface Step {
  readonly kind: 'write' | 'discard' | 'zero';
  readonly offset: number;
  readonly lengthBytes: number;
}

const steps = fc.array(
  fc.record({
    kind: fc.constantFrom<Step['kind']>('write', 'write', 'write', 'discard', 'zero'),
    offset: fc.nat(BYTES - 1),
    lengthBytes: fc.integer({ min: 1, max: 200 * KIB }),
  }),
  { minLength: 6, maxLength: 30 },
);

const cases = fc.record({
  source: fc.constantFrom('raw', 'qcow2', 'fine'),
  target: fc.constantFrom<'raw' | 'qcow2' | 'packed'>('raw', 'qcow2', 'packed'),
  sync: fc.constantFrom<'full' | 'top' | 'bitmap'>('full', 'top', 'bitmap'),
  /** The job is cancelled in the middle. */
  cancelled: fc.boolean(),
  seed: fc.integer({ min: 1, max: 2 ** 30 }),
  before: steps,
  during: steps,
});

type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

/** A base with some content, and a source over it where that can be. */
const makeImages = async (directory: string, c: Case): Promise<void> => {
  const at = (name: string): string => join(directory, name);
  await qemuImg(['create', '-q', '-f', 'qcow2', at('base'), String(BYTES)]);
  await qemuIo(at('base'), ['write -P 1 0 200k', 'write -P 2 500k 300k']);
  if (c.source === 'raw') await qemuImg(['convert', '-O', 'raw', at('base'), at('source')]);
  else {
    const cluster = c.source === 'fine' ? 4 : 64;
    const over = ['-o', `cluster_size=${cluster}k`, '-b', 'base', '-F', 'qcow2'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...over, at('source'), String(BYTES)]);
    await qemuIo(at('source'), ['write -P 3 100k 90k', 'write -z 510k 70k', 'write -P 4 900k 30k']);
  }
};

/** As the guest sees it. */
const contentOf = async (directory: string, name: string, format: string): Promise<Buffer> => {
  const flat = join(directory, `${name}.flat`);
  await qemuImg(['convert', '-f', format, '-O', 'raw', join(directory, name), flat]);
  return readFile(flat);
};

/** What the target is made as: for a part of the disk over what has the rest. */
const makeTarget = async (directory: string, c: Case, rest: string | null): Promise<string> => {
  const path = join(directory, 'target');
  const format = c.target === 'raw' && rest === null ? 'raw' : 'qcow2';
  const over = rest === null ? [] : ['-b', rest, '-F', rest === 'base' ? 'qcow2' : 'raw'];
  await qemuImg(['create', '-q', '-f', format, ...over, path, String(BYTES)]);
  return format;
};

/** Every operation of every file ends after another time, 0 to 3 ms. */
const shuffled = (seed: number): DriverDescriptor => {
  let state = seed;
  return delayedFile(null, {
    before: async () => {
      state = (state * 48271) % 0x7fffffff;
      await sleep(state % 4);
    },
  });
};

const apply = async (view: View, model: Buffer, step: Step, byte: number): Promise<void> => {
  const at = guestOffset(step.offset);
  const length = Math.min(step.lengthBytes, model.length - step.offset);
  const isWrite = step.kind === 'write';
  if (isWrite) await view.write(at, Buffer.alloc(length, byte));
  else if (step.kind === 'discard') await view.punchHole(at, length);
  else await view.zeroRange(at, length, { keepSize: true });
  model.fill(isWrite ? byte : 0, step.offset, step.offset + length);
};

/** Several guests, each in a part of the disk of its own, so that the model is one. */
const guests = async (view: View, model: Buffer, all: readonly Step[]): Promise<void> => {
  const part = Math.floor(BYTES / GUESTS);
  const run = async (guest: number): Promise<void> => {
    const start = guest * part;
    const own = model.subarray(start, guest === GUESTS - 1 ? BYTES : start + part);
    for (const [index, step] of all.entries()) {
      if (index % GUESTS !== guest) continue;
      const offset = step.offset % own.length;
      const lengthBytes = Math.min(step.lengthBytes, own.length - offset);
      const mine = { ...step, offset: start + offset, lengthBytes };
      await apply(view, model.subarray(0, start + own.length), mine, 16 + index);
    }
  };
  await Promise.all(Array.from({ length: GUESTS }, (_, guest) => run(guest)));
};

const addBitmap = async (root: Node): Promise<TrackedBitmap> => {
  const content = new DirtyBitmap({ lengthBytes: BYTES, granularityBytes: GRANULE });
  const bitmap = new TrackedBitmap({ name: 'b', content, recording: true, persistent: false });
  await root.dirtyBitmaps.add(bitmap);
  return bitmap;
};

const startBackup = async (
  jobs: JobList,
  options: Omit<BackupOptions, 'jobId' | 'ended' | 'onSourceError'>,
): Promise<Job> => {
  const { view, root } = options;
  const ended = async (): Promise<void> => undefined;
  const work = new Backup({ ...options, jobId: 'job', onSourceError: 'report', ended });
  return view.drained(async () => {
    await work.begin();
    return jobs.start({
      id: 'job',
      type: 'backup',
      speed: 0,
      autoFinalize: true,
      autoDismiss: false,
      nodes: [root],
      work,
    });
  });
};

const runCase = async (directory: string, c: Case): Promise<void> => {
  await makeImages(directory, c);
  const isRaw = c.source === 'raw';
  const format = isRaw ? 'raw' : 'qcow2';
  const model = await contentOf(directory, 'source', format);
  const graph = await testGraph({ directory, file: shuffled(c.seed) });
  const view = imageView(graph, { path: join(directory, 'source'), format }, 'source.raw');
  const root = await view.open();
  const bitmap = await addBitmap(root);
  if (c.sync === 'bitmap') await writeFile(join(directory, 'full'), model);
  await guests(view, model, c.before);
  const rest = c.sync === 'full' ? null : c.sync === 'bitmap' ? 'full' : isRaw ? null : 'base';
  const targetFormat = await makeTarget(directory, c, rest);
  const path = join(directory, 'target');
  const target = await graph.open({ path, format: targetFormat, readOnly: false });
  const moment = Buffer.from(model);
  const dirtyBefore = bitmap.content.copy();
  const jobs = new JobList(silentLog);
  const job = await startBackup(jobs, {
    view,
    root,
    target: new BackupTarget({
      node: target,
      compress: targetFormat === 'qcow2' && c.target === 'packed',
      leavesZeroesOut: rest === null,
    }),
    sync: c.sync,
    bitmap: { name: 'b', mode: 'on-success' },
    onTargetError: 'report',
    onCbwError: 'break-snapshot',
  });
  const writing = guests(view, model, c.during);
  if (c.cancelled) {
    await sleep(20);
    // It may have ended by then.
    if (job.status === 'running') job.cancel({ force: true });
  }
  await writing;
  await job.concluded;
  assert.equal(job.error, c.cancelled && job.error !== null ? 'Operation canceled' : null);
  await assertGuestSees(view, model);
  assertBitmap(bitmap, { moment, model, dirtyBefore, hasSucceeded: job.error === null });
  assert.equal(root.interposers.length, 0);
  assert.equal(root.dirtyBitmaps.bitmaps.size, 1);
  await graph.close(target);
  await view.close();
  if (targetFormat === 'qcow2') await assertClean(path);
  if (format === 'qcow2') await assertClean(join(directory, 'source'));
  if (job.error === null) {
    const copied = await contentOf(directory, 'target', targetFormat);
    assert.equal(differenceOf(copied, moment), null, 'the target shows the moment');
  }
};

const assertGuestSees = async (view: View, model: Buffer): Promise<void> => {
  const seen = Buffer.alloc(BYTES);
  await view.read(guestOffset(0), seen);
  assert.equal(differenceOf(seen, model), null, 'what the guest sees');
};

const differenceOf = (a: Buffer, b: Buffer): number | null => {
  for (let at = 0; at < BYTES; at++) if (a[at] !== b[at]) return at;
  return null;
};

/** What has changed since the moment is in it; after a failure, what was in it before as well. */
const assertBitmap = (
  { content }: TrackedBitmap,
  facts: {
    readonly moment: Buffer;
    readonly model: Buffer;
    readonly dirtyBefore: DirtyBitmap;
    readonly hasSucceeded: boolean;
  },
): void => {
  const { moment, model, dirtyBefore, hasSucceeded } = facts;
  for (let at = 0; at < BYTES; at += GRANULE) {
    const [then, now] = [moment, model].map((b) => b.subarray(at, at + GRANULE));
    if (then?.equals(now ?? Buffer.alloc(0)) === false)
      assert.ok(content.isDirty(at), `granule ${at}`);
    if (!hasSucceeded && dirtyBefore.isDirty(at)) assert.ok(content.isDirty(at), `kept ${at}`);
  }
};

test(`a backup is the moment at which it began, in every order of I/O (seed ${SEED})`, async (t) => {
  const root = await scratchDirectory(t);
  let run = 0;
  await fc.assert(
    fc.asyncProperty(cases, async (c) => {
      const directory = join(root, String(run++));
      await mkdir(directory);
      await runCase(directory, c);
    }),
    { seed: SEED, numRuns: countOf(12) },
  );
});

interface Failing {
  readonly view: View;
  readonly root: Node;
  readonly target: Node;
  readonly jobs: JobList;
  /** Writes of the target fail while it is set. */
  readonly fault: { now: BlockError | null };
}

/** A raw image and a raw target that can be made to fail; the source has 1 MiB of content. */
const failingScene = async (t: Cleanup): Promise<Failing> => {
  const directory = await scratchDirectory(t);
  const [source, path] = [join(directory, 'source'), join(directory, 'target')];
  await writeFile(source, Buffer.alloc(1 << 20, 5));
  await writeFile(path, Buffer.alloc(1 << 20));
  const fault: Failing['fault'] = { now: null };
  const file = delayedFile(path, {
    before: async (operation) => {
      await sleep(1);
      if (operation !== 'read' && operation !== 'flush' && fault.now !== null) throw fault.now;
    },
  });
  const graph = await testGraph({ directory, file });
  const view = imageView(graph, { path: source, format: 'raw' }, 'source.raw');
  const root = await view.open();
  const target = await graph.open({ path, format: 'raw', readOnly: false });
  t.after(async () => {
    await view.close();
    await graph.close(target);
  });
  return { view, root, target, jobs: new JobList(silentLog), fault };
};

const noRoom = new BlockError({ kind: 'no-space', message: 'the disk is full' });

const backUp = (
  s: Failing,
  options: Partial<Pick<BackupOptions, 'onTargetError' | 'onCbwError' | 'sync'>> = {},
): Promise<Job> =>
  startBackup(s.jobs, {
    view: s.view,
    root: s.root,
    target: new BackupTarget({ node: s.target, compress: false, leavesZeroesOut: false }),
    sync: 'full',
    bitmap: null,
    onTargetError: 'report',
    onCbwError: 'break-snapshot',
    ...options,
  });

test('a target that fails: report ends the job, ignore goes on and ends with the error', async (t) => {
  for (const onTargetError of ['report', 'ignore'] as const) {
    const s = await failingScene(t);
    s.fault.now = noRoom;
    const job = await backUp(s, { onTargetError });
    await job.concluded;
    assert.match(job.error ?? '', /the disk is full/);
    assert.equal(job.result?.offset, onTargetError === 'ignore' ? 1 << 20 : 0);
  }
});

test('a target that is full for a while: enospc pauses, resuming ends it, nothing is missing', async (t) => {
  const s = await failingScene(t);
  s.fault.now = noRoom;
  const job = await backUp(s, { onTargetError: 'enospc' });
  while (job.status !== 'paused') await sleep(5);
  assert.equal(job.blockJobInfo()['io-status'], 'nospace');
  s.fault.now = null;
  await s.view.write(guestOffset(100), Buffer.alloc(100, 6));
  job.resume();
  await job.concluded;
  assert.equal(job.error, null);
  const copied = Buffer.alloc(1 << 20);
  await s.target.read(guestOffset(0), copied);
  assert.deepEqual(copied, Buffer.alloc(1 << 20, 5));
});

test('what a guest overwrites cannot be saved: the job fails, or the write, as was asked for', async (t) => {
  for (const onCbwError of ['break-snapshot', 'break-guest-write'] as const) {
    const s = await failingScene(t);
    const job = await backUp(s, { sync: 'none', onCbwError });
    s.fault.now = noRoom;
    const writing = s.view.write(guestOffset(0), Buffer.alloc(100, 6));
    if (onCbwError === 'break-guest-write') {
      await assert.rejects(writing, (e: BlockError) => e.errno === 'EIO');
      job.cancel({ force: true });
      await job.concluded;
      assert.equal(job.error, 'Operation canceled');
    } else {
      await writing;
      await job.concluded;
      assert.match(job.error ?? '', /the disk is full/);
    }
    const seen = Buffer.alloc(1);
    await s.view.read(guestOffset(0), seen);
    assert.equal(seen[0], onCbwError === 'break-snapshot' ? 6 : 5);
  }
});

test('sync none: what is overwritten is in the target as it was, and nothing else, until it is cancelled', async (t) => {
  const s = await failingScene(t);
  const job = await backUp(s, { sync: 'none' });
  await s.view.write(guestOffset(200 * KIB), Buffer.alloc(100, 6));
  await sleep(50);
  assert.equal(job.status, 'running');
  job.cancel({ force: false });
  await job.concluded;
  const copied = Buffer.alloc(1 << 20);
  await s.target.read(guestOffset(0), copied);
  const expected = Buffer.alloc(1 << 20);
  expected.fill(5, 192 * KIB, 256 * KIB);
  assert.deepEqual(copied, expected);
});
