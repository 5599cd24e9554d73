/**
 * Second half of a check: compares the refcounts that the image stores with the references that were counted, and with
 * the COPIED flags of the active tables.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { type HostCluster, hostCluster, hostOffsetOfCluster } from '../../src/base/units.ts';
import { type CheckState, hex, LANE } from './check-state.ts';
import type { Chunk } from './sparse-counters.ts';

const LOW_RESERVED = 0x1ff;
const TWO_32 = 0x1_0000_0000;
/** No file reaches so far that its offsets have the top bit. */
const OFFSET_LIMIT = 2 ** 63;

/** One entry of the refcount table that is not 0. */
export interface BlockPlace {
  readonly index: number;
  readonly offset: number;
  /** Told from the entry's low half: a number is exact only up to 2^53. */
  readonly isAligned: boolean;
  readonly hasReservedBits: boolean;
}

/** Whether what the block counts can be read at all. */
export const isReadable = (block: BlockPlace): boolean =>
  block.isAligned && block.offset < OFFSET_LIMIT;

/** Reads the refcount table and notes the blocks that cannot be read. Call it first. Errors: EIO. */
export const readRefcountTable = async (state: CheckState): Promise<readonly BlockPlace[]> => {
  const blocks = await readTable(state);
  for (const block of blocks) if (!isReadable(block)) state.unreadableBlocks.add(block.index);
  return blocks;
};

const readTable = async (state: CheckState): Promise<BlockPlace[]> => {
  const { offset, lengthBytes } = state.shape.refcountTable;
  const table = new Uint8Array(lengthBytes);
  if (!(await state.readTable(offset, table))) return [];
  const view = viewOf(table);
  const blocks: BlockPlace[] = [];
  for (let index = 0; index < lengthBytes / 8; index++) {
    const [high, low] = [view.getUint32(index * 8), view.getUint32(index * 8 + 4)];
    if (high === 0 && low === 0) continue;
    const lowOffset = low - (low & LOW_RESERVED);
    blocks.push({
      index,
      offset: high * TWO_32 + lowOffset,
      isAligned: lowOffset % state.shape.clusterBytes === 0,
      hasReservedBits: low !== lowOffset,
    });
  }
  return blocks;
};

/** References of the refcount table to its blocks. Call it after every other reference was counted. */
const referenceBlocks = (state: CheckState, blocks: readonly BlockPlace[]): void => {
  const { clusterBytes } = state.shape;
  for (const { index, offset, isAligned, hasReservedBits } of blocks) {
    const what = `refcount block ${index}`;
    if (hasReservedBits) {
      state.corruption(`refcount table entry ${index}: reserved bits are set`);
      continue;
    }
    if (!isAligned) {
      state.corruption(`${what}: host offset ${hex(offset)} is not cluster aligned`);
      continue;
    }
    const cluster = hostCluster(offset / clusterBytes);
    if (cluster >= state.fileClusters) {
      state.corruption(`${what}: host offset ${hex(offset)} lies past the end of the file`);
      continue;
    }
    state.reference(offset, clusterBytes, 1, () => what);
    const references = state.clusters.get(cluster, LANE.references);
    if (references !== 1) state.corruption(`${what} has ${references} references`);
  }
};

/** Counts the references to the refcount blocks, then compares. The end of the last cluster in use. Errors: EIO. */
export const compareRefcounts = async (
  state: CheckState,
  blocks: readonly BlockPlace[],
): Promise<number> => {
  referenceBlocks(state, blocks);
  const comparison = new Comparison(state);
  const buffer = new Uint8Array(state.shape.clusterBytes);
  for (const block of blocks) {
    if (block.offset !== 0) await comparison.block(block, buffer);
  }
  comparison.rest();
  return hostOffsetOfCluster(hostCluster(comparison.highestCluster + 1), state.shape.clusterBytes);
};

/** How many clusters of the file have a refcount above 0; stops at `limit`. Errors: EIO. */
export const countUsedClusters = async (state: CheckState, limit: number): Promise<number> => {
  const buffer = new Uint8Array(state.shape.clusterBytes);
  let used = 0;
  for (const { index, offset, isAligned } of await readTable(state)) {
    const first = hostCluster(index * state.blockEntries);
    if (first >= state.fileClusters || used >= limit) break;
    if (!isAligned || offset === 0 || !(await state.readTable(offset, buffer))) continue;
    const read = refcountReader(buffer, state.shape.refcountBits);
    const entries = Math.min(state.blockEntries, state.fileClusters - first);
    for (let i = 0; i < entries && used < limit; i++) if (read(i) > 0) used++;
  }
  return used;
};

class Comparison {
  highestCluster = hostCluster(0);
  readonly #state: CheckState;
  readonly #done = new Set<number>();

  constructor(state: CheckState) {
    this.#state = state;
  }

  async block(block: BlockPlace, buffer: Uint8Array): Promise<void> {
    const state = this.#state;
    const { blockEntries, comparedClusters, clusters } = state;
    const first = hostCluster(block.index * blockEntries);
    const chunkEntries = clusters.chunkEntries;
    const chunks = Array.from(
      { length: blockEntries / chunkEntries },
      (_, i) => first / chunkEntries + i,
    );
    const isTouched = chunks.some((c) => clusters.chunk(c) !== undefined);
    if (first >= comparedClusters && !isTouched) return;
    if (!isReadable(block)) {
      const unknown = Math.max(0, Math.min(blockEntries, comparedClusters - first));
      state.checkError(
        `refcount block ${block.index} cannot be read: its offset is wrong`,
        unknown,
      );
      for (const c of chunks) this.#done.add(c);
      return;
    }
    const isStored = await state.readTable(block.offset, buffer);
    if (!isStored && !isTouched) return;
    const read = refcountReader(buffer, state.shape.refcountBits);
    for (const c of chunks) {
      const start = c * chunkEntries;
      this.#chunk(c, isStored ? (i) => read(start - first + i) : zero);
    }
  }

  /** What lies in no refcount block has refcount 0. */
  rest(): void {
    for (const c of this.#state.clusters.chunkIndexes())
      if (!this.#done.has(c)) this.#chunk(c, zero);
  }

  #chunk(index: number, stored: (at: number) => number): void {
    const { clusters } = this.#state;
    const counted = clusters.chunk(index);
    if (counted === undefined && stored === zero) return;
    if (counted !== undefined) this.#done.add(index);
    const start = index * clusters.chunkEntries;
    for (let i = 0; i < clusters.chunkEntries; i++) {
      this.#cluster(hostCluster(start + i), stored(i), counted, i);
    }
  }

  #cluster(cluster: HostCluster, stored: number, counted: Chunk | undefined, at: number): void {
    const state = this.#state;
    if (cluster < state.comparedClusters) {
      const references = counted?.[LANE.references]?.[at] ?? 0;
      if (stored > 0 || references > 0) {
        this.highestCluster = hostCluster(Math.max(this.highestCluster, cluster));
      }
      if (stored !== references) {
        const text = `cluster ${cluster}: refcount ${stored}, references ${references}`;
        if (stored > references) state.leak(`Leaked ${text}`);
        else {
          state.corruption(text);
          state.refcountsTooLow++;
        }
      }
    }
    if (counted === undefined) return;
    const wrong = counted[stored === 1 ? LANE.notCopied : LANE.copied]?.[at] ?? 0;
    if (wrong === 0) return;
    const flag = stored === 1 ? 'without' : 'with';
    state.corruption(
      `cluster ${cluster}: refcount ${stored}, but named ${flag} the COPIED flag`,
      wrong,
    );
  }
}

const zero = (): number => 0;

/** Entry of a refcount block by its index (specification: "Refcount blocks"). Widths below 8 bits fill a byte from its low end. */
export const refcountReader = (block: Uint8Array, bits: number): ((at: number) => number) => {
  const view = viewOf(block);
  switch (bits) {
    case 8:
      return (at) => view.getUint8(at);
    case 16:
      return (at) => view.getUint16(at * 2);
    case 32:
      return (at) => view.getUint32(at * 4);
    case 64:
      return (at) => view.getUint32(at * 8) * TWO_32 + view.getUint32(at * 8 + 4);
    default: {
      const perByte = 8 / bits;
      const mask = 2 ** bits - 1;
      return (at) => (view.getUint8(Math.floor(at / perByte)) >>> ((at % perByte) * bits)) & mask;
    }
  }
};
