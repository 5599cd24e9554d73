/** Temporary directories of tests, removed when the test or suite ends, also when it fails. */
import { execFile } from 'node:child_process';
import { mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before } from 'node:test';
import { promisify } from 'node:util';
import { mountsBelow } from './mounts-below.ts';

const unmount = promisify(execFile);

/** What `node:test` hands to a test. */
export interface Cleanup {
  after(hook: () => Promise<void>): void;
}

const make = async (): Promise<string> => realpath(await mkdtemp(join(tmpdir(), 'vdiskfs-test-')));

/** A mount that the test has left, of a server that died, say, goes as well, and is the test's failure. */
const remove = async (directory: string): Promise<void> => {
  const left = mountsBelow(directory);
  for (const { mountpoint } of left) await unmount('umount', ['-i', '-l', mountpoint]);
  await rm(directory, { recursive: true, force: true });
  if (left.length > 0) throw new Error(`left mounted: ${left.map((m) => m.mountpoint).join(' ')}`);
};

/** A fresh directory (its real path), removed after test `t`. */
export const scratchDirectory = async (t: Cleanup): Promise<string> => {
  const directory = await make();
  t.after(() => remove(directory));
  return directory;
};

/** The same for a suite: call it in the body of `describe`; the path is there when its tests run. */
export const suiteDirectory = (): { readonly path: string } => {
  const suite = { path: '' };
  before(async () => {
    suite.path = await make();
  });
  after(() => remove(suite.path));
  return suite;
};
