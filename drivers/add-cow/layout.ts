/** The numbers of the format (docs/ADD-COW.md). All integers are little-endian. */

/** `ACOW`. */
export const MAGIC = 0x574f_4341;

/** `ADD_COW` and 0xff: the magic of layouts before the one with four bytes. */
export const OLD_MAGIC = Uint8Array.from([0x41, 0x44, 0x44, 0x5f, 0x43, 0x4f, 0x57, 0xff]);

/** Offsets of the fields. */
export const FIELD = {
  backingOffset: 4,
  backingSize: 8,
  imageOffset: 12,
  imageSize: 16,
  clusterBits: 20,
  features: 24,
  compatible: 32,
  headerSize: 40,
  backingFormat: 44,
  imageFormat: 60,
} as const;

/** The fields together; names may begin here. */
export const FIELDS_BYTES = 76;

/** Of a format's name. What is written has a NUL in the last byte. */
export const FORMAT_BYTES = 16;

/** Bit 0 of the compatible features: neither bitmap nor backing file is used. */
export const ALL_ALLOCATED = 1;

/** Below 12, files are read and written, but not made. */
export const MIN_CLUSTER_BITS = 9;
export const MIN_CREATED_CLUSTER_BITS = 12;
export const MAX_CLUSTER_BITS = 21;
export const DEFAULT_CLUSTER_BYTES = 65_536;

export const MIN_HEADER_BYTES = 4096;

/** As a path of the host: a longer name opens nothing. */
export const MAX_NAME_BYTES = 4095;

export const headerBytesOf = (clusterBytes: number): number =>
  Math.max(MIN_HEADER_BYTES, clusterBytes);
