/**
 * The kernel's FUSE protocol 7.40 (include/uapi/linux/fuse.h): opcodes, flags, and the places of the fields that are
 * read and written. All integers are in the byte order of the machine, which is little-endian wherever Node runs.
 */

/** Bytes of `fuse_in_header` and `fuse_out_header`. */
export const IN_HEADER_BYTES = 40;
export const OUT_HEADER_BYTES = 16;

export const OPCODE = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  GETLK: 31,
  SETLK: 32,
  SETLKW: 33,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  BMAP: 37,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  SYNCFS: 50,
  TMPFILE: 51,
  STATX: 52,
} as const;

/** `flags` of INIT. */
export const INIT = {
  ASYNC_READ: 1 << 0,
  BIG_WRITES: 1 << 5,
  DO_READDIRPLUS: 1 << 13,
  READDIRPLUS_AUTO: 1 << 14,
  ASYNC_DIO: 1 << 15,
  WRITEBACK_CACHE: 1 << 16,
  PARALLEL_DIROPS: 1 << 18,
  MAX_PAGES: 1 << 22,
  HANDLE_KILLPRIV_V2: 1 << 28,
  INIT_EXT: 1 << 30,
} as const;

/** `flags2` of INIT. */
export const INIT2 = {
  DIRECT_IO_ALLOW_MMAP: 1 << 4,
  PASSTHROUGH: 1 << 5,
  HAS_RESEND: 1 << 7,
} as const;

/** OPEN reply flags. */
export const FOPEN = {
  DIRECT_IO: 1 << 0,
  KEEP_CACHE: 1 << 1,
  CACHE_DIR: 1 << 3,
  PARALLEL_DIRECT_WRITES: 1 << 6,
  PASSTHROUGH: 1 << 7,
} as const;

/** `valid` of SETATTR. */
export const SETATTR = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  ATIME: 1 << 4,
  MTIME: 1 << 5,
  ATIME_NOW: 1 << 7,
  MTIME_NOW: 1 << 8,
} as const;

/** `write_flags`: the write comes from the page cache, nobody waits for it by name. */
export const WRITE_CACHE = 1 << 0;

/** Notification codes, sent with unique 0. */
export const NOTIFY = { INVAL_INODE: 2, INVAL_ENTRY: 3, RESEND: 7 } as const;

export const S_IFREG = 0o100000;
export const S_IFDIR = 0o040000;
export const DT_REG = 8;
export const DT_DIR = 4;
export const O_ACCMODE = 3;
/** Linux' O_DIRECT, but for arm64, which has another. */
export const O_DIRECT = process.arch === 'arm64' ? 0o200000 : 0o40000;

/** `fuse_in_header`. */
export const IN = {
  length: 0,
  opcode: 4,
  unique: 8,
  nodeId: 16,
  uid: 24,
  gid: 28,
  pid: 32,
} as const;
/** `fuse_out_header`. */
export const OUT = { length: 0, error: 4, unique: 8 } as const;

/** Fields of request bodies; offsets from the end of the header. `bytes` is the length of the fixed part. */
export const READ_IN = { bytes: 40, offset: 8, size: 16, flags: 32 } as const;
export const WRITE_IN = { bytes: 40, offset: 8, size: 16, writeFlags: 20, flags: 32 } as const;
export const OPEN_IN = { bytes: 8, flags: 0 } as const;
export const RELEASE_IN = { bytes: 24, handle: 0, flags: 8 } as const;
/** `padding`: zeros from the kernel; a worker leaves there the errno of a sync of its own that has failed. */
export const FSYNC_IN = { bytes: 16, padding: 12 } as const;
export const SETATTR_IN = {
  bytes: 88,
  valid: 0,
  size: 16,
  accessTime: 32,
  modifyTime: 40,
  accessNanoseconds: 56,
  modifyNanoseconds: 60,
} as const;
export const FALLOCATE_IN = { bytes: 32, offset: 8, length: 16, mode: 24 } as const;
export const LSEEK_IN = { bytes: 24, offset: 8, whence: 16 } as const;
export const GETXATTR_IN = { bytes: 8, size: 0 } as const;
export const INTERRUPT_IN = { bytes: 8, unique: 0 } as const;
export const BATCH_FORGET_IN = { bytes: 8, count: 0, entryBytes: 16 } as const;
export const COPY_FILE_RANGE_IN = {
  bytes: 56,
  offsetIn: 8,
  nodeIdOut: 16,
  offsetOut: 32,
  length: 40,
} as const;
export const INIT_IN = {
  bytes: 64,
  major: 0,
  minor: 4,
  maxReadahead: 8,
  flags: 12,
  flags2: 16,
} as const;

/** Lengths of reply bodies. */
const ATTR_BYTES = 88;
export const ENTRY_OUT_BYTES = 40 + ATTR_BYTES;
export const ATTR_OUT_BYTES = 16 + ATTR_BYTES;
export const OPEN_OUT_BYTES = 16;
export const WRITE_OUT_BYTES = 8;
export const STATFS_OUT_BYTES = 80;
export const LSEEK_OUT_BYTES = 8;
export const GETXATTR_OUT_BYTES = 8;
export const INIT_OUT_BYTES = 64;
export const DIRENT_BYTES = 24;
