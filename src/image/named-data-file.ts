/** The data file that the options of a new image name: opened, or made, while the image is made. */
import { open, unlink } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { DriverDescriptor } from '../block/driver.ts';
import { readFileName } from '../block/file-name.ts';
import type { Node } from '../block/node.ts';
import { type OfflineContext, openImage } from './open.ts';

/** Closes with `using`; one that was made is removed then, unless it is kept. */
export interface NamedDataFile extends AsyncDisposable {
  /** Open for writing. */
  readonly root: Node;
  /** It was not there before. */
  readonly isNew: boolean;
  /** The image that it belongs to is there. */
  keep(): void;
}

/**
 * Null for an image without one. The person names the file, so it needs no permission. Errors: EINVAL naming the option;
 * ENOENT for one that has to be there; those of opening it.
 */
export const openNamedDataFile = async (
  image: { readonly path: string; readonly options: ReadonlyMap<string, string> },
  descriptor: DriverDescriptor,
  context: OfflineContext,
): Promise<NamedDataFile | null> => {
  const plan = descriptor.createDataFile?.(image.options) ?? null;
  if (plan === null) return null;
  const { name } = readFileName(plan.link.filename, image.path);
  const path = resolve(dirname(image.path), name);
  if (path === resolve(image.path)) {
    const message = 'would be its own data file';
    throw new BlockError({ kind: 'bad-request', message, path, op: 'create' });
  }
  const isNew = plan.isMade && (await make(path));
  let isKept = !isNew;
  const remove = async (): Promise<void> => {
    if (!isKept) await unlink(path).catch(() => undefined);
  };
  try {
    const opened = await openImage(path, plan.link.format, context, { writable: true });
    if (plan.isEmpty === true && opened.root.lengthBytes > 0) {
      await opened[Symbol.asyncDispose]();
      const message = 'is there already and not empty: its content would be lost';
      throw new BlockError({ kind: 'bad-request', message, path, op: 'create' });
    }
    return {
      root: opened.root,
      isNew,
      keep: () => {
        isKept = true;
      },
      [Symbol.asyncDispose]: async () => {
        try {
          await opened[Symbol.asyncDispose]();
        } finally {
          await remove();
        }
      },
    };
  } catch (error) {
    await remove();
    throw error;
  }
};

/** False when it is there already. */
const make = async (path: string): Promise<boolean> => {
  try {
    await (await open(path, 'wx', 0o644)).close();
    return true;
  } catch (error) {
    const failure = toBlockError(error, { op: 'create', path });
    if (failure.errno === 'EEXIST') return false;
    throw failure;
  }
};
