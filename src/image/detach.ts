/** Taking leave of an add-cow file: what its guest sees is all in the image file, which goes on by itself. */
import { unlink } from 'node:fs/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { type OfflineContext, openImage } from './open.ts';

/**
 * Removes the image's own file, when its data file has everything; returns the data file's path. Errors: EOPNOTSUPP for
 * a format without such files; EINVAL while some of the content is below; those of opening it.
 */
export const detachImage = async (
  path: string,
  format: string | null,
  context: OfflineContext,
): Promise<string> => {
  await using image = await openImage(path, format, context, { writable: true });
  const { root } = image;
  const { driver } = root;
  if (driver.standsAlone === undefined) {
    const message = `the format ${root.descriptor.name} has no image file to leave`;
    throw new BlockError({ kind: 'unsupported', message, path, op: 'detach' });
  }
  const file = await driver.standsAlone();
  if (file === null) {
    const message = 'not all of its clusters are in the image file';
    const hint = "bring them there first: vdiskfs rebase -b '' FILE";
    throw new BlockError({ kind: 'bad-request', message, hint, path, op: 'detach' });
  }
  await root.flush();
  await unlink(path).catch((error: unknown) => {
    throw toBlockError(error, { op: 'detach', path });
  });
  return file.path;
};
