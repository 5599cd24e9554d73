/** Backups whose source or target fails: what each policy makes of it, and what becomes of the bitmap that was copied from. */
import assert from 'node:assert/strict';
import { open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../src/base/block-error.ts';
import { silentLog } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../src/block/dirty-tracking.ts';
import type { Node } from '../../src/block/node.ts';
import type { View } from '../../src/block/view.ts';
import type { BackupOptions } from '../../src/job/backup.ts';
import type { ErrorPolicy } from '../../src/job/error-policy.ts';
import type { Job } from '../../src/job/job.ts';
import { JobList } from '../../src/job/job-list.ts';
import { delayedFile, type FileOperation } from '../support/delayed-file.ts';
import { imageView } from '../support/image-view.ts';
import { plainBackup } from '../support/plain-jobs.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const KIB = 1024;
const BYTES = 1 << 20;
/** The backup copies blocks of this size. */
const BLOCK = 64 * KIB;
/** The source has holes between its blocks of data, so that each is a copy of its own. */
const BAD = 4 * BLOCK;

type Fault = (operation: FileOperation, offset: number) => Promise<void>;

interface Scene {
  readonly view: View;
  readonly root: Node;
  readonly target: Node;
  readonly source: string;
  /** What happens before I/O on either file. */
  readonly on: { source: Fault; target: Fault };
}

const nothing: Fault = async () => undefined;

const scene = async (t: Cleanup): Promise<Scene> => {
  const directory = await scratchDirectory(t);
  const [source, copy] = [join(directory, 'source'), join(directory, 'target')];
  const file = await open(source, 'w');
  await file.truncate(BYTES);
  for (let at = 0; at < BYTES; at += 2 * BLOCK)
    await file.write(Buffer.alloc(BLOCK, 5), 0, BLOCK, at);
  await file.close();
  await writeFile(copy, Buffer.alloc(BYTES, 9));
  const on = { source: nothing, target: nothing };
  const before = (side: 'source' | 'target'): { before: Fault } => ({
    before: (operation, offset) => on[side](operation, offset),
  });
  const driver = delayedFile(source, before('source'), delayedFile(copy, before('target')));
  const graph = await testGraph({ directory, file: driver });
  const view = imageView(graph, { path: source, format: 'raw' }, 'source.raw');
  const root = await view.open();
  const target = await graph.open({ path: copy, format: 'raw', readOnly: false });
  t.after(async () => {
    await view.close();
    await graph.close(target);
  });
  return { view, root, target, source, on };
};

const backUp = (
  { view, root, target }: Scene,
  options: Partial<BackupOptions> & { readonly speed?: number } = {},
): Promise<Job> => {
  const { speed = 0, ...more } = options;
  const work = plainBackup({ view, root, target }, more);
  return view.drained(async () => {
    await work.begin();
    const fields = { id: 'job', type: 'backup', autoFinalize: true, autoDismiss: false } as const;
    return new JobList(silentLog).start({ ...fields, speed, nodes: [root], work });
  });
};

const broken = (): BlockError => new BlockError({ kind: 'io', message: 'the disk is broken' });
const full = (): BlockError => new BlockError({ kind: 'no-space', message: 'the disk is full' });

/** One block fails for as long as `fault.now` is set. */
const failing = (s: Scene, side: 'source' | 'target'): { now: BlockError | null } => {
  const fault: { now: BlockError | null } = { now: broken() };
  const bad = side === 'source' ? 'read' : 'write';
  s.on[side] = async (operation, offset) => {
    if (fault.now !== null && operation === bad && offset === BAD) throw fault.now;
  };
  return fault;
};

const until = async (job: Job, status: string): Promise<void> => {
  for (let i = 0; job.status !== status; i++) {
    assert.ok(i < 2000, `is ${job.status}, not ${status}`);
    await sleep(5);
  }
};

const policyOf = (side: 'source' | 'target', policy: ErrorPolicy): Partial<BackupOptions> =>
  side === 'source' ? { onSourceError: policy } : { onTargetError: policy };

/** The guest is served, before and after. */
const assertServed = async ({ view, source }: Scene): Promise<void> => {
  const bytes = Buffer.alloc(BLOCK, 6);
  await view.write(guestOffset(BYTES - BLOCK), bytes);
  const there = await readFile(source);
  assert.ok(there.subarray(0, BLOCK).every((byte) => byte === 5));
  assert.ok(there.subarray(BYTES - BLOCK).equals(bytes));
};

for (const side of ['source', 'target'] as const) {
  for (const policy of ['report', 'enospc'] as const) {
    test(`${side} error, ${policy}: a broken disk ends the job with it, and the guest goes on`, async (t) => {
      const s = await scene(t);
      failing(s, side);
      const job = await backUp(s, policyOf(side, policy));
      await until(job, 'concluded');
      assert.match(job.error ?? '', /the disk is broken/);
      await assertServed(s);
    });
  }

  test(`${side} error, ignore: all else is copied, and the job ends with the error`, async (t) => {
    const s = await scene(t);
    failing(s, side);
    const moment = await readFile(s.source);
    const job = await backUp(s, policyOf(side, 'ignore'));
    await until(job, 'concluded');
    assert.match(job.error ?? '', /the disk is broken/);
    moment.fill(9, BAD, BAD + BLOCK);
    assert.ok((await readFile(s.target.path)).equals(moment));
    await assertServed(s);
  });

  test(`${side} error, stop: the job waits, guests go on, and when it is resumed nothing is missing`, async (t) => {
    const s = await scene(t);
    const fault = failing(s, side);
    const moment = await readFile(s.source);
    const job = await backUp(s, policyOf(side, 'stop'));
    await until(job, 'paused');
    assert.equal(job.blockJobInfo()['io-status'], 'failed');
    await assertServed(s);
    fault.now = null;
    // It has to be copied before.
    await s.view.write(guestOffset(BAD + 100), Buffer.alloc(100, 7));
    job.resume();
    await until(job, 'concluded');
    assert.equal(job.error, null);
    assert.ok((await readFile(s.target.path)).equals(moment));
  });
}

test('a full disk pauses a backup with enospc', async (t) => {
  const s = await scene(t);
  const fault = failing(s, 'target');
  fault.now = full();
  const job = await backUp(s, policyOf('target', 'enospc'));
  await until(job, 'paused');
  assert.equal(job.blockJobInfo()['io-status'], 'nospace');
  fault.now = null;
  job.resume();
  await until(job, 'concluded');
  assert.equal(job.error, null);
});

test('a flush of the target that fails is an error of the job, whatever the policy', async (t) => {
  const s = await scene(t);
  s.on.target = async (operation) => {
    if (operation === 'flush') throw broken();
  };
  const job = await backUp(s, policyOf('target', 'ignore'));
  await until(job, 'concluded');
  s.on.target = nothing;
  assert.match(job.error ?? '', /the disk is broken/);
});

for (const mode of ['on-success', 'never', 'always'] as const) {
  for (const outcome of ['success', 'failure'] as const) {
    test(`sync bitmap, ${mode}: what is left in the bitmap after a ${outcome}`, async (t) => {
      const s = await scene(t);
      const { view, root } = s;
      const content = new DirtyBitmap({ lengthBytes: BYTES, granularityBytes: BLOCK });
      const bitmap = new TrackedBitmap({
        name: 'b',
        content,
        recording: true,
        persistent: false,
      });
      await root.dirtyBitmaps.add(bitmap);
      for (const at of [2 * BLOCK, BAD, 8 * BLOCK]) {
        await view.write(guestOffset(at), Buffer.alloc(BLOCK, 6));
      }
      if (outcome === 'failure') failing(s, 'target');
      const job = await backUp(s, {
        sync: 'bitmap',
        bitmap: { name: 'b', mode },
        speed: BLOCK * 10,
      });
      assert.equal(bitmap.user, "job 'job'");
      // Of the time after the moment, in every case.
      await view.write(guestOffset(14 * BLOCK), Buffer.alloc(100, 7));
      await until(job, 'concluded');
      assert.equal(job.error === null, outcome === 'success');
      assert.equal(bitmap.user, null);
      const target = await readFile(s.target.path);
      assert.deepEqual([target[0], target[2 * BLOCK]], [9, 6], 'what is dirty is copied');
      const left = Array.from({ length: 16 }, (_, i) => i * BLOCK).filter((at) =>
        bitmap.content.isDirty(at),
      );
      const all = [2 * BLOCK, BAD, 8 * BLOCK];
      if (outcome === 'success')
        assert.deepEqual(left, [...(mode === 'never' ? all : []), 14 * BLOCK]);
      else if (mode === 'always') {
        assert.ok(left.includes(BAD) && !left.includes(2 * BLOCK), `${left}`);
        assert.ok(left.includes(14 * BLOCK));
      } else assert.deepEqual(left, [...all, 14 * BLOCK]);
    });
  }
}
