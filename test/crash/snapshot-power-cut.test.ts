/**
 * A power cut around making, applying or deleting a snapshot: what is left shows all synced data before any repair, and
 * `check -r all` of either program makes it clean. Applying and deleting happen as a whole or not at all.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { checkImageFile } from '../../drivers/qcow2/check-image.ts';
import { seededRandom } from '../../src/base/random.ts';
import { openFile } from '../../src/image/open.ts';
import { imageAfterCut, prefixesOf, type Survivors } from '../support/power-cut.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { context } from '../support/snapshot-steps.ts';
import {
  checkContent,
  type Shown,
  SnapshotWorkload,
  same,
  shownByUs,
} from '../support/snapshot-workload.ts';
import { testGraph } from '../support/test-graph.ts';
import { run } from '../support/vdiskfs.ts';

interface Case {
  readonly name: string;
  readonly options: string;
  readonly sizeBytes: number;
  readonly version: 2 | 3;
}

const CASES: readonly Case[] = [
  { name: 'clusters of 512 bytes', options: 'cluster_size=512', sizeBytes: 96 << 10, version: 3 },
  {
    name: 'version 2, which has no dirty bit',
    options: 'cluster_size=1k,compat=0.10',
    sizeBytes: 200 << 10,
    version: 2,
  },
  { name: 'tables of several slices', options: 'cluster_size=8k', sizeBytes: 5 << 20, version: 3 },
];

/** Cuts looked at in one workload. */
const CUTS = countOf(4);
/** Cuts that are looked at by our own eyes alone. */
const LOOKS = countOf(40);

const contentOf = async (path: string, args: readonly string[] = []): Promise<Uint8Array> => {
  const flat = `${path}.flat`;
  await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', ...args, path, flat]);
  return new Uint8Array(await readFile(flat));
};

const shownByQemu = async (path: string): Promise<Shown> => {
  const { snapshots = [] } = (await qemuImgJson('info', ['-f', 'qcow2', path])) as {
    snapshots?: { name: string }[];
  };
  const kept = new Map<string, Uint8Array>();
  for (const { name } of snapshots)
    kept.set(name, await contentOf(path, ['-l', `snapshot.name=${name}`]));
  return { active: await contentOf(path), snapshots: kept };
};

/** Refcounts and flags that are wrong are announced by the dirty bit, and either program mends them. */
const checkRepair = async (path: string, version: 2 | 3, byUs: boolean): Promise<void> => {
  const bytes = await readFile(path);
  const isDirty = version === 3 && (bytes.readUInt32BE(76) & 1) !== 0;
  const { status, stdout, stderr } = await run('qemu-img', ['check', '-f', 'qcow2', path]);
  const says = `${stdout}${stderr}`;
  assert.ok(status === 0 || status === 2 || status === 3, says);
  if (version === 3 && status === 2) assert.ok(isDirty, says);
  if (byUs) {
    await using opened = await openFile(path, 'qcow2', context, { writable: true });
    const result = await checkImageFile({ file: opened.file, path, repair: 'all' });
    assert.equal(result.corruptions + result.leaks + result.checkErrors, 0, says);
  } else await qemuImg(['check', '-q', '-f', 'qcow2', '-r', 'all', path]);
  await qemuImg(['check', '-q', '-f', 'qcow2', path]);
};

for (const c of CASES) {
  test(`a power cut around a snapshot leaves all data, and what a repair makes clean: ${c.name}`, async (t) => {
    const directory = await scratchDirectory(t);
    const random = seededRandom(SEED + c.sizeBytes);
    const path = join(directory, 'disk.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', c.options, path, String(c.sizeBytes)]);
    await qemuIo(path, ['write -P 1 0 40k', `write -P 2 ${c.sizeBytes - 16384} 16k`]);
    const content = new Uint8Array(c.sizeBytes).fill(1, 0, 40 << 10).fill(2, c.sizeBytes - 16384);
    const start = new Uint8Array(await readFile(path));
    const log = new FileLog();
    const graph = await testGraph({ directory, file: recordingFile({ path, log }) });
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    const work = new SnapshotWorkload(node, random, content, log);
    await work.run();
    await graph.close(node);
    await qemuImg(['check', '-q', path]);
    const cutPath = join(directory, 'cut.qcow2');
    const checkCut = async (
      image: Uint8Array,
      { cut, what }: { readonly cut: number; readonly what: string },
      isThorough: boolean,
    ) => {
      await writeFile(cutPath, image);
      try {
        checkContent(await shownByUs(cutPath), work, cut);
        if (!isThorough) return;
        const shown = await shownByQemu(cutPath);
        checkContent(shown, work, cut);
        await checkRepair(cutPath, c.version, cut % 2 === 0);
        assert.ok(same(await contentOf(cutPath), shown.active), 'a repair changes no content');
      } catch (error) {
        const message = `seed ${SEED}: cut after event ${cut} of ${log.events}, ${what} of what was not synced`;
        throw new Error(
          `${message}: ${error instanceof Error ? (error.stack ?? '') : String(error)}`,
        );
      }
    };
    // Every prefix: all of it in the order in which it was written.
    let index = 0;
    for (const { images, events } of prefixesOf([{ start, log }])) {
      const isThorough = index++ % 25 === 0 || countOf(1) > 4;
      await checkCut(images[0] ?? start, { cut: events, what: 'all' }, isThorough);
    }
    const inside = log.flushes.filter((f) =>
      work.changes.some((change) => change.begun <= f.begun && f.begun < change.answered),
    );
    const checkAny = async (cut: number, survivors: Survivors, isThorough: boolean) => {
      const what = typeof survivors === 'string' ? survivors : 'a part';
      await checkCut(imageAfterCut(start, log, cut, survivors), { cut, what }, isThorough);
    };
    // Where a flush begins, most is open: nothing of it may be needed yet.
    for (let i = 0; i < LOOKS; i++) await checkAny(random.pick(inside).begun + 1, random, false);
    for (let i = 0; i < CUTS; i++) {
      const during = random.pick(work.changes);
      const cut = during.begun + random.below(during.answered - during.begun + 2);
      const survivors = random.pick<Survivors>(['all', 'none', random, random]);
      await checkAny(i % 2 === 0 ? cut : random.pick(inside).begun + 1, survivors, true);
    }
    t.diagnostic(
      `${log.changes.length} writes, ${log.flushes.length} flushes, ${LOOKS + CUTS} cuts`,
    );
  });
}
