/**
 * Layers below a view's image that a commit changes: nobody else may see them meanwhile, and nobody else may be made of them,
 * because he would see something else afterwards.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { isIdle } from './idle-views.ts';
import type { ImageEntry } from './image-entry.ts';

export interface LayerClaim {
  /** Of the view whose layers they are. */
  readonly image: ImageEntry;
  /** Real paths. */
  readonly paths: readonly string[];
  /** Although other images are made of them. */
  readonly force: boolean;
}

/** Errors: EBUSY, naming who uses a layer. */
export const refuseUsedLayers = (
  { image, paths, force }: LayerClaim,
  images: readonly ImageEntry[],
): void => {
  const layers = images.filter((entry) => entry !== image && paths.includes(entry.host.path));
  for (const { name, handles, view, host } of layers) {
    if (handles > 0 || !isIdle(view)) throw busy(`its view ${name} is in use`, host.path);
  }
  if (force) return;
  const own = [image.name, image.candidate.fileName, ...layers.map((entry) => entry.name)];
  for (const entry of images) {
    if (entry === image || layers.includes(entry)) continue;
    const { chain, dataFiles } = entry.inspection;
    const used = [...chain.slice(1), ...dataFiles].find(({ path }) => paths.includes(path));
    if (used !== undefined) throw madeOf(entry.name, used.path);
  }
  // Of an image that another one stands in for.
  for (const { usedBy, host } of layers) {
    if (usedBy !== null && !own.includes(usedBy)) throw madeOf(usedBy, host.path);
  }
};

const madeOf = (user: string, path: string): BlockError =>
  busy(`'${user}' is made of it, and would show something else afterwards`, path);

const busy = (message: string, path: string): BlockError =>
  new BlockError({ kind: 'busy', message, path, op: 'commit' });
