/** What a check carries from step to step: the image's shape, its totals, and what it has found. */
import {
  clusterOfHostOffset,
  guestOffset,
  type HostCluster,
  hostOffset,
} from '../../src/base/units.ts';
import { MAX_CHECK_FINDINGS } from '../../src/block/image-check.ts';
import type { Node } from '../../src/block/node.ts';
import { Budget, SparseCounters } from './sparse-counters.ts';

/** A table of 8-byte entries in the image's file. Bytes. */
export interface TablePlace {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** The header's fields that a check needs, each already validated as for opening. */
export interface CheckShape {
  readonly clusterBytes: number;
  /** Of an L2 entry: 16 where clusters have subclusters, else 8. */
  readonly l2EntryBytes: number;
  readonly virtualSizeBytes: number;
  readonly refcountBits: number;
  /** Guest clusters lie in another file, where nothing is counted. */
  readonly hasDataFile: boolean;
  readonly l1: TablePlace;
  readonly refcountTable: TablePlace;
}

/** Lanes of `CheckState.clusters`. */
export const LANE = {
  /** References found to a host cluster. */
  references: 0,
  /** Entries of the active tables that name it with the COPIED flag, and without. */
  copied: 1,
  notCopied: 2,
} as const;

/** Counters of a chunk cover this many clusters, fewer where a refcount block does. */
const CHUNK_CLUSTERS = 2048;

const FIXED_BUDGET_BYTES = 64 << 20;
const FIXED_WORK_BYTES = 1 << 30;

export class CheckState {
  readonly file: Node;
  readonly shape: CheckShape;
  /** Host clusters, the last one perhaps not whole. */
  readonly fileClusters: number;
  /** Clusters to compare: those of the file, and one more when a reference reaches into it. */
  comparedClusters: number;
  /** Refcount blocks that cannot be read, by index: what they count is unknown, and so are the flags that depend on it. */
  readonly unreadableBlocks = new Set<number>();
  /** Refcount entries in one refcount block. */
  readonly blockEntries: number;
  readonly clusters: SparseCounters<HostCluster>;
  readonly memory: Budget;
  readonly totals = {
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
  };
  /** Clusters with more references than their refcount says. */
  refcountsTooLow = 0;
  readonly findings: string[] = [];
  readonly #work: Budget;
  /** The largest count that the image's refcounts can hold. */
  readonly #refcountMax: number;

  /** `allocatedBytes`: what the file takes on its host, which bounds what its tables can honestly need. */
  constructor(file: Node, shape: CheckShape, allocatedBytes: number) {
    this.file = file;
    this.shape = shape;
    this.fileClusters = Math.ceil(file.lengthBytes / shape.clusterBytes);
    this.comparedClusters = this.fileClusters;
    this.blockEntries = (shape.clusterBytes * 8) / shape.refcountBits;
    this.#refcountMax = Math.min(2 ** shape.refcountBits - 1, 0xffff_ffff);
    this.memory = new Budget('memory', FIXED_BUDGET_BYTES + 2 * allocatedBytes);
    this.#work = new Budget('reading', FIXED_WORK_BYTES + 16 * allocatedBytes);
    this.clusters = new SparseCounters(3, Math.min(CHUNK_CLUSTERS, this.blockEntries), this.memory);
  }

  corruption(sentence: string, count = 1): void {
    this.totals.corruptions += count;
    this.#find(`ERROR ${sentence}`);
  }

  leak(sentence: string): void {
    this.totals.leaks++;
    this.#find(sentence);
  }

  checkError(sentence: string, count = 1): void {
    this.totals.checkErrors += count;
    this.#find(`ERROR ${sentence}`);
  }

  /**
   * Counts `times` references to every cluster that a range touches. A range that ends one cluster or more past the
   * file's end is a corruption each time; the last cluster of a file need not be whole. `what` names the range, and
   * is a function because it is asked for findings alone.
   */
  reference(offset: number, lengthBytes: number, times: number, what: () => string): void {
    if (lengthBytes <= 0 || times === 0) return;
    const { clusterBytes } = this.shape;
    const end = offset + lengthBytes;
    if (end - this.file.lengthBytes >= clusterBytes) {
      const where = `host offset ${hex(offset)}, ${lengthBytes} bytes`;
      this.corruption(`${what()} lies past the end of the file: ${where}`, times);
      return;
    }
    const last = clusterOfHostOffset(hostOffset(end - 1), clusterBytes);
    this.comparedClusters = Math.max(this.comparedClusters, last + 1);
    for (let c = clusterOfHostOffset(hostOffset(offset), clusterBytes); c <= last; c++) {
      const over = this.clusters.add(c, LANE.references, times, this.#refcountMax);
      if (over > 0) {
        const limit = `${this.shape.refcountBits} bits can count`;
        this.corruption(`${what()}: cluster ${c} has more references than ${limit}`, over);
      }
    }
  }

  /** Whether the refcount of the cluster at a host offset can be known. */
  hasRefcount(offset: number): boolean {
    if (this.unreadableBlocks.size === 0) return true;
    const cluster = clusterOfHostOffset(hostOffset(offset), this.shape.clusterBytes);
    return !this.unreadableBlocks.has(Math.floor(cluster / this.blockEntries));
  }

  /** Counts entries of the active tables by their COPIED flag. */
  countCopied(offset: number, isCopied: boolean, times: number): void {
    const cluster = clusterOfHostOffset(hostOffset(offset), this.shape.clusterBytes);
    this.clusters.add(cluster, isCopied ? LANE.copied : LANE.notCopied, times);
  }

  /**
   * Reads a piece of a table; what lies past the file's end is zeros. False when the host stores nothing there, so
   * that all of it is zero; the buffer is not filled then. Errors: EIO, kind invalid-image when the work's bound is
   * reached.
   */
  async readTable(offset: number, buffer: Uint8Array): Promise<boolean> {
    if (offset >= this.file.lengthBytes) return false;
    const inside = Math.min(buffer.length, this.file.lengthBytes - offset);
    const { driver } = this.file;
    const found = await driver.stores?.(offset as never, inside);
    if (found !== undefined && !found.stored && found.lengthBytes >= inside) return false;
    this.#work.spend(buffer.length);
    await this.file.readClipped(guestOffset(offset), buffer);
    return true;
  }

  #find(sentence: string): void {
    if (this.findings.length < MAX_CHECK_FINDINGS) this.findings.push(sentence);
  }
}

export const hex = (value: number): string => `0x${value.toString(16)}`;
