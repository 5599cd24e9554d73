/**
 * The contract of image locks: QEMU's OFD byte-range locks. In a mount they are taken and held by the
 * supervisor, so that no other program gets in between an engine's death and the next one's opening; offline
 * commands hold their own (`src/os`).
 */

/** `write`: this process changes the image. `read`: it reads, and nobody may change it meanwhile. */
export type LockMode = 'read' | 'write';

export interface ImageLock {
  /** Idempotent. */
  release(): Promise<void>;
  /**
   * The file was locked from when a process of this mount died that had opened it: no other program can have written it meanwhile. False
   * where there are no locks.
   */
  readonly isContinued: boolean;
}

/** A lock of who knows since when. */
export interface DatedLock extends ImageLock {
  /** `performance.now()` when this process began to keep others out of the file; null when it does not. */
  readonly heldSinceMs: number | null;
}

export interface DatedLocks extends ImageLocks {
  acquire(path: string, mode: LockMode): Promise<DatedLock>;
}

export interface ImageLocks {
  /**
   * Takes QEMU's lock bytes on a file. Several holders in one process share: the strongest mode counts, and it
   * falls back when the stronger holder releases. Errors: EBUSY kind locked, naming the byte's meaning and the hint
   * `--lock off`; EOPNOTSUPP where the file system has no locks and `--lock on` demands them.
   */
  acquire(path: string, mode: LockMode): Promise<ImageLock>;
}

/** `--lock off`, and files that are no local files. */
export const noLocks: DatedLocks = {
  acquire: async () => ({
    release: async () => undefined,
    isContinued: false,
    heldSinceMs: null,
  }),
};
