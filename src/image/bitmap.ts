/** Working on the dirty bitmaps that an image keeps: `vdiskfs bitmap`, and what `vdiskfs convert --bitmaps` takes along. */
import { present } from '../base/assert.ts';
import { BlockError } from '../base/block-error.ts';
import { defaultGranularity, refuseOtherLength } from '../block/bitmap-rules.ts';
import { DirtyBitmap } from '../block/dirty-bitmap.ts';
import { type BitmapStore, TrackedBitmap } from '../block/dirty-tracking.ts';
import type { Node } from '../block/node.ts';
import { type OfflineContext, openImage } from './open.ts';

export type BitmapAction =
  /** Granularity null: that of a cluster, 4 to 64 KiB. */
  | { readonly kind: 'add'; readonly granularityBytes: number | null }
  | { readonly kind: 'remove' | 'clear' | 'enable' | 'disable' }
  /** Of the same image, or of the other one that the request names. */
  | { readonly kind: 'merge'; readonly source: string };

export interface BitmapRequest {
  readonly path: string;
  readonly format: string | null;
  readonly name: string;
  /** Done in this order; what came before one that fails is kept, as with qemu-img. */
  readonly actions: readonly BitmapAction[];
  /** Where the sources of merges are; null: in the image itself. */
  readonly mergeFrom: { readonly path: string; readonly format: string | null } | null;
}

/** Errors: ENOENT, EEXIST, EINVAL for a bitmap; EOPNOTSUPP for a format without; those of the images. */
export const changeBitmap = async (
  request: BitmapRequest,
  context: OfflineContext,
): Promise<void> => {
  const { path, format, actions } = request;
  const sources = await readSources(request, context);
  await using image = await openImage(path, format, context, {
    writable: true,
    withoutBacking: true,
  });
  const store = storeOf(image.root);
  for (const action of actions) await applyAction(image.root, store, request, action, sources);
  await store.save();
};

/** The format's store. Errors: EOPNOTSUPP. */
export const storeOf = (root: Node): BitmapStore => {
  const { bitmapStore } = root.driver;
  if (bitmapStore !== undefined) return bitmapStore;
  throw new BlockError({
    kind: 'unsupported',
    message: `the format ${root.descriptor.name} keeps no dirty bitmaps`,
    path: root.path,
    op: 'bitmap',
  });
};

const applyAction = async (
  root: Node,
  store: BitmapStore,
  request: BitmapRequest,
  action: BitmapAction,
  sources: ReadonlyMap<string, DirtyBitmap>,
): Promise<void> => {
  const { name } = request;
  const { dirtyBitmaps, path } = root;
  switch (action.kind) {
    case 'add':
      await addBitmap(root, store, {
        name,
        recording: true,
        granularityBytes: action.granularityBytes ?? defaultGranularity(root),
        content: null,
      });
      return;
    case 'remove':
      return dirtyBitmaps.remove(name);
    case 'clear':
      return dirtyBitmaps.clearAll(dirtyBitmaps.get(name));
    case 'enable':
    case 'disable':
      return dirtyBitmaps[action.kind](dirtyBitmaps.get(name));
    case 'merge': {
      const target = dirtyBitmaps.get(name);
      const source = sources.get(action.source) ?? dirtyBitmaps.get(action.source).content;
      refuseOtherLength(target.content, source, path);
      return dirtyBitmaps.merge(target, source);
    }
  }
};

interface NewBitmap {
  readonly name: string;
  readonly recording: boolean;
  readonly granularityBytes: number;
  /** Null: clean. */
  readonly content: DirtyBitmap | null;
}

const addBitmap = async (root: Node, store: BitmapStore, plan: NewBitmap): Promise<void> => {
  const { name, recording, granularityBytes } = plan;
  store.checkNew(name, granularityBytes);
  const content = new DirtyBitmap({ lengthBytes: root.lengthBytes, granularityBytes });
  if (plan.content !== null) content.merge(plan.content);
  const bitmap = new TrackedBitmap({ name, content, recording, persistent: true });
  await root.dirtyBitmaps.add(bitmap);
};

/** The bitmaps of another image that are to be merged, by name. */
const readSources = async (
  { actions, mergeFrom }: BitmapRequest,
  context: OfflineContext,
): Promise<ReadonlyMap<string, DirtyBitmap>> => {
  const sources = new Map<string, DirtyBitmap>();
  if (mergeFrom === null) return sources;
  const { path, format } = mergeFrom;
  await using image = await openImage(path, format, context, { withoutBacking: true });
  const bitmaps = await storeOf(image.root).load();
  for (const action of actions) {
    if (action.kind !== 'merge') continue;
    const found = bitmaps.find((b) => b.name === action.source);
    const problem =
      found === undefined ? 'not found' : found.inconsistent ? 'is inconsistent' : null;
    if (problem !== null) {
      const kind = found === undefined ? 'not-found' : 'bad-request';
      const message = `Dirty bitmap '${action.source}' ${problem}`;
      throw new BlockError({ kind, message, path, op: 'bitmap' });
    }
    sources.set(action.source, present(found, 'it was just found').content);
  }
  return sources;
};

/** What a conversion takes along of the bitmaps of its source: `broken` ones, which were not saved, are refused or left behind. */
export const bitmapsToCopy = async (
  source: Node,
  broken: 'refuse' | 'skip',
): Promise<readonly TrackedBitmap[]> => {
  const bitmaps = await storeOf(source).load();
  const bad = bitmaps.find((b) => b.inconsistent);
  if (bad !== undefined && broken === 'refuse') {
    throw new BlockError({
      kind: 'bad-request',
      message: `cannot copy its inconsistent bitmap '${bad.name}'`,
      hint: 'give --skip-broken-bitmaps, or remove it with vdiskfs bitmap --remove',
      path: source.path,
      op: 'convert',
    });
  }
  return bitmaps.filter((b) => !b.inconsistent);
};

/** Errors: EEXIST, EINVAL; EOPNOTSUPP for a format without bitmaps; ENOSPC, EIO. */
export const copyBitmaps = async (
  target: Node,
  bitmaps: readonly TrackedBitmap[],
): Promise<void> => {
  const store = storeOf(target);
  for (const { name, content, recording } of bitmaps) {
    if (content.lengthBytes !== target.lengthBytes) {
      const message = `shows ${target.lengthBytes} bytes, the bitmaps of the source are for ${content.lengthBytes}`;
      throw new BlockError({
        kind: 'bad-request',
        message,
        path: target.path,
        op: 'convert',
      });
    }
    const { granularityBytes } = content;
    const plan = { name: name ?? '', recording, granularityBytes, content };
    await addBitmap(target, store, plan);
  }
  await store.save();
};
