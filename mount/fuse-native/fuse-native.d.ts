/** The part of the npm package fuse-native (2.2.6) that is used; it ships no types. */
declare module 'fuse-native' {
  /** A negative errno, or 0. */
  type Reply = (result: number) => void;
  /** Answers an operation of the native side: a result (negative errno, or a count), then what the operation gives. */
  type Signal = (result: number, ...values: unknown[]) => void;

  export interface Stat {
    readonly mode: number;
    readonly uid: number;
    readonly gid: number;
    readonly size: number;
    readonly nlink: number;
    readonly ino: number;
    readonly blksize: number;
    readonly blocks: number;
    readonly atime: Date;
    readonly mtime: Date;
    readonly ctime: Date;
  }

  export interface Statfs {
    readonly bsize: number;
    readonly frsize: number;
    readonly blocks: number;
    readonly bfree: number;
    readonly bavail: number;
    readonly files: number;
    readonly ffree: number;
    readonly favail: number;
    readonly namemax: number;
  }

  export interface Operations {
    getattr(path: string, reply: (result: number, stat?: Stat) => void): void;
    readdir(path: string, reply: (result: number, names?: readonly string[]) => void): void;
    open(path: string, flags: number, reply: (result: number, handle?: number) => void): void;
    release(path: string, handle: number, reply: Reply): void;
    read(
      path: string,
      handle: number,
      buffer: Buffer,
      lengthBytes: number,
      offset: number,
      reply: (bytesOrErrno: number) => void,
    ): void;
    write(
      path: string,
      handle: number,
      buffer: Buffer,
      lengthBytes: number,
      offset: number,
      reply: (bytesOrErrno: number) => void,
    ): void;
    flush(path: string, handle: number, reply: Reply): void;
    fsync(path: string, dataOnly: number, handle: number, reply: Reply): void;
    truncate(path: string, sizeBytes: number, reply: Reply): void;
    ftruncate(path: string, handle: number, sizeBytes: number, reply: Reply): void;
    statfs(path: string, reply: (result: number, statfs?: Statfs) => void): void;
    getxattr(path: string, name: string, position: number, reply: Reply): void;
    listxattr(path: string, reply: Reply): void;
    [refused: string]: unknown;
  }

  export default class Fuse {
    constructor(mountpoint: string, operations: Partial<Operations>, options: { timeout: false });
    mount(done: (error: Error | null) => void): void;
    /** The argument of `-o`, built from the options; empty for none. */
    _fuseOptions(): string;
    _op_getxattr(signal: Signal, path: string, name: string, value: Buffer, position: number): void;
    _op_listxattr(signal: Signal, path: string, list: Buffer): void;
  }
}
