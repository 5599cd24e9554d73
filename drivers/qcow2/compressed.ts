/** Reading compressed clusters (specification: "Compressed Clusters Descriptor"): exactly one cluster out. */
import { invalidImage } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { type Compression, compressionOf } from './compression.ts';
import { compressedPlace, entryHex, type TableEntry } from './entry.ts';
import type { Qcow2Header } from './header.ts';

/** Clusters kept unpacked: a guest reads one piece after the other of the same cluster. */
const KEPT_CLUSTERS = 8;

export class CompressedClusters {
  readonly #file: Node;
  readonly #path: string;
  readonly #clusterBits: number;
  readonly #compression: Compression;
  readonly #kept = new Map<string, Promise<Uint8Array>>();

  constructor(file: Node, path: string, header: Qcow2Header) {
    this.#file = file;
    this.#path = path;
    this.#clusterBits = header.clusterBits;
    this.#compression = compressionOf(header.compressionType);
  }

  /** The cluster's bytes, not to be changed. Two readers share one unpacking. Errors: EIO. */
  read(entry: TableEntry): Promise<Uint8Array> {
    const key = `${entry.high}:${entry.low}`;
    const known = this.#kept.get(key);
    this.#kept.delete(key);
    const cluster = known ?? this.#unpack(entry);
    this.#kept.set(key, cluster);
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > KEPT_CLUSTERS && oldest !== undefined) this.#kept.delete(oldest);
    cluster.catch(() => this.#kept.delete(key));
    return cluster;
  }

  /** Host clusters are used anew: what was unpacked from them is old. */
  forget(): void {
    this.#kept.clear();
  }

  async #unpack(entry: TableEntry): Promise<Uint8Array> {
    const { hostOffset, maxBytes } = compressedPlace(entry.high, entry.low, this.#clusterBits);
    const context = { path: this.#path, offset: hostOffset };
    const value = entryHex(entry.high, entry.low);
    if (hostOffset >= this.#file.lengthBytes) {
      throw invalidImage(`compressed cluster ${value} lies past the end of the file`, context);
    }
    const packed = new Uint8Array(maxBytes);
    await this.#file.readClipped(guestOffset(hostOffset), packed);
    const clusterBytes = 2 ** this.#clusterBits;
    const unpacked = await this.#compression.unpack(packed, clusterBytes);
    if (typeof unpacked === 'string')
      throw invalidImage(`compressed cluster ${value} ${unpacked}`, context);
    return unpacked;
  }
}
