/** Temporary directories of tests, removed when the test ends, also when it fails. */
import { mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** What `node:test` hands to a test or a suite's hooks. */
export interface Cleanup {
  after(hook: () => Promise<void>): void;
}

/** A fresh directory (its real path), removed after test `t`. */
export const scratchDirectory = async (t: Cleanup): Promise<string> => {
  const directory = await realpath(await mkdtemp(join(tmpdir(), 'vdiskfs-test-')));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
};
