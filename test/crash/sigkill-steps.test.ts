/**
 * SIGKILL at every step: before and after each write, zeroing, change of length and flush of the image's file, in every phase
 * of journal and checkpoint. The file is what the host has of it then, the journal lies beside it, and whoever opens the
 * image finds every answered write.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { guestFlush, guestResize, guestStep, packedStep } from '../support/guest-steps.ts';
import { prefixesOf } from '../support/power-cut.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Change, FileLog, recordingFile } from '../support/recording-file.ts';
import { SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

/** What a kill leaves beside the image's file: the journal's files. */
interface Step {
  /** Changes of the image's file that have been made. */
  readonly changes: number;
  readonly events: number;
  readonly journal: ReadonlyMap<string, Buffer>;
}

/** A log that keeps the journal as it is at each step. Changes come one at a time, or overlap in nothing. */
class SteppedLog extends FileLog {
  readonly steps: Step[] = [];
  readonly #journals: string;
  #ended = 0;

  constructor(journals: string) {
    super();
    this.#journals = journals;
  }

  override async change<T>(change: Change, run: () => Promise<T>): Promise<T> {
    this.#keep();
    const result = await super.change(change, run);
    this.#ended++;
    this.#keep();
    return result;
  }

  override async flush(run: () => Promise<void>): Promise<void> {
    this.#keep();
    await super.flush(run);
    this.#keep();
  }

  // Only when nothing is in flight: of what is, the host may have any part.
  #keep(): void {
    if (this.#ended !== this.changes.length) return;
    const names = readdirSync(this.#journals);
    const journal = new Map(names.map((n) => [n, readFileSync(join(this.#journals, n))] as const));
    // An event of its own: what is answered after it is not answered by then.
    this.steps.push({ changes: this.#ended, events: this.events++, journal });
  }
}

interface Case {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  readonly maxBytes: number;
  readonly packs: boolean;
  readonly snapshot: boolean;
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
];

const WRITES = 40;

const makeImage = async (directory: string, c: Case): Promise<[string, Uint8Array]> => {
  const image = join(directory, 'disk.qcow2');
  const content = new Uint8Array(c.maxBytes);
  const base = new Uint8Array(c.sizeBytes - 1000).map((_, i) => 1 + (i % 250));
  await writeFile(join(directory, 'base.raw'), base);
  content.set(base);
  const below = ['-b', join(directory, 'base.raw'), '-F', 'raw'];
  await qemuImg([
    'create',
    '-q',
    '-f',
    'qcow2',
    '-o',
    c.options,
    ...below,
    image,
    `${c.sizeBytes}`,
  ]);
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
    const start = new Uint8Array(await readFile(path));
    const log = new SteppedLog(journals);
    const file = recordingFile({ path, log });
    const graph = await testGraph({ directory, file, journalDirectory: journals });
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
    const images = prefixesOf([{ start, log }]);
    let image = start;
    let made = 0;
    for (const { changes, events, journal } of log.steps) {
      for (; made < changes; made++) image = images.next().value?.images[0] ?? image;
      const what = `seed ${SEED}: killed after event ${events} of ${log.events}`;
      // In the same file: the journal knows it by what the host calls it.
      writeFileSync(path, image);
      for (const name of readdirSync(journals)) rmSync(join(journals, name));
      for (const [name, bytes] of journal) writeFileSync(join(journals, name), bytes);
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
    t.diagnostic(`${log.steps.length} steps`);
  });
}
