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
   * Names the time since which others are kept out of the file, without a gap, whoever of us had the lock: two locks with the
   * same one have no writer of another program between them. Null where nobody is kept out.
   */
  readonly tenure: string | null;
}

export interface ImageLocks {
  /**
   * Takes QEMU's lock bytes on a file. Several holders in one process share: the strongest mode counts, and it
   * falls back when the stronger holder releases. Errors: EBUSY kind locked, naming the byte's meaning and the hint
   * `--lock off`, at once where we have had nothing of the file, else after some 200 ms, because who comes to a file that we keep
   * him out of is refused and gone; EOPNOTSUPP where the file system has no locks and `--lock on` demands them.
   */
  acquire(path: string, mode: LockMode): Promise<ImageLock>;
}

/** `--lock off`, and files that are no local files. */
export const noLocks: ImageLocks = {
  acquire: async () => ({ release: async () => undefined, tenure: null }),
};
