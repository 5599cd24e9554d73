/**
 * Where guest clusters are put: anywhere in the image's own file, or in an external data file at the guest's own offset
 * (specification: "External data file bit"). Clusters there are not counted, never shared and never moved.
 */
import { BlockError, invalidImage } from '../../src/base/block-error.ts';
import { hostCluster } from '../../src/base/units.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import type { Allocation, Allocator } from './allocator.ts';
import type { Qcow2Header } from './header.ts';
import { dataFileNameOf } from './header-extensions.ts';
import { INCOMPATIBLE } from './layout.ts';
import type { ImageState } from './state.ts';

export const hasDataFile = (header: Qcow2Header): boolean =>
  (header.incompatible & INCOMPATIBLE.dataFile) !== 0;

/**
 * The file that the header names; null for an image without one. It is always raw, and used below that format: its length
 * is not the guest's. Errors: EIO for a header that names none; those of `OpenRequest.openDataFile`.
 */
export const openExternalDataFile = async (
  { openDataFile, path }: OpenRequest,
  header: Qcow2Header,
): Promise<Node | null> => {
  if (!hasDataFile(header)) return null;
  const filename = dataFileNameOf(header.extensions);
  if (filename === null) {
    throw invalidImage('has an external data file that its header does not name', { path });
  }
  const { file } = await openDataFile({ filename, format: 'raw' });
  if (file === null) {
    const message = `its external data file '${filename}' is no file`;
    throw new BlockError({ kind: 'unsupported', message, path, op: 'open' });
  }
  return file;
};

export class DataClusters {
  readonly #state: ImageState;
  readonly #allocator: Allocator;

  constructor(state: ImageState, allocator: Allocator) {
    this.#state = state;
    this.#allocator = allocator;
  }

  /** 1 to `want` neighbouring clusters for the guest's clusters from `start` on. Errors: as `Allocator.allocate`. */
  async allocate(start: number, want: number): Promise<Allocation> {
    const { dataFile } = this.#state;
    if (dataFile === null) return this.#allocator.allocate(want);
    return this.#inDataFile(dataFile, start, want);
  }

  /** `allocate`, when there is nothing to wait for; else null. */
  allocateAtOnce(start: number, want: number): Allocation | null {
    return this.#state.dataFile === null
      ? this.#allocator.allocateAtOnce(want)
      : this.#inDataFile(this.#state.dataFile, start, want);
  }

  /** See `Allocator.giveBackAtOnce`. */
  giveBackAtOnce(allocation: Allocation): void {
    if (this.#state.dataFile === null) this.#allocator.giveBackAtOnce(allocation);
  }

  #inDataFile(dataFile: Node, start: number, count: number): Allocation {
    // What lies there from an earlier life of the cluster is to be written over.
    const isFresh = start >= dataFile.lengthBytes;
    const first = hostCluster(start / this.#state.clusterBytes);
    return { first, count, isFresh, changes: [] };
  }

  /** Runs a step of an allocating write. What it throws comes after the clusters were given back, see `Allocator.giveBack`. */
  async undoingOnFailure<T>(allocation: Allocation, run: () => Promise<T>): Promise<T> {
    try {
      return await run();
    } catch (error) {
      await this.#giveBack(allocation);
      throw error;
    }
  }

  async #giveBack(allocation: Allocation): Promise<void> {
    if (this.#state.dataFile === null) await this.#allocator.giveBack(allocation);
  }
}
