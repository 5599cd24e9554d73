/**
 * SIGKILL at every step: before and after each write, zeroing, change of length and flush of the image's file, in every phase
 * of journal and checkpoint. The file is what the host has of it then, the journal lies beside it, and whoever opens the
 * image finds every answered write.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { guestFlush, guestResize, guestStep, packedStep } from '../support/guest-steps.ts';
import { filesAfterKills, KillSteps, SteppedLog } from '../support/kill-steps.ts';
import type { RecordedFile } from '../support/power-cut.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

interface Case {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  readonly maxBytes: number;
  readonly packs: boolean;
  readonly snapshot: boolean;
  readonly dataFile?: boolean;
}

const CASES: readonly Case[] = [
  {
    name: 'small clusters, sizes that change',
    options: 'cluster_size=512',
    sizeBytes: 160 << 10,
    maxBytes: 400 << 10,
    packs: false,
    snapshot: false,
  },
  {
    name: 'packed clusters, and what a snapshot shares',
    options: 'cluster_size=4k',
    sizeBytes: 300 << 10,
    maxBytes: 300 << 10,
    packs: true,
    snapshot: true,
  },
  {
    name: 'subclusters',
    options: 'cluster_size=16k,extended_l2=on',
    sizeBytes: 400 << 10,
    maxBytes: 700 << 10,
    packs: false,
    snapshot: false,
  },
  {
    name: 'an external data file',
    options: 'cluster_size=1k',
    sizeBytes: 160 << 10,
    maxBytes: 300 << 10,
    packs: false,
    snapshot: false,
    dataFile: true,
  },
];

const WRITES = 40;

const makeImage = async (directory: string, c: Case): Promise<[string, Uint8Array]> => {
  const image = join(directory, 'disk.qcow2');
  const content = new Uint8Array(c.maxBytes);
  const base = new Uint8Array(c.sizeBytes - 1000).map((_, i) => 1 + (i % 250));
  await writeFile(join(directory, 'base.raw'), base);
  content.set(base);
  const below = ['-b', join(directory, 'base.raw'), '-F', 'raw'];
  const data = c.dataFile === true ? `,data_file=${join(directory, 'disk.data')}` : '';
  const options = ['-o', `${c.options}${data}`, ...below];
  await qemuImg(['create', '-q', '-f', 'qcow2', ...options, image, `${c.sizeBytes}`]);
  if (!c.snapshot) return [image, content];
  await qemuIo(image, ['write -P 0xee 0 64k'], ['-f', 'qcow2']);
  await qemuImg(['snapshot', '-c', 'before', image]);
  return [image, content.fill(0xee, 0, 64 << 10)];
};

for (const c of CASES) {
  test(`a kill at any step loses no answered write: ${c.name}`, async (t) => {
    const directory = await scratchDirectory(t);
    const journals = join(directory, 'journals');
    await mkdir(journals);
    const [path, content] = await makeImage(directory, c);
    const steps = new KillSteps(journals);
    const paths = c.dataFile === true ? [path, join(directory, 'disk.data')] : [path];
    const files: RecordedFile[] = [];
    let file: DriverDescriptor | undefined;
    for (const recorded of paths) {
      const log = new SteppedLog(steps);
      files.push({ start: new Uint8Array(await readFile(recorded)), log });
      file = recordingFile({ path: recorded, log }, file);
    }
    const log = new FileLog(steps.clock);
    const graph = await testGraph({
      directory,
      ...(file && { file }),
      journalDirectory: journals,
    });
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    const history = new GuestHistory(content, c.sizeBytes);
    const random = seededRandom(SEED + c.maxBytes);
    for (let i = 0; i < WRITES; i++) {
      const step = c.packs && i % 3 === 0 ? packedStep : guestStep;
      await step(node, random, history, log);
      if (i % 12 === 9) await guestFlush(node, history, log);
      if (i % 10 !== 4 || c.maxBytes === c.sizeBytes) continue;
      const size = c.sizeBytes / 2 + random.below((c.maxBytes - c.sizeBytes / 2) / 512) * 512;
      await guestResize(node, size, history, log);
    }
    await graph.close(node);
    // What was answered is there, synced or not.
    for (const { answered } of [...history.writes])
      history.flushes.push({ begun: answered, answered });
    for (const { events } of filesAfterKills(steps, paths, files)) {
      const what = `seed ${SEED}: killed after event ${events} of ${log.events}`;
      const next = await testGraph({ directory, journalDirectory: journals });
      const opened = await next.open({ path, format: 'qcow2', readOnly: events % 2 === 0 });
      const found = new Uint8Array(opened.lengthBytes);
      await opened.read(guestOffset(0), found);
      await next.close(opened);
      // What began at this event has begun.
      assert.equal(history.firstWrong(found, events + 0.5), null, what);
      assert.deepEqual(readdirSync(journals), [], `${what}: no journal is left`);
      if (events % 9 === 0) await qemuImg(['check', '-q', '-f', 'qcow2', path], [0, 3]);
    }
    t.diagnostic(`${steps.kept.length} steps`);
  });
}
