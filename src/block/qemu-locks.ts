/**
 * QEMU's image locks (block/file-posix.c): byte-range locks of the open file description. Byte 100 + n held shared says
 * "I use permission n", byte 200 + n "I share permission n with nobody". Who wants in takes its own bytes first and then
 * looks whether somebody holds the opposite ones.
 *
 * One instance for each process that opens images: the supervisor of a mount, or an offline command. Holders in this
 * process share one open file description a file, so they never conflict with each other; the strongest mode counts.
 */
import { randomUUID } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { isByteLocked, lockByte } from '../os/file-locks.ts';
import type { ImageLock, ImageLocks, LockMode } from './image-locks.ts';

const PERMISSION_BYTE = 100;
const UNSHARED_BYTE = 200;
/** After the last byte that anybody locks: there are at most a hundred permissions. */
const END_BYTE = 300;
const PERMISSION = { consistentRead: 0, write: 1, resize: 3 } as const;
const PERMISSION_NAME = ['consistent read', 'write', 'write unchanged', 'resize'] as const;

interface Bytes {
  readonly used: readonly number[];
  readonly unshared: readonly number[];
}

/** A writer changes content and size, and lets nobody else do so; a reader only demands that nobody does. */
const BYTES: Record<LockMode, Bytes> = {
  read: { used: [PERMISSION.consistentRead], unshared: [PERMISSION.write, PERMISSION.resize] },
  write: {
    used: [PERMISSION.consistentRead, PERMISSION.write, PERMISSION.resize],
    unshared: [PERMISSION.write, PERMISSION.resize],
  },
};
const NO_BYTES: Bytes = { used: [], unshared: [] };

/** A program that comes to a file that we keep it out of has bytes of its own until it has looked: QEMU for a few microseconds. */
const TRIES = 10;
const BETWEEN_TRIES_MS = 20;

/** errno values with which a file system says that it has no such locks. */
const NO_LOCKS = new Set(['EINVAL', 'ENOLCK', 'EOPNOTSUPP', 'ENOSYS']);

interface Held {
  readonly fd: number;
  readonly path: string;
  /** What is given back when nobody needs it. Of an adopted descriptor all that a writer has: what it really holds is not known. */
  bytes: Bytes;
  /** What holders are sure of; null: of nothing. */
  mode: LockMode | null;
  /** Came with locks from an earlier process: none of them falls, whatever is refused meanwhile. */
  adopted: boolean;
  /** Of this descriptor: bytes that keep others out fall only with it. */
  readonly tenure: string;
  readonly holders: Record<LockMode, number>;
}

/** What keeps others out of a file: `key` is the file's, `tenure` see `ImageLock`. */
export interface KeptLock {
  readonly key: string;
  readonly tenure: string;
}

export interface QemuLocksOptions {
  /** `auto` goes on without locks where the file system has none; `on` refuses such a file. */
  readonly require: 'auto' | 'on';
  readonly log: Log;
  /** A descriptor is to hold locks, and is to hold none any more: for who keeps copies of it. */
  readonly opened?: (lock: KeptLock, fd: number) => void;
  readonly closed?: (lock: KeptLock) => void;
}

export class QemuLocks implements ImageLocks {
  readonly #options: QemuLocksOptions;
  readonly #held = new Map<string, Held>();
  #isClosed = false;

  constructor(options: QemuLocksOptions) {
    this.#options = options;
  }

  /** Each try is synchronous inside, so two calls never interleave in one. */
  async acquire(path: string, mode: LockMode): Promise<ImageLock> {
    for (let left = TRIES - 1; ; left--) {
      const { held, key } = this.#open(path);
      try {
        this.#raise(held, mode);
        return this.#lockOf(key, held, mode);
      } catch (error) {
        this.#settle(key, held);
        // Who had the file before we came keeps it; who came while we kept others out is refused, and gone in a moment.
        if (left === 0 || !this.#held.has(key) || !isLocked(error)) throw error;
        await sleep(BETWEEN_TRIES_MS);
        if (this.#isClosed) throw error;
      }
    }
  }

  #lockOf(key: string, held: Held, mode: LockMode): ImageLock {
    held.holders[mode]++;
    let released = false;
    const release = async (): Promise<void> => {
      if (released) return;
      released = true;
      held.holders[mode]--;
      this.#settle(key, held);
    };
    return { release, tenure: held.mode === null ? null : held.tenure };
  }

  /**
   * Goes on with a descriptor that an earlier process has locked, so that nobody gets in between. Its locks are kept until
   * `settleAdopted`.
   */
  adopt(fd: number, tenure: string): void {
    const { dev, ino } = fstatSync(fd);
    const key = `${dev}:${ino}`;
    if (this.#held.has(key)) closeSync(fd);
    else {
      const holders = { read: 0, write: 0 };
      this.#held.set(key, {
        fd,
        path: readlinkSync(`/proc/self/fd/${fd}`),
        bytes: BYTES.write,
        mode: null,
        adopted: true,
        tenure,
        holders,
      });
    }
  }

  /** What is needed of adopted locks has been asked for: gives the rest back. */
  settleAdopted(): void {
    for (const [key, held] of this.#held) {
      if (!held.adopted) continue;
      held.adopted = false;
      this.#settle(key, held);
    }
  }

  /** Gives everything back at once: the process is ending. */
  close(): void {
    this.#isClosed = true;
    for (const held of this.#held.values()) closeSync(held.fd);
    this.#held.clear();
  }

  // The descriptor is open for reading: shared locks need no more, and a lock never makes a file busy for writing.
  #open(path: string): { key: string; held: Held } {
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    } catch (error) {
      throw toBlockError(error, { op: 'lock', path });
    }
    const { dev, ino } = fstatSync(fd);
    const key = `${dev}:${ino}`;
    const known = this.#held.get(key);
    if (known !== undefined) {
      closeSync(fd);
      return { key, held: known };
    }
    const holders = { read: 0, write: 0 };
    const tenure = randomUUID();
    const held: Held = { fd, path, bytes: NO_BYTES, mode: null, adopted: false, tenure, holders };
    this.#held.set(key, held);
    this.#options.opened?.({ key, tenure }, fd);
    return { key, held };
  }

  #raise(held: Held, mode: LockMode): void {
    const before = held.bytes;
    // Whoever tries meanwhile, and is refused, has bytes of his own for a moment.
    if (held.mode === mode || held.mode === 'write') return;
    try {
      this.#take(held, BYTES[mode]);
      this.#refuseConflict(held, BYTES[mode]);
      held.mode = mode;
    } catch (error) {
      const failure = toBlockError(error, { path: held.path });
      this.#keepOnly(held, before);
      if (!NO_LOCKS.has(failure.errno)) throw failure;
      if (this.#options.require === 'on') {
        throw new BlockError({
          kind: 'unsupported',
          message: `its file system has no byte-range locks (${failure.errno}), and --lock on demands them`,
          hint: 'use --lock auto or off',
          path: held.path,
        });
      }
      this.#options.log.warning(
        held.path,
        `not locked: its file system has no byte-range locks (${failure.errno})`,
      );
    }
  }

  #take(held: Held, wanted: Bytes): void {
    if (!held.adopted) held.bytes = wanted;
    for (const n of wanted.used) this.#lock(held, PERMISSION_BYTE + n);
    for (const n of wanted.unshared) this.#lock(held, UNSHARED_BYTE + n);
  }

  #lock(held: Held, offset: number): void {
    if (lockByte(held.fd, offset, 'shared')) return;
    throw lockedError(held.path, `another program holds byte ${offset} of it exclusively`);
  }

  #refuseConflict(held: Held, wanted: Bytes): void {
    // As a rule nobody else has any.
    if (!isByteLocked(held.fd, PERMISSION_BYTE, END_BYTE - PERMISSION_BYTE)) return;
    for (const n of wanted.used) {
      if (isByteLocked(held.fd, UNSHARED_BYTE + n)) {
        throw lockedError(
          held.path,
          `another program does not share '${PERMISSION_NAME[n]}' on it`,
        );
      }
    }
    for (const n of wanted.unshared) {
      if (isByteLocked(held.fd, PERMISSION_BYTE + n)) {
        throw lockedError(held.path, `another program uses '${PERMISSION_NAME[n]}' on it`);
      }
    }
  }

  #settle(key: string, held: Held): void {
    if (held.holders.write > 0 || held.adopted) return;
    if (held.holders.read > 0) {
      if (held.mode === null) return;
      held.mode = 'read';
      this.#keepOnly(held, BYTES.read);
      return;
    }
    this.#held.delete(key);
    // First of all: whoever took over a copy that has no locks would go on with its tenure.
    this.#options.closed?.({ key, tenure: held.tenure });
    // A copy of the descriptor elsewhere would keep them.
    this.#keepOnly(held, NO_BYTES);
    closeSync(held.fd);
  }

  #keepOnly(held: Held, kept: Bytes): void {
    const { used, unshared } = held.bytes;
    const gone = [
      ...used.filter((n) => !kept.used.includes(n)).map((n) => PERMISSION_BYTE + n),
      ...unshared.filter((n) => !kept.unshared.includes(n)).map((n) => UNSHARED_BYTE + n),
    ];
    held.bytes = kept;
    for (const offset of gone) {
      try {
        lockByte(held.fd, offset, 'none');
      } catch {
        // A file system without locks has nothing to give back.
      }
    }
  }
}

const isLocked = (error: unknown): boolean =>
  error instanceof BlockError && error.kind === 'locked';

const lockedError = (path: string, message: string): BlockError =>
  new BlockError({
    kind: 'locked',
    message,
    hint: 'end that program, or use --lock off',
    path,
    op: 'lock',
  });
