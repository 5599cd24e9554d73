/** A guest that writes while snapshots are made, applied and deleted, and what each of them must show after a crash. */
import assert from 'node:assert/strict';
import { dirname } from 'node:path';
import { present } from '../../src/base/assert.ts';
import type { Random } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { GuestHistory } from './guest-history.ts';
import type { FileLog } from './recording-file.ts';
import { testGraph } from './test-graph.ts';

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
export class SnapshotWorkload {
  readonly log: FileLog;
  readonly changes: SnapshotChange[] = [];
  readonly history: GuestHistory;
  readonly #settle: (node: Node) => Promise<Node>;
  #node: Node;
  readonly #random: Random;
  readonly #start: Uint8Array;

  /** `settle`: before each change of a snapshot; what it resolves to is gone on with. */
  constructor(
    node: Node,
    random: Random,
    content: Uint8Array,
    log: FileLog,
    settle: (node: Node) => Promise<Node> = async (same) => same,
  ) {
    this.#start = content;
    this.#settle = settle;
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

  /** Resolves to the node that is open then. */
  async run(): Promise<Node> {
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
    return this.#node;
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
    this.#node = await this.#settle(this.#node);
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
export interface Shown {
  readonly active: Uint8Array;
  readonly snapshots: ReadonlyMap<string, Uint8Array>;
}

export const shownByUs = async (path: string): Promise<Shown> => {
  const graph = await testGraph({ directory: dirname(path) });
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

export const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** What must be right as it stands, without a repair. */
export const checkContent = (
  { active, snapshots }: Shown,
  work: SnapshotWorkload,
  cut: number,
): void => {
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
