/** A disk that grows when a job on its chain is about to end: what it has gained reads as zeros, also where the base has data. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLog } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import { JobList } from '../../src/job/job-list.ts';
import type { JobWork } from '../../src/job/job-work.ts';
import { Stream } from '../../src/job/stream.ts';
import { imageView } from '../support/image-view.ts';
import { eventually } from '../support/mounted.ts';
import { type LayeredView, plainCommit } from '../support/plain-jobs.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const KIB = 1024;
const OLD_BYTES = 390 * KIB;
const NEW_BYTES = 1024 * KIB;

const stream = ({ graph, view, root, base }: LayeredView): JobWork =>
  new Stream({
    view,
    root,
    base,
    backingFile: null,
    onError: 'report',
    replaceBacking: (overlay, below) => graph.replaceBacking(overlay, below),
    ended: async () => undefined,
  });

for (const [type, work] of [
  ['stream', stream],
  ['commit', plainCommit],
] as const) {
  test(`a disk that has grown when its ${type} ends shows zeros where the base has data`, async (t) => {
    const directory = await scratchDirectory(t);
    const at = (name: string): string => join(directory, name);
    const make = async (name: string, bytes: number, below?: string): Promise<void> => {
      const link = below === undefined ? [] : ['-b', below, '-F', 'qcow2'];
      await qemuImg(['create', '-q', '-f', 'qcow2', ...link, at(name), String(bytes)]);
    };
    await make('base', NEW_BYTES);
    await qemuIo(at('base'), ['write -q -P 1 0 1M']);
    await make('mid', OLD_BYTES, 'base');
    await qemuIo(at('mid'), ['write -q -P 3 40k 30k']);
    await make('top', OLD_BYTES, 'mid');
    const graph = await testGraph({ directory });
    const own = type === 'commit' ? { downTo: at('base'), writable: [at('base')] } : undefined;
    const view = imageView(graph, { path: at('top'), format: 'qcow2', ownLayers: own }, 'top.raw');
    const root = await view.open();
    const [mid, base] = [root.backing, root.backing?.backing];
    assert.ok(mid && base);
    const job = new JobList(silentLog).start({
      id: 'job',
      type,
      speed: 0,
      autoFinalize: false,
      autoDismiss: false,
      nodes: [root],
      work: work({ graph, view, root, mid, base }),
    });
    await eventually('all is copied', async () => job.status === 'pending');
    await view.truncate(NEW_BYTES);
    const before = Buffer.alloc(NEW_BYTES);
    await view.read(guestOffset(0), before);
    assert.ok(before.subarray(OLD_BYTES).every((byte) => byte === 0));
    assert.equal(before[50 * KIB], 3);
    job.finalize();
    await job.concluded;
    assert.equal(job.error, null);
    const after = Buffer.alloc(NEW_BYTES);
    await view.read(guestOffset(0), after);
    assert.ok(after.equals(before), 'what the view shows');
    await view.close();
    for (const name of ['base', 'top']) await assertClean(at(name));
  });
}
