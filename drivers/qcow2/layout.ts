/** Numbers of the qcow2 format (docs/interop/qcow2 of QEMU). All integers on disk are big-endian. */

export const MAGIC = 0x5146_49fb;
export const HEADER_V2_BYTES = 72;
export const HEADER_V3_BYTES = 104;

/** Offsets of the header's fields. */
export const HEADER = {
  magic: 0,
  version: 4,
  backingOffset: 8,
  backingSize: 16,
  clusterBits: 20,
  size: 24,
  cryptMethod: 32,
  l1Size: 36,
  l1Offset: 40,
  refcountTableOffset: 48,
  refcountTableClusters: 56,
  snapshots: 60,
  snapshotsOffset: 64,
  incompatible: 72,
  compatible: 80,
  autoclear: 88,
  refcountOrder: 96,
  headerLength: 100,
  compressionType: 104,
} as const;

export const EXTENSION = {
  end: 0,
  backingFormat: 0xe279_2aca,
  featureNames: 0x6803_f857,
  bitmaps: 0x2385_2875,
  encryption: 0x0537_be77,
  dataFile: 0x4441_5441,
} as const;

export const CRYPT_METHOD = { none: 0, aes: 1, luks: 2 } as const;

/** Said of an image with the encryption of version 1, which QEMU has given up writing in machines, too. */
export const AES_READ_ONLY = 'has the old AES encryption, which is not safe';

/** Incompatible feature bits. */
export const INCOMPATIBLE = {
  dirty: 1 << 0,
  corrupt: 1 << 1,
  dataFile: 1 << 2,
  compressionType: 1 << 3,
  extendedL2: 1 << 4,
} as const;
export const COMPATIBLE = { lazyRefcounts: 1 << 0 } as const;
export const AUTOCLEAR = { bitmaps: 1 << 0, rawDataFile: 1 << 1 } as const;

export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
export const MAX_L1_BYTES = 32 << 20;
export const MAX_REFCOUNT_TABLE_BYTES = 8 << 20;
export const MAX_SNAPSHOTS = 65_536;
export const MAX_SNAPSHOT_TABLE_BYTES = 64 << 20;
export const MAX_SNAPSHOT_EXTRA_BYTES = 1024;
export const MAX_BACKING_NAME_BYTES = 1023;
/** Host offsets have 56 bits; ours end at 2^53 all the same. */
export const ENTRY_BYTES = 8;
/** L2 entries with the bitmap of subclusters. */
export const EXTENDED_ENTRY_BYTES = 16;
export const SUBCLUSTERS = 32;
/** A subcluster has 512 bytes at least. */
export const MIN_EXTENDED_CLUSTER_BITS = 14;
/** Sizes and offsets of the guest are whole sectors: QEMU leaves out what is over. */
export const SECTOR_BYTES = 512;
