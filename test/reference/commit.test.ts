/** Commits of layers of other sizes than their neighbours: the view shows the same before, while they run, and afterwards. */
import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { present } from '../../src/base/assert.ts';
import { silentLog } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import { JobList } from '../../src/job/job-list.ts';
import { bytesOfImage, makeLayers, storedBytesOf } from '../support/chain-layers.ts';
import { EngineStand, imagesOf } from '../support/engine-stand.ts';
import { imageView } from '../support/image-view.ts';
import { plainCommit } from '../support/plain-jobs.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const KIB = 1024;
const TOP_BYTES = 1024 * KIB;

for (const [midBytes, baseBytes] of [
  [384 * KIB, 1024 * KIB],
  [1024 * KIB, 300 * KIB],
  [600 * KIB + 512, 900 * KIB],
] as const) {
  test(`a layer of ${midBytes} bytes goes into a base of ${baseBytes}`, async (t) => {
    const directory = await scratchDirectory(t);
    const at = (name: string): string => join(directory, name);
    const over = (below: string): string[] => ['-b', below, '-F', 'qcow2'];
    const make = (name: string, bytes: number, more: string[] = []): Promise<string> =>
      qemuImg(['create', '-q', '-f', 'qcow2', ...more, at(name), String(bytes)]);
    await make('base', baseBytes);
    await qemuIo(at('base'), ['write -P 1 0 200k', `write -P 2 ${baseBytes - 90 * KIB} 90k`]);
    await make('mid', midBytes, over('base'));
    await qemuIo(at('mid'), ['write -P 3 40k 30k', 'write -z 128k 64k', 'write -P 4 250k 50k']);
    await make('top', TOP_BYTES, over('mid'));
    await qemuIo(at('top'), ['write -P 5 100k 5k']);
    const graph = await testGraph({ directory });
    const path = at('top');
    const ownLayers = { downTo: at('base'), writable: [at('base')] };
    const view = imageView(graph, { path, format: 'qcow2', ownLayers }, 'top.raw');
    const root = await view.open();
    const [mid, base] = [root.backing, root.backing?.backing];
    assert.ok(mid && base && !base.readOnly && mid.readOnly);
    await assert.rejects(
      graph.open({ path: at('mid'), format: 'qcow2', readOnly: true }),
      /commits/,
    );
    const before = Buffer.alloc(TOP_BYTES);
    await view.read(guestOffset(0), before);
    const work = plainCommit({ graph, view, root, mid, base });
    const fields = { id: 'job', type: 'commit', speed: 0, autoFinalize: true } as const;
    const job = new JobList(silentLog).start({
      ...fields,
      autoDismiss: false,
      nodes: [root],
      work,
    });
    await view.write(guestOffset(700 * KIB), Buffer.alloc(KIB, 6));
    before.fill(6, 700 * KIB, 701 * KIB);
    await job.concluded;
    assert.equal(job.error, null);
    const after = Buffer.alloc(TOP_BYTES);
    await view.read(guestOffset(0), after);
    assert.ok(after.equals(before), 'what the view shows');
    await view.close();
    assert.equal(graph.nodes.size, 0, 'nothing stays open');
    for (const name of ['base', 'top']) await assertClean(at(name));
    const info = (await qemuImgJson('info', [at('top')])) as { 'backing-filename'?: string };
    assert.equal(info['backing-filename'], 'base');
  });
}

test('an add-cow image that becomes complete while it is committed is empty afterwards, and shows the base', async (t) => {
  const directory = await scratchDirectory(t);
  const images = imagesOf(directory);
  await mkdir(images);
  const layer = { lengthBytes: TOP_BYTES, clusterBytes: 64 * KIB, content: [] };
  const layers = [
    { ...layer, name: 'base', format: 'qcow2' },
    { ...layer, name: 'top', format: 'add-cow' },
  ] as const;
  await makeLayers(images, layers);
  const stand = await EngineStand.open({ directory });
  const view = await stand.view('top.raw');
  await stand.execute('block-commit', { device: 'top', 'job-id': 'job', 'auto-dismiss': false });
  const job = present(stand.job('job'), 'the job has begun');
  const bytes = Buffer.alloc(TOP_BYTES, 7);
  await view.write(guestOffset(0), bytes);
  await view.flush();
  while (job.status === 'running') await sleep(5);
  job.complete();
  await job.concluded;
  assert.equal(job.error, null);
  await stand.close();
  const top = join(images, 'top.add-cow');
  assert.equal(await storedBytesOf(directory, top, 'add-cow'), 0);
  assert.ok((await bytesOfImage(directory, top, 'add-cow')).equals(bytes));
});
