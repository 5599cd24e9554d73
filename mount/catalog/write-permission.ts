/** Whether an image may be written, as far as shows without opening it. */
import { accessSync } from 'node:fs';
import { access, constants } from 'node:fs/promises';
import { looks } from '../../src/os/local-file-systems.ts';
import type { HostFile } from './host-file.ts';
import type { Inspection } from './inspection.ts';

export const CORRUPT = 'it is marked corrupt and needs a repair';

/** Why not, for people; null when it may. */
export const whyReadOnly = async (image: {
  readonly host: HostFile;
  readonly inspection: Inspection;
  /** Of the whole mount. */
  readonly readOnly: boolean;
  /** What it went on with after a pivot is not there; null where it is. */
  readonly missing: string | null;
  /** The view whose image uses this one as backing; null for none. */
  readonly usedBy: string | null;
  /** Why the file, with this stamp, did not open for writing; null when it was not tried. */
  readonly unwritable: { readonly stamp: string; readonly reason: string } | null;
}): Promise<string | null> => {
  const { host, inspection, usedBy, unwritable } = image;
  const { driver, description } = inspection;
  if (image.readOnly) return 'the mount is read-only';
  if (image.missing !== null) return image.missing;
  const whileUsed = usedBy === null ? null : `'${usedBy}' uses it as its backing image`;
  // Opening it says what is wrong, whatever it is opened for; what cannot be read for the moment may be in use.
  if (driver === null || description === null) return whileUsed;
  if (driver.capabilities.write !== true) return `the format ${driver.name} is only read`;
  const { readOnlyReason } = description;
  if (typeof readOnlyReason === 'string') return readOnlyReason;
  if (description.corrupt) return CORRUPT;
  if (description.dirty && driver.capabilities.repair !== true) {
    return 'it was not closed cleanly and needs a repair';
  }
  if (unwritable?.stamp === host.stamp) return unwritable.reason;
  if (whileUsed !== null) return whileUsed;
  const files = [{ path: host.path, remote: inspection.chain[0]?.remote ?? null }];
  for (const { path, remote } of [...files, ...inspection.dataFiles]) {
    if (remote?.isWritable === false) return 'its server gives it for reading only';
    if (remote !== null) continue;
    const isLocal = path === host.path && typeof host.fileSystem === 'number';
    if (!(isLocal && looks.mayTry() ? isWritableNow(path) : await isWritable(path)))
      return path === host.path ? 'its file is not writable' : `'${path}' is not writable`;
  }
  return null;
};

const isWritable = (path: string): Promise<boolean> =>
  access(path, constants.W_OK).then(
    () => true,
    () => false,
  );

const isWritableNow = (path: string): boolean => {
  try {
    looks.timed(() => accessSync(path, constants.W_OK));
    return true;
  } catch {
    return false;
  }
};
