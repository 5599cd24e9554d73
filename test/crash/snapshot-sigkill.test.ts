/**
 * SIGKILL at every step of making, applying and deleting a snapshot: whoever opens the image for writing finds every
 * answered write and snapshot, and leaves no cluster leaked.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { filesAfterKills, KillSteps, SteppedLog } from '../support/kill-steps.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { recordingFile } from '../support/recording-file.ts';
import { SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { checkContent, SnapshotWorkload, shownByUs } from '../support/snapshot-workload.ts';
import { testGraph } from '../support/test-graph.ts';

const CASES = [
  { options: 'cluster_size=512', sizeBytes: 96 << 10, isRepaired: true },
  { options: 'cluster_size=4k', sizeBytes: 400 << 10, isRepaired: true },
  // Without a dirty bit nobody looks for leaks and COPIED flags.
  { options: 'cluster_size=1k,compat=0.10', sizeBytes: 200 << 10, isRepaired: false },
];

for (const { options, sizeBytes, isRepaired } of CASES) {
  test(`a kill at any step of a snapshot loses nothing and leaks nothing: ${options}`, async (t) => {
    const directory = await scratchDirectory(t);
    const journals = join(directory, 'journals');
    await mkdir(journals);
    const path = join(directory, 'disk.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, path, String(sizeBytes)]);
    await qemuIo(path, ['write -P 1 0 40k']);
    const content = new Uint8Array(sizeBytes).fill(1, 0, 40 << 10);
    const start = new Uint8Array(await readFile(path));
    const steps = new KillSteps(journals);
    const log = new SteppedLog(steps);
    const file = recordingFile({ path, log });
    const graph = await testGraph({ directory, file, journalDirectory: journals });
    const open = () => graph.open({ path, format: 'qcow2', readOnly: false });
    const random = seededRandom(SEED + sizeBytes);
    // What guests have unmapped is given back by then, which no journal remembers.
    const work = new SnapshotWorkload(await open(), random, content, log, async (node) => {
      await graph.close(node);
      return open();
    });
    await graph.close(await work.run());
    // What was answered is there, synced or not.
    for (const { answered } of [...work.history.writes])
      work.history.flushes.push({ begun: answered, answered });
    let checked = 0;
    for (const { events } of filesAfterKills(steps, [path], [{ start, log }])) {
      if (!work.changes.some((c) => c.begun <= events && events < c.answered)) continue;
      const what = `seed ${SEED}: killed after event ${events} of ${log.events}`;
      const next = await testGraph({ directory, journalDirectory: journals });
      await next.close(await next.open({ path, format: 'qcow2', readOnly: false }));
      // What began at this event has begun.
      checkContent(await shownByUs(path), work, events + 0.5);
      assert.deepEqual(readdirSync(journals), [], `${what}: no journal is left`);
      await qemuImg(['check', '-q', '-f', 'qcow2', path], isRepaired ? [0] : [0, 2, 3]).catch(
        (error: Error) => assert.fail(`${what}: ${error.message}`),
      );
      checked++;
    }
    t.diagnostic(`${checked} of ${steps.kept.length} steps`);
  });
}
