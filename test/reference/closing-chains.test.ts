/**
 * What is being closed still has its files: commands that need one of them to themselves wait for that, and are told what hangs
 * when it does not end.
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../src/base/assert.ts';
import { endsWithin } from '../../src/base/bounded-wait.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Job } from '../../src/job/job.ts';
import { makeLayers } from '../support/chain-layers.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { EngineStand, imagesOf, standDirectory } from '../support/engine-stand.ts';
import type { Cleanup } from '../support/scratch.ts';
import { until } from '../support/until.ts';

const MIB = 1 << 20;

interface Scene {
  readonly stand: EngineStand;
  /** In the source directory. */
  readonly at: (name: string) => string;
  readonly answer: () => void;
  /** Begins one, and gives it up when the target hangs, which it does until `answer`. */
  readonly mirror: () => Promise<void>;
}

/** Three layers below a view that is mirrored to a target over the lower two, and the target hangs in a write. */
const scene = async (t: Cleanup): Promise<Scene> => {
  const { directory, opened } = await standDirectory(t);
  const at = (name: string): string => join(imagesOf(directory), name);
  const layer = { format: 'qcow2', lengthBytes: MIB, clusterBytes: 64 << 10 } as const;
  const content = [{ kind: 'write', offset: 0, lengthBytes: MIB / 2 }] as const;
  const layers = ['base', 'mid', 'top'].map((name) => ({ ...layer, name, content }));
  await makeLayers(imagesOf(directory), layers);
  const target = at('copy.qcow2');
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  let hangs = 0;
  let isHanging = false;
  const file = delayedFile(target, {
    before: async (operation) => {
      if (operation !== 'write' || !isHanging) return;
      hangs++;
      await answered;
    },
  });
  const stand = await EngineStand.open({ directory, file });
  opened.push(stand);
  const view = await stand.view('top.raw');
  await view.open();
  const mirror = async (): Promise<void> => {
    const given = { device: 'top', 'job-id': 'job', target, format: 'qcow2', sync: 'top' };
    await stand.execute('drive-mirror', given);
    const job = jobOf(stand);
    await until('it is ready', () => job.status === 'ready');
    isHanging = true;
    await view.write(guestOffset(0), Buffer.alloc(4096, 1));
    await until('the target hangs', () => hangs > 0);
    job.cancel({ force: true });
    await job.concluded;
    assert.ok(
      [...stand.graph.nodes].every(({ path }) => path !== target),
      'what is being closed is no node any more',
    );
    isHanging = false;
  };
  t.after(async () => answer());
  return { stand, at, answer: () => answer(), mirror };
};

const jobOf = (stand: EngineStand): Job => present(stand.job('job'), 'the job has begun');

const COMMIT = { device: 'top', 'job-id': 'job', 'auto-dismiss': false };

test('a commit waits for a target that is being closed, and has the layers of the commit below it', async (t) => {
  const { stand, at, answer, mirror } = await scene(t);
  await mirror();
  const begun = stand.execute('block-commit', { ...COMMIT, top: at('mid.qcow2') });
  assert.equal(await endsWithin(begun, 100), false, 'the layers are still used');
  answer();
  await begun;
  const job = jobOf(stand);
  await job.concluded;
  assert.equal(job.error, null);
});

test('a commit is refused when what uses its layers does not get closed, and its layers are free again', async (t) => {
  const { stand, at, answer, mirror } = await scene(t);
  await mirror();
  const commit = { ...COMMIT, top: at('mid.qcow2') };
  await assert.rejects(stand.execute('block-commit', commit), /copy\.qcow2' still uses it.*close/);
  answer();
  await stand.execute('block-commit', commit);
  await jobOf(stand).concluded;
  assert.equal(jobOf(stand).error, null);
});

test('a mirror to a target that an earlier one is letting go waits for that, and has it to itself then', async (t) => {
  const { stand, at, answer, mirror } = await scene(t);
  await mirror();
  const given = { device: 'top', 'job-id': 'job', format: 'qcow2', sync: 'full' };
  const target = at('copy.qcow2');
  const begun = stand.execute('drive-mirror', { ...given, target });
  assert.equal(await endsWithin(begun, 100), false, 'the target is still written');
  answer();
  await begun;
  const job = jobOf(stand);
  await until('it is ready', () => job.status === 'ready');
  await assert.rejects(stand.view('copy.raw'), /there is no view/, 'a target has no view');
  job.complete();
  await job.concluded;
  assert.equal(job.error, null);
});
