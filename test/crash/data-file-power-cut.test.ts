/**
 * A power cut takes an image and its external data file at the same moment: QEMU finds the pair sound, with all synced data and
 * nothing else changed; and a raw data file shows, read alone, what the image shows.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { guestResize, guestStep } from '../support/guest-steps.ts';
import {
  imageAfterCut,
  prefixesOf,
  type RecordedFile,
  type Survivors,
} from '../support/power-cut.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

interface Case {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  readonly maxBytes: number;
  readonly isRaw: boolean;
}

const CASES: readonly Case[] = [
  {
    name: 'over a backing image',
    options: 'cluster_size=1k',
    sizeBytes: 160 << 10,
    maxBytes: 300 << 10,
    isRaw: false,
  },
  {
    name: 'subclusters over a backing image',
    options: 'cluster_size=16k,extended_l2=on',
    sizeBytes: 400 << 10,
    maxBytes: 600 << 10,
    isRaw: false,
  },
  {
    name: 'a raw one',
    options: 'cluster_size=4k,data_file_raw=on',
    sizeBytes: 256 << 10,
    maxBytes: 700 << 10,
    isRaw: true,
  },
];

const CUTS = countOf(20);
const STEPS = 70;
const NAMES = ['disk.qcow2', 'disk.data'] as const;

const makeImage = async (directory: string, c: Case): Promise<Uint8Array> => {
  const content = new Uint8Array(c.maxBytes);
  const [image, data] = NAMES.map((name) => join(directory, name));
  const below: string[] = [];
  if (!c.isRaw) {
    const base = new Uint8Array(c.sizeBytes - 3 * 512).map((_, i) => 1 + (i % 250));
    await writeFile(join(directory, 'base.raw'), base);
    content.set(base);
    below.push('-b', join(directory, 'base.raw'), '-F', 'raw');
  }
  const options = ['-q', '-f', 'qcow2', '-o', `${c.options},data_file=${data}`, ...below];
  await qemuImg(['create', ...options, String(image), String(c.sizeBytes)]);
  return content;
};

interface Recorded {
  readonly files: readonly RecordedFile[];
  readonly history: GuestHistory;
  readonly events: number;
}

const record = async (
  directory: string,
  c: Case,
  random: Random,
  dropsFlushOf: (typeof NAMES)[number] | null,
): Promise<Recorded> => {
  const content = await makeImage(directory, c);
  const clock = { events: 0 };
  const files: { start: Uint8Array; log: FileLog }[] = [];
  let file: ReturnType<typeof recordingFile> | undefined;
  for (const name of NAMES) {
    const path = join(directory, name);
    const log = new FileLog(clock);
    const drops = name === dropsFlushOf ? { dropsFlush: () => true } : {};
    file = recordingFile({ path, log, ...drops }, file);
    files.push({ start: new Uint8Array(await readFile(path)), log });
  }
  const graph = await testGraph({ directory, ...(file === undefined ? {} : { file }) });
  const history = new GuestHistory(content, c.sizeBytes);
  const log = new FileLog(clock);
  const path = join(directory, NAMES[0]);
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  for (let i = 0; i < STEPS; i++) {
    await guestStep(node, random, history, log);
    if (i % 14 !== 7) continue;
    const least = c.sizeBytes / 2;
    const lengthBytes = least + random.below((c.maxBytes - least) / 512) * 512;
    await guestResize(node, lengthBytes, history, log);
  }
  const begun = clock.events;
  await graph.close(node);
  history.flushes.push({ begun, answered: clock.events });
  return { files, history, events: clock.events };
};

/** How QEMU opens the pair: the header names the data file that was recorded, not that of the cut. */
const pairOptions = (image: string, data: string): string =>
  `driver=qcow2,file.driver=file,file.filename=${image},data-file.driver=file,data-file.filename=${data}`;

const checkCut = async (
  directory: string,
  c: Case,
  images: readonly Uint8Array[],
  firstWrong: (found: Uint8Array) => string | null,
): Promise<void> => {
  const [image = '', data = ''] = ['cut.qcow2', 'cut.data'].map((name) => join(directory, name));
  await writeFile(image, images[0] ?? '');
  await writeFile(data, images[1] ?? '');
  const pair = pairOptions(image, data);
  await qemuImg(['check', '-q', '--image-opts', pair], [0, 3]);
  await qemuImg(['convert', '-O', 'raw', '--image-opts', pair, `${image}.flat`]);
  const found = new Uint8Array(await readFile(`${image}.flat`));
  assert.equal(firstWrong(found), null);
  if (!c.isRaw) return;
  const alone = new Uint8Array(found.length);
  alone.set((images[1] ?? alone).subarray(0, found.length));
  assert.equal(Buffer.compare(alone, found), 0, 'the data file alone shows the same');
};

const survivorsOf = (random: Random): Survivors =>
  random.below(6) === 0 ? (random.below(2) === 0 ? 'all' : 'none') : random;

for (const c of CASES) {
  test(`a power cut of an image and its data file leaves all synced data: ${c.name}`, async (t) => {
    const directory = await scratchDirectory(t);
    const random = seededRandom(SEED + c.sizeBytes);
    const { files, history, events } = await record(directory, c, random, null);
    const look = async (images: readonly Uint8Array[], cut: number, what: string): Promise<void> =>
      checkCut(directory, c, images, (found) => history.firstWrong(found, cut)).catch(
        (error: Error) => {
          throw new Error(`seed ${SEED}: cut after event ${cut}, ${what}: ${error.message}`);
        },
      );
    let index = 0;
    for (const { images, events: cut } of prefixesOf(files))
      if (index++ % 8 === 0 || countOf(1) > 4) await look(images, cut, 'all of what was written');
    for (let i = 0; i < CUTS; i++) {
      const cut = random.below(events + 1);
      const survivors = survivorsOf(random);
      const images = files.map(({ start, log }) => imageAfterCut(start, log, cut, survivors));
      await look(images, cut, typeof survivors === 'string' ? survivors : 'a part of it');
    }
    t.diagnostic(`${index} writes, ${CUTS} cuts`);
  });
}

for (const name of NAMES) {
  test(`the replayer notices when ${name} is never flushed`, async (t) => {
    const directory = await scratchDirectory(t);
    const random = seededRandom(SEED);
    const [c] = CASES;
    assert.ok(c !== undefined);
    const { files, history, events } = await record(directory, c, random, name);
    let noticed = 0;
    for (let i = 0; i < 40 && noticed === 0; i++) {
      const cut = random.below(events + 1);
      const images = files.map(({ start, log }) => imageAfterCut(start, log, cut, random));
      await checkCut(directory, c, images, (found) => history.firstWrong(found, cut)).catch(
        () => noticed++,
      );
    }
    assert.ok(noticed > 0, 'some cut must lose data or break the image');
  });
}
