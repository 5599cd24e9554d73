/**
 * A power cut around making, applying or deleting a snapshot: what is left shows all synced data before any repair, and
 * `check -r all` of either program makes it clean. Applying and deleting happen as a whole or not at all.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { checkImageFile } from '../../drivers/qcow2/check-image.ts';
import { present } from '../../src/base/assert.ts';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { openFile } from '../../src/image/open.ts';
import { GuestHistory } from '../support/guest-history.ts';
import { imageAfterCut, prefixesOf, type Survivors } from '../support/power-cut.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { context } from '../support/snapshot-steps.ts';
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

interface SnapshotChange {
  readonly kind: 'create' | 'apply' | 'delete';
  readonly name: string;
  readonly begun: number;
  readonly answered: number;
  /** What the image shows before and after. */
  readonly before: Uint8Array;
  readonly after: Uint8Array;
}

/** Runs a workload beside a log of the image's file. */
class Workload {
  readonly log = new FileLog();
  readonly changes: SnapshotChange[] = [];
  readonly history: GuestHistory;
  readonly #node: Node;
  readonly #random: Random;
  readonly #start: Uint8Array;

  constructor(node: Node, random: Random, content: Uint8Array, log: FileLog) {
    this.#start = content;
    this.#node = node;
    this.#random = random;
    this.history = new GuestHistory(content);
    this.log = log;
  }

  /** As if a change had never begun. */
  historyBefore(change: SnapshotChange): GuestHistory {
    const history = new GuestHistory(this.#start);
    history.writes.push(...this.history.writes.filter((write) => write.begun < change.begun));
    history.flushes.push(...this.history.flushes.filter((flush) => flush.begun < change.begun));
    return history;
  }

  async run(): Promise<void> {
    await this.#writes(9);
    await this.#snapshot('create', 'a');
    await this.#writes(8);
    await this.#snapshot('create', 'b');
    await this.#writes(8);
    await this.#snapshot('delete', 'a');
    await this.#writes(7);
    await this.#snapshot('apply', 'b');
    await this.#writes(7);
    await this.#snapshot('create', 'c');
    await this.#snapshot('delete', 'b');
    await this.#writes(5);
    await this.#snapshot('delete', 'c');
  }

  async #writes(count: number): Promise<void> {
    const random = this.#random;
    for (let i = 0; i < count; i++) {
      const bytes = new Uint8Array(1 + random.below(9000));
      const offset = random.below(this.#node.lengthBytes - bytes.length);
      if (random.below(4) > 0) random.fill(bytes);
      const begun = this.log.events;
      const write = { offset, bytes, begun, answered: Number.POSITIVE_INFINITY };
      this.history.writes.push(write);
      if (bytes.some((byte) => byte > 0)) await this.#node.write(guestOffset(offset), bytes);
      else await this.#node.discard(guestOffset(offset), bytes.length);
      write.answered = this.log.answer();
    }
  }

  async #snapshot(kind: SnapshotChange['kind'], name: string): Promise<void> {
    const before = this.history.content;
    const begun = this.log.events;
    await this.#node.withSnapshots(kind === 'delete' ? 'remove' : kind, async (snapshots) => {
      if (kind === 'create') {
        await snapshots.create({ name, dateSeconds: 1, dateNanoseconds: 2 });
        return;
      }
      const found = (await snapshots.list()).find((s) => s.name === name);
      const { id } = present(found, 'it was made');
      await (kind === 'apply' ? snapshots.apply(id) : snapshots.remove(id));
    });
    const answered = this.log.answer();
    if (kind === 'apply') {
      const made = this.changes.find((c) => c.kind === 'create' && c.name === name);
      const bytes = present(made, 'it was made').after;
      this.history.writes.push({ offset: 0, bytes, begun, answered });
    }
    this.history.flushes.push({ begun, answered });
    if (kind === 'apply') this.history.flushes.push({ begun: answered, answered });
    this.changes.push({ kind, name, begun, answered, before, after: this.history.content });
  }
}

/** What an image shows, and each of its snapshots by name. */
interface Shown {
  readonly active: Uint8Array;
  readonly snapshots: ReadonlyMap<string, Uint8Array>;
}

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

const shownByUs = async (path: string): Promise<Shown> => {
  const graph = await testGraph({ directory: join(path, '..') });
  const read = async (snapshot?: string): Promise<{ bytes: Uint8Array; list: Named[] }> => {
    const node = await graph.open({ path, format: 'qcow2', readOnly: true, snapshot });
    const bytes = new Uint8Array(node.lengthBytes);
    await node.read(guestOffset(0), bytes);
    const list =
      snapshot === undefined ? await node.withSnapshots('list', (kept) => kept.list()) : [];
    await graph.close(node);
    return { bytes, list: [...list] };
  };
  const { bytes, list } = await read();
  const snapshots = new Map<string, Uint8Array>();
  for (const { id, name } of list) snapshots.set(name, (await read(id)).bytes);
  return { active: bytes, snapshots };
};

type Named = Pick<SnapshotDescription, 'id' | 'name'>;

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** What must be right as it stands, without a repair. */
const checkContent = ({ active, snapshots }: Shown, work: Workload, cut: number): void => {
  const during = work.changes.find((c) => c.begun < cut && cut < c.answered);
  // As a whole: what was written before may be there or not, but nothing of the snapshot is mixed with it.
  const history = during?.kind === 'apply' ? work.historyBefore(during) : work.history;
  if (during?.kind !== 'apply' || !same(active, during.after))
    assert.equal(history.firstWrong(active, cut), null);
  for (const made of work.changes.filter((c) => c.kind === 'create')) {
    const gone = work.changes.find((c) => c.kind === 'delete' && c.name === made.name);
    const mustBe = made.answered <= cut && (gone === undefined || cut <= gone.begun);
    const mayBe = made.begun < cut && (gone === undefined || cut < gone.answered);
    const kept = snapshots.get(made.name);
    assert.ok(kept !== undefined ? mayBe : !mustBe, `snapshot ${made.name}: ${kept !== undefined}`);
    if (kept !== undefined) assert.ok(same(kept, made.after), `content of snapshot ${made.name}`);
  }
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
    const work = new Workload(node, random, content, log);
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
