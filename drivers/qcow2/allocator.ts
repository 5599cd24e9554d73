/**
 * Takes and gives back host clusters. Deciding is synchronous once the refcount blocks are in memory; what must wait for
 * the disk (loading a block, a larger refcount table) is done first, and the decision is made again.
 *
 * The search never goes back: a cursor passes each cluster once, and what is freed behind it is remembered in runs. A
 * cluster that was unmapped comes here only after the unmapping is on disk and nobody uses it any more (release.ts).
 */
import { assert } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf, writeU64BE } from '../../src/base/byte-order.ts';
import { divideUp } from '../../src/base/range.ts';
import {
  guestOffset,
  type HostCluster,
  hostCluster,
  hostOffsetOfCluster,
} from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { corruption } from './corruption.ts';
import { hex } from './entry.ts';
import type { Change } from './journal-records.ts';
import { ENTRY_BYTES, MAX_REFCOUNT_TABLE_BYTES } from './layout.ts';
import type { MetadataClusters } from './metadata-clusters.ts';
import type { Refcounts } from './refcounts.ts';

export interface ClusterRun {
  readonly first: HostCluster;
  readonly count: number;
}

export interface Allocation extends ClusterRun {
  /** Lies past everything that was ever written to the file, so it reads as zeros. */
  readonly isFresh: boolean;
  readonly changes: readonly Change[];
}

export interface AllocatorOptions {
  readonly file: Node;
  readonly path: string;
  readonly clusterBytes: number;
  readonly refcounts: Refcounts;
  /** A refcount of 0 for one of them is corruption, not free space. */
  readonly metadata: MetadataClusters;
  /** Brings what is dirty to disk, before the refcount table moves. */
  readonly checkpoint: () => Promise<void>;
  /** Makes changes survive SIGKILL that are made in this turn. See `ImageState.tell`. */
  readonly tell: (changes: readonly Change[]) => void;
  /** The header's refcount table fields, durably. */
  readonly moveRefcountTable: (offset: number, clusters: number) => Promise<void>;
  /** Clusters that nothing uses any more, once what says so is on disk. */
  readonly unmapped: (run: ClusterRun) => void;
}

/** Runs of freed clusters that one allocation looks at. */
const FREED_LOOKS = 16;

export class Allocator {
  readonly #options: AllocatorOptions;
  /** No cluster below it is free but those in `#freed`. */
  #cursor = hostCluster(0);
  #freed: ClusterRun[] = [];
  #growing: Promise<void> | null = null;
  /** Nothing is taken until it resolves. */
  #pause: Promise<void> | null = null;
  #top = hostCluster(0);

  constructor(options: AllocatorOptions) {
    this.#options = options;
  }

  /**
   * 1 to `want` neighbouring clusters, counted once in memory. The changes are the caller's to write to the journal,
   * together with what it maps to them. Errors: ENOSPC is met later, by the write; EFBIG when the refcount table
   * cannot grow; EIO for corrupt refcounts.
   */
  async allocate(want: number): Promise<Allocation> {
    for (;;) {
      if (this.#pause !== null) await this.#pause;
      const found = this.#take(want);
      if (found === 'grow') await this.#growTable();
      else if (typeof found === 'number') await this.#options.refcounts.loadBlockOf(found);
      else return found;
    }
  }

  /** `allocate`, when there is nothing to wait for; else null. Errors: EIO. */
  allocateAtOnce(want: number): Allocation | null {
    if (this.#pause !== null) return null;
    const found = this.#take(want);
    return typeof found === 'object' ? found : null;
  }

  /** Exactly `count` neighbouring clusters, from the end of what is known to be used: for tables. */
  async allocateContiguous(count: number): Promise<Allocation> {
    for (;;) {
      if (this.#pause !== null) await this.#pause;
      const outcome = this.#takeContiguous(count);
      if (outcome === 'grow') await this.#growTable();
      else if (typeof outcome === 'number') await this.#options.refcounts.loadBlockOf(outcome);
      else return outcome;
    }
  }

  /** No cluster from this one on was ever taken. */
  get top(): HostCluster {
    return this.#top;
  }

  /** The refcount table is moving, to a place that nothing counts yet. */
  get isTableMoving(): boolean {
    return this.#growing !== null;
  }

  /** Nothing is taken while `change` runs. It takes nothing itself. One at a time. Errors: those of `change`. */
  async paused(change: () => Promise<void>): Promise<void> {
    assert(this.#pause === null, 'the allocator is paused once');
    let end = (): void => undefined;
    this.#pause = new Promise((resolve) => {
      end = resolve;
    });
    try {
      await change();
    } finally {
      this.#pause = null;
      end();
    }
  }

  /** Takes an allocation back whose write failed: nothing maps to it. */
  async giveBack(allocation: Allocation): Promise<void> {
    const { refcounts, tell } = this.#options;
    tell(allocation.changes);
    const end = allocation.first + allocation.count;
    for (let cluster = allocation.first; cluster < end; cluster++) {
      while (refcounts.residentBlock(cluster) === null) await refcounts.loadBlockOf(cluster);
      this.#uncount(cluster);
    }
  }

  /** `giveBack` in the turn in which it was taken: what counts it is in memory. */
  giveBackAtOnce(allocation: Allocation): void {
    this.#options.tell(allocation.changes);
    const end = allocation.first + allocation.count;
    for (let cluster = allocation.first; cluster < end; cluster++) this.#uncount(cluster);
  }

  // Told of at once, not with the allocation that comes upon it: another one, which takes what was given back, may come to its
  // end before. And free at once: the cursor may pass it before the next cluster's block is loaded.
  #uncount(cluster: HostCluster): void {
    const { refcounts, tell } = this.#options;
    const block = refcounts.residentBlock(cluster);
    assert(block !== null && block !== 'none', 'a counted cluster has its block in memory');
    tell([refcounts.set(block, cluster, 0)]);
    this.free({ first: cluster, count: 1 });
  }

  /** Gives back clusters whose refcount has become 0. */
  free(run: ClusterRun): void {
    // What lies before the cursor would never be found again; what lies after it will be.
    const count = Math.min(run.count, this.#cursor - run.first);
    if (count <= 0) return;
    const last = this.#freed.at(-1);
    if (last !== undefined && last.first + last.count === run.first) {
      this.#freed[this.#freed.length - 1] = { first: last.first, count: last.count + count };
    } else this.#freed.push({ first: run.first, count });
  }

  /** The allocation, a cluster whose refcount block must be loaded first, or that the table must grow. */
  #take(want: number): Allocation | HostCluster | 'grow' {
    const reused = this.#takeFreed(want);
    if (reused !== null) return reused;
    for (;;) {
      const block = this.#blockAt(this.#cursor);
      if (block !== 'resident') return block;
      const run = this.#freeRunAtCursor(want);
      if (run.count === 0) continue;
      // What is corrupt there stays in the way.
      const allocation = this.#count(run);
      this.#cursor = hostCluster(run.first + run.count);
      return allocation;
    }
  }

  #blockAt(cluster: HostCluster): 'resident' | HostCluster | 'grow' {
    const { refcounts } = this.#options;
    const block = refcounts.residentBlock(cluster);
    if (block === null) return cluster;
    if (block !== 'none') return 'resident';
    const index = refcounts.blockIndexOf(cluster);
    if (index >= refcounts.tableEntries) return 'grow';
    this.#makeBlock(index);
    return 'resident';
  }

  // The block lies in the first cluster of its own range: nothing else is there, for nothing counted it. Told of at once: of two
  // allocations that count in it, the later may come to its end first.
  #makeBlock(index: number): void {
    const { refcounts, clusterBytes, metadata, tell } = this.#options;
    const first = hostCluster(index * refcounts.blockEntries);
    this.#refuseMetadata(first);
    const made = refcounts.addBlock(index, hostOffsetOfCluster(first, clusterBytes));
    metadata.add(first, 'other');
    tell([...made.changes, refcounts.set(made.block, first, 1)]);
  }

  /** From the cursor on, within its block; moves the cursor past what is in use. */
  #freeRunAtCursor(want: number): ClusterRun {
    const { refcounts } = this.#options;
    const block = refcounts.residentBlock(this.#cursor);
    assert(block !== null && block !== 'none', 'the block at the cursor is in memory');
    const end = (refcounts.blockIndexOf(this.#cursor) + 1) * refcounts.blockEntries;
    while (this.#cursor < end && refcounts.read(block, this.#cursor) !== 0) this.#cursor++;
    const count = this.#cursor < end ? refcounts.freeRun(block, this.#cursor, want) : 0;
    return { first: this.#cursor, count };
  }

  #takeFreed(want: number): Allocation | HostCluster | null {
    const { refcounts } = this.#options;
    const from = Math.max(0, this.#freed.length - FREED_LOOKS);
    let best = -1;
    for (let i = this.#freed.length - 1; i >= from; i--) {
      const count = this.#freed[i]?.count ?? 0;
      if (best < 0 || count > (this.#freed[best]?.count ?? 0)) best = i;
      if (count >= want) break;
    }
    const run = this.#freed[best];
    if (run === undefined) return null;
    const block = refcounts.residentBlock(run.first);
    if (block === null) return run.first;
    const blockEnd = (refcounts.blockIndexOf(run.first) + 1) * refcounts.blockEntries;
    const count = Math.min(want, run.count, blockEnd - run.first);
    const allocation = this.#count({ first: run.first, count });
    this.#freed.splice(best, 1);
    if (count < run.count)
      this.#freed.push({ first: hostCluster(run.first + count), count: run.count - count });
    return allocation;
  }

  #takeContiguous(count: number): Allocation | HostCluster | 'grow' {
    const { refcounts } = this.#options;
    let first = this.#cursor;
    for (let at = first; at < first + count; at++) {
      const found = this.#blockAt(at);
      if (found !== 'resident') return found;
      const block = refcounts.residentBlock(at);
      assert(block !== null && block !== 'none', 'it was just seen');
      if (refcounts.read(block, at) !== 0) first = hostCluster(at + 1);
    }
    // The cursor stays: what it has not passed it finds later.
    return this.#count({ first, count });
  }

  #count(run: ClusterRun): Allocation {
    const { refcounts, file, clusterBytes } = this.#options;
    const { first, count } = run;
    const changes: Change[] = [];
    const end = hostCluster(first + count);
    for (let at = first; at < end; at++) this.#refuseMetadata(at);
    for (let at = first; at < end; ) {
      const block = refcounts.residentBlock(at);
      assert(
        block !== null && block !== 'none',
        'clusters are counted in blocks that are in memory',
      );
      const inBlock = Math.min(end - at, refcounts.blockEntries - (at % refcounts.blockEntries));
      changes.push(refcounts.take(block, at, inBlock));
      at = hostCluster(at + inBlock);
    }
    // What was taken once may have been written, also by a write that has failed.
    const isFresh =
      first >= this.#top && hostOffsetOfCluster(first, clusterBytes) >= file.lengthBytes;
    this.#top = hostCluster(Math.max(this.#top, end));
    // Field by field: spreading an object costs several times what the rest of this does.
    return { first, count, isFresh, changes };
  }

  #refuseMetadata(cluster: HostCluster): void {
    const { metadata, path, clusterBytes } = this.#options;
    if (!metadata.isAny(cluster)) return;
    const message = `refcount of host cluster ${cluster} is 0, but it holds metadata`;
    throw corruption(message, {
      path,
      offset: hostOffsetOfCluster(cluster, clusterBytes),
      hint: 'repair it: qemu-img check -r all',
    });
  }

  #growTable(): Promise<void> {
    this.#growing ??= this.#moveToLargerTable().finally(() => {
      this.#growing = null;
    });
    return this.#growing;
  }

  /**
   * 1. What is dirty goes to disk: the blocks that the old table names, and the words that name them. 2. The new table and
   * the blocks that count it are written where nothing is yet, and synced. 3. The header names it, synced. 4. The old
   * table is unmapped. A crash before 3 leaves the old table in force, and the new one unreferenced; after it, the old
   * one leaked.
   */
  async #moveToLargerTable(): Promise<void> {
    const { refcounts, clusterBytes, file, checkpoint, moveRefcountTable, unmapped } =
      this.#options;
    const { metadata } = this.#options;
    await checkpoint();
    const oldFirst = hostCluster(refcounts.tableOffset / clusterBytes);
    const oldClusters = divideUp(refcounts.tableEntries * ENTRY_BYTES, clusterBytes);
    const plan = this.#planTable(oldClusters);
    const table = refcounts.enlargedTable((plan.tableClusters * clusterBytes) / ENTRY_BYTES);
    for (let i = 0; i < plan.blocks; i++) {
      table[plan.firstBlockIndex + i] = hostOffsetOfCluster(
        hostCluster(plan.first + i),
        clusterBytes,
      );
    }
    const bytes = new Uint8Array(plan.tableClusters * clusterBytes);
    const view = viewOf(bytes);
    for (const [i, offset] of table.entries()) writeU64BE(view, i * ENTRY_BYTES, offset);
    // The blocks count themselves and the table. They are written before the table that names them.
    for (let i = 0; i < plan.blocks; i++) {
      const block = refcounts.cache.put(
        hostOffsetOfCluster(hostCluster(plan.first + i), clusterBytes),
        new Uint8Array(clusterBytes),
      );
      metadata.add(hostCluster(plan.first + i), 'other');
      const from = (plan.firstBlockIndex + i) * refcounts.blockEntries;
      const end = Math.min(
        from + refcounts.blockEntries,
        plan.first + plan.blocks + plan.tableClusters,
      );
      for (let cluster = hostCluster(Math.max(from, plan.first)); cluster < end; cluster++)
        refcounts.set(block, cluster, 1);
      await file.write(guestOffset(block.key), block.bytes);
    }
    const tableFirst = hostCluster(plan.first + plan.blocks);
    const tableOffset = hostOffsetOfCluster(tableFirst, clusterBytes);
    for (let i = 0; i < plan.tableClusters; i++) metadata.add(hostCluster(tableFirst + i), 'other');
    await file.write(guestOffset(tableOffset), bytes);
    await file.flush();
    await moveRefcountTable(tableOffset, plan.tableClusters);
    refcounts.moveTable(tableOffset, table);
    for (let i = 0; i < oldClusters; i++) metadata.remove(hostCluster(oldFirst + i));
    unmapped({ first: oldFirst, count: oldClusters });
  }

  /** The new table begins where the old one has no more room: nothing lies there, for nothing could be counted there. */
  #planTable(oldClusters: number): {
    first: HostCluster;
    firstBlockIndex: number;
    blocks: number;
    tableClusters: number;
  } {
    const { refcounts, clusterBytes, path } = this.#options;
    const firstBlockIndex = refcounts.tableEntries;
    const first = hostCluster(firstBlockIndex * refcounts.blockEntries);
    const tableClusters = oldClusters + Math.max(1, Math.ceil(oldClusters / 2));
    if (tableClusters * clusterBytes > MAX_REFCOUNT_TABLE_BYTES) {
      const message = `the image cannot grow: its refcount table would pass ${hex(MAX_REFCOUNT_TABLE_BYTES)} bytes`;
      throw new BlockError({ kind: 'no-space', errno: 'EFBIG', message, path });
    }
    let blocks = 1;
    while (blocks * refcounts.blockEntries < blocks + tableClusters) blocks++;
    return { first, firstBlockIndex, blocks, tableClusters };
  }
}
