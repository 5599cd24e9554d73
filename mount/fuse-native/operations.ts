/**
 * The callbacks of libfuse 2, by path, over the directory of views. Every callback answers exactly once; what it throws
 * is answered as an errno and, when nobody asked for it, logged.
 */
import { constants as fileFlags } from 'node:fs';
import { constants } from 'node:os';
import type { Operations, Stat, Statfs } from 'fuse-native';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import type { ErrnoName } from '../../src/base/errno.ts';
import type { Log } from '../../src/base/log.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { View } from '../../src/block/view.ts';
import type { BackendCounters } from '../backend.ts';
import { type Directory, type Entry, type FileAttributes, ROOT_NODE_ID } from '../directory.ts';

/** statfs' unit: no file system on it should think in less. */
const STATFS_BLOCK_BYTES = 4096;
/** fuse-native carries 32 bits of a count of blocks. */
const MAX_STATFS_BLOCKS = 0xffff_ffff;
const MAX_HANDLE = 0x7fff_ffff;
const IO_BLOCK_BYTES = 65_536;
const NAME_MAX = 255;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;

/** Calls that would change the directory itself. */
const REFUSED = ['create', 'mknod', 'mkdir', 'unlink', 'rmdir', 'rename', 'link', 'symlink'];
const REFUSED_ON_FILES = ['chmod', 'chown'];

export interface OperationsOptions {
  readonly directory: Directory;
  readonly log: Log;
  readonly counters: BackendCounters;
}

/** What the callbacks need beside themselves: the values of extended attributes, for the buffers of `XattrFuse`. */
export interface ServedOperations {
  readonly operations: Partial<Operations>;
  extendedAttributes(path: string): Promise<ReadonlyMap<string, string>>;
}

export const serveOperations = (options: OperationsOptions): ServedOperations => {
  const server = new Server(options);
  return {
    operations: server.operations(),
    extendedAttributes: (path) => server.extendedAttributes(path),
  };
};

/** The negative number that the kernel of this machine knows the errno by. */
export const negativeErrno = (name: ErrnoName): number =>
  -(constants.errno[name as keyof typeof constants.errno] ?? constants.errno.EIO);

class Server {
  readonly #options: OperationsOptions;
  readonly #handles = new Map<number, Entry>();
  #nextHandle = 1;

  constructor(options: OperationsOptions) {
    this.#options = options;
  }

  operations(): Partial<Operations> {
    const refused = Object.fromEntries(
      [...REFUSED, ...REFUSED_ON_FILES].map((name) => [name, refuse(negativeErrno('EPERM'))]),
    );
    const { directory, counters } = this.#options;
    return {
      ...refused,
      getattr: (path, reply) => this.#answer('getattr', reply, () => this.#stat(path)),
      readdir: (_path, reply) =>
        this.#answer('readdir', reply, async () => {
          const names = (await directory.entries()).map((entry) => entry.name);
          return ['.', '..', ...names];
        }),
      open: (path, flags, reply) => this.#answer('open', reply, () => this.#open(path, flags)),
      release: (_path, handle, reply) =>
        this.#answer('release', reply, async () => this.#release(handle)),
      read: (_path, handle, buffer, lengthBytes, offset, reply) =>
        this.#count('read', reply, async () => {
          const read = await this.#view(handle).read(
            guestOffset(offset),
            buffer.subarray(0, lengthBytes),
          );
          counters.readBytes += read;
          return read;
        }),
      write: (_path, handle, buffer, lengthBytes, offset, reply) =>
        this.#count('write', reply, async () => {
          await this.#view(handle).write(guestOffset(offset), buffer.subarray(0, lengthBytes));
          counters.writtenBytes += lengthBytes;
          return lengthBytes;
        }),
      // Every write has reached the image before it was answered: closing a file has nothing left to do.
      flush: (_path, _handle, reply) => this.#answer('flush', reply, async () => undefined),
      fsync: (_path, _dataOnly, handle, reply) =>
        this.#answer('fsync', reply, () => this.#view(handle).flush()),
      truncate: (path, sizeBytes, reply) =>
        this.#answer('truncate', reply, async () =>
          (await this.#entry(path)).view.truncate(sizeBytes),
        ),
      ftruncate: (_path, handle, sizeBytes, reply) =>
        this.#answer('truncate', reply, () => this.#view(handle).truncate(sizeBytes)),
      statfs: (_path, reply) => this.#answer('statfs', reply, () => this.#statfs()),
      getxattr: (_path, _name, _position, reply) => reply(negativeErrno('ENODATA')),
      listxattr: (_path, reply) => reply(0),
    };
  }

  async extendedAttributes(path: string): Promise<ReadonlyMap<string, string>> {
    if (path === '/') return this.#options.directory.rootExtendedAttributes();
    return (await this.#entry(path)).extendedAttributes();
  }

  /** Runs a callback whose value is handed over as it is. */
  #answer<T>(op: string, reply: (result: number, value?: T) => void, run: () => Promise<T>): void {
    this.#options.counters.requests++;
    this.#options.counters.faults++;
    run().then(
      (value) => reply(0, value),
      (error: unknown) => reply(this.#errnoOf(op, error)),
    );
  }

  /** Runs a callback whose value is a number of bytes. */
  #count(op: string, reply: (result: number) => void, run: () => Promise<number>): void {
    this.#answer(op, (result, bytes: number | undefined) => reply(bytes ?? result), run);
  }

  #errnoOf(op: string, error: unknown): number {
    const failure = toBlockError(error, { op });
    if (failure.errno === 'EIO') this.#options.log.error(op, failure.describe());
    return negativeErrno(failure.errno);
  }

  async #entry(path: string): Promise<Entry> {
    const entry = await this.#options.directory.lookup(path.slice(1));
    if (entry !== null) return entry;
    throw new BlockError({ kind: 'not-found', message: 'no view of that name', path });
  }

  #view(handle: number): View {
    const entry = this.#handles.get(handle);
    if (entry !== undefined) return entry.view;
    throw new BlockError({ kind: 'closed', message: `no open handle ${handle}` });
  }

  async #open(path: string, flags: number): Promise<number> {
    const entry = await this.#entry(path);
    await entry.view.open();
    const writes = (flags & (fileFlags.O_WRONLY | fileFlags.O_RDWR)) !== 0;
    if (writes && entry.view.readOnly) {
      const message = `the view is read-only: ${entry.view.readOnlyReason}`;
      throw new BlockError({ kind: 'read-only', message, op: 'open' });
    }
    const handle = this.#freeHandle();
    this.#handles.set(handle, entry);
    this.#options.directory.opened(entry);
    return handle;
  }

  #release(handle: number): undefined {
    const entry = this.#handles.get(handle);
    if (entry === undefined) return;
    this.#handles.delete(handle);
    this.#options.directory.released(entry);
  }

  // 0 means "no handle" to fuse-native.
  #freeHandle(): number {
    do {
      this.#nextHandle = this.#nextHandle >= MAX_HANDLE ? 1 : this.#nextHandle + 1;
    } while (this.#handles.has(this.#nextHandle));
    return this.#nextHandle;
  }

  async #stat(path: string): Promise<Stat> {
    if (path === '/') {
      const root = await this.#options.directory.rootAttributes();
      return statOf(root, { type: S_IFDIR, inode: ROOT_NODE_ID });
    }
    const entry = await this.#entry(path);
    return statOf(await entry.attributes(), { type: S_IFREG, inode: entry.nodeId });
  }

  async #statfs(): Promise<Statfs> {
    const { totalBytes, freeBytes, availableBytes } = await this.#options.directory.space();
    const unit = Math.max(
      1,
      2 ** Math.ceil(Math.log2(totalBytes / STATFS_BLOCK_BYTES / MAX_STATFS_BLOCKS)),
    );
    const frsize = STATFS_BLOCK_BYTES * unit;
    const blocksOf = (bytes: number): number => Math.floor(bytes / frsize);
    return {
      bsize: frsize,
      frsize,
      blocks: blocksOf(totalBytes),
      bfree: blocksOf(freeBytes),
      bavail: blocksOf(availableBytes),
      files: 0,
      ffree: 0,
      favail: 0,
      namemax: NAME_MAX,
    };
  }
}

const statOf = (a: FileAttributes, more: { type: number; inode: number }): Stat => ({
  mode: more.type | a.mode,
  uid: a.uid,
  gid: a.gid,
  size: a.sizeBytes,
  nlink: 1,
  ino: more.inode,
  blksize: IO_BLOCK_BYTES,
  blocks: a.blocks,
  atime: new Date(a.accessTimeMs),
  mtime: new Date(a.modifyTimeMs),
  ctime: new Date(a.changeTimeMs),
});

/** The reply is the last argument of every callback. */
const refuse =
  (errno: number) =>
  (...args: unknown[]): void => {
    const reply = args.at(-1) as (result: number) => void;
    reply(errno);
  };
