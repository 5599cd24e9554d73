/** What a backup writes to: an image of any format that is as long as its source, in whole blocks. */
import { alignUp, isAllZero } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { Node } from '../block/node.ts';

/** Smaller blocks cost more requests than they save copies. */
const MIN_BLOCK_BYTES = 64 << 10;

export interface BackupTargetOptions {
  readonly node: Node;
  /** Clusters are packed where that makes them smaller. */
  readonly compress: boolean;
  /** What reads as zeros is left out: it does so in the target already, and nothing will lie below the target. */
  readonly leavesZeroesOut: boolean;
}

export class BackupTarget {
  readonly #options: BackupTargetOptions;

  constructor(options: BackupTargetOptions) {
    this.#options = options;
  }

  get node(): Node {
    return this.#options.node;
  }

  /** The unit of copying: whole clusters of the target. */
  get blockBytes(): number {
    return Math.max(MIN_BLOCK_BYTES, this.node.driver.clusterBytes);
  }

  /** Whether what reads as zeros is no work. */
  get leavesZeroesOut(): boolean {
    return this.#options.leavesZeroesOut;
  }

  /** Whole blocks; at the end of the source what there is of the last. Errors: those of the target. */
  async write(at: number, bytes: Uint8Array): Promise<void> {
    if (isAllZero(bytes)) return this.zero(at, bytes.length);
    if (this.#options.compress) return this.#writePacked(at, bytes);
    return this.node.write(guestOffset(at), bytes);
  }

  /** Reads as zeros afterwards, also when the target is put on another backing file later. */
  async zero(at: number, lengthBytes: number): Promise<void> {
    const { node, leavesZeroesOut } = this.#options;
    if (leavesZeroesOut) return;
    const offset = guestOffset(at);
    await node.writeZeroes(offset, lengthBytes, { unmap: true });
    if (node.backing === null && node.driver.populate !== undefined) {
      await node.populate(offset, lengthBytes, null);
    }
  }

  async #writePacked(at: number, bytes: Uint8Array): Promise<void> {
    const { node } = this;
    const { clusterBytes } = node.driver;
    for (let done = 0; done < bytes.length; done += clusterBytes) {
      const cluster = bytes.subarray(done, done + clusterBytes);
      if (isAllZero(cluster)) await this.zero(at + done, cluster.length);
      else
        await node.writeCompressed(guestOffset(at + done), this.#wholeCluster(at + done, cluster));
    }
  }

  // The target may be longer than the source by less than a sector: it is packed to its own end.
  #wholeCluster(at: number, bytes: Uint8Array): Uint8Array {
    const { clusterBytes, lengthBytes } = this.node.driver;
    const end = Math.min(alignUp(at + 1, clusterBytes), lengthBytes);
    if (bytes.length === end - at) return bytes;
    const whole = new Uint8Array(end - at);
    whole.set(bytes);
    return whole;
  }
}
