/** The compression types of the format (specification: "compression_type"): how one cluster is packed and unpacked. */
import { promisify } from 'node:util';
import { constants, deflateRaw, inflateRaw } from 'node:zlib';
import { zstdPool } from './zstd-pool.ts';

export const COMPRESSION = { zlib: 0, zstd: 1 } as const;

/** All of it runs off the main thread. */
export interface Compression {
  pack(cluster: Uint8Array): Promise<Uint8Array>;
  /** `packed` may be followed by anything. The cluster, or in words what is wrong: "compressed cluster …". */
  unpack(packed: Uint8Array, clusterBytes: number): Promise<Uint8Array | string>;
}

const deflate = promisify(deflateRaw);
const inflate = promisify(inflateRaw);

/** As QEMU packs: its reader has a window of 4 KiB. */
const DEFLATE = { windowBits: 12, memLevel: 9, level: constants.Z_DEFAULT_COMPRESSION } as const;

const zlib: Compression = {
  pack: (cluster) => deflate(cluster, DEFLATE),
  async unpack(packed, clusterBytes) {
    // The last sector is padded, and a stream may stop short of its end marker: only the output counts.
    const options = { maxOutputLength: clusterBytes, finishFlush: constants.Z_SYNC_FLUSH };
    try {
      const cluster = await inflate(packed, options);
      if (cluster.length === clusterBytes) return cluster;
      return `unpacks to ${cluster.length} bytes, not ${clusterBytes}`;
    } catch (error) {
      return `cannot be unpacked: ${error instanceof Error ? error.message : error}`;
    }
  },
};

const zstd: Compression = {
  async pack(cluster) {
    const packed = await zstdPool.run({
      kind: 'pack',
      bytes: cluster,
      clusterBytes: cluster.length,
    });
    if ('problem' in packed) throw new Error(`a cluster ${packed.problem}`);
    return packed.bytes;
  },
  async unpack(packed, clusterBytes) {
    const outcome = await zstdPool.run({ kind: 'unpack', bytes: packed, clusterBytes });
    return 'problem' in outcome ? outcome.problem : outcome.bytes;
  },
};

/** `type`: a compression type that `readHeader` let pass. */
export const compressionOf = (type: number): Compression =>
  type === COMPRESSION.zstd ? zstd : zlib;
