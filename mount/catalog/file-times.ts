/**
 * The times of one image's file. That of a guest's last write is kept here while the image is open: kernels send it along with each
 * fsync, and on the file it would make every fdatasync write the inode too.
 */
import { utimes } from 'node:fs/promises';
import { toBlockError } from '../../src/base/block-error.ts';
import { tryStatHostFile } from './host-file.ts';

export class FileTimes {
  #modifyTimeMs: number | null = null;
  /** The file's times are being changed by us: who looks at its stamp waits. */
  #setting: Promise<void> | null = null;

  /** Of the last write, as the kernel told it, while the file has another; null when it has the same. */
  get modifyTimeMs(): number | null {
    return this.#modifyTimeMs;
  }

  keep(modifyTimeMs: number | null): void {
    this.#modifyTimeMs = modifyTimeMs;
  }

  /** Nobody is changing the file's times. */
  async settled(): Promise<void> {
    while (this.#setting !== null) await this.#setting;
  }

  /** Changes the file's, and calls `then` before anybody looks at them again. Errors: those of the host. */
  async set(
    path: string,
    times: { readonly accessTimeMs: number; readonly modifyTimeMs: number },
    then: () => Promise<void>,
  ): Promise<void> {
    this.#modifyTimeMs = null;
    const setting = setFileTimes(path, times).then(then);
    const settled = setting.catch(() => undefined);
    this.#setting = settled;
    try {
      await setting;
    } finally {
      if (this.#setting === settled) this.#setting = null;
    }
  }

  /** Gives the file what was kept, if it is still the same file. Errors: those of the host. */
  async give(path: string, identity: string): Promise<void> {
    const modifyTimeMs = this.#modifyTimeMs;
    this.#modifyTimeMs = null;
    if (modifyTimeMs === null) return;
    const now = await tryStatHostFile(path);
    if (now?.identity !== identity) return;
    await setFileTimes(path, { accessTimeMs: now.accessTimeMs, modifyTimeMs });
  }
}

const setFileTimes = async (
  path: string,
  { accessTimeMs, modifyTimeMs }: { readonly accessTimeMs: number; readonly modifyTimeMs: number },
): Promise<void> => {
  await utimes(path, accessTimeMs / 1000, modifyTimeMs / 1000).catch((error: unknown) => {
    throw toBlockError(error, { op: 'set times', path });
  });
};
