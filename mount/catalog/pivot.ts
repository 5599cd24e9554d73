/**
 * A pivot: a view goes on over another image, under the guest. What it stands for now is on disk before the first write to
 * the new image, so that an engine that is killed in between goes on with one of two images that are the same.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import type { Log } from '../../src/base/log.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { Graph, OwnLayers } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import { fileOf } from './chain-walk.ts';
import { type HostFile, statHostFile } from './host-file.ts';
import type { ImageEntry } from './image-entry.ts';
import type { Inspection } from './inspection.ts';
import type { Candidate } from './listing.ts';
import { inspectionOf } from './open-inspection.ts';
import { keyOf, type StandIns, standInFor } from './stand-ins.ts';

export interface PivotScene {
  readonly image: ImageEntry;
  readonly graph: Graph;
  readonly standIns: StandIns;
  readonly log: Log;
}

/**
 * In a drained section of the view, with both images flushed and showing the same. Returns the old root, which is still
 * open. Errors: nothing has changed then.
 */
export const pivotTo = async (scene: PivotScene, target: Node): Promise<Node> => {
  const { image, graph } = scene;
  await graph.refuseReplaced(target);
  const inspection = await inspectionOf(target);
  const candidate = await remember(scene, target, []);
  image.pivoted(candidate, inspection);
  const old = image.view.swapRoot(target);
  graph.share(target);
  return old;
};

/**
 * The same to an image of the view's own chain: an overlay that was opened without its backing, because that was written, or a
 * layer further down, into which what lies above it was committed. Both are closed, and the target is opened with what
 * lies below it. Errors: the view stays what it is. What is recorded and cannot be taken back is done all the same: the view stands
 * for the target then, and what does not open is opened by the next request.
 */
export const pivotOver = async (scene: PivotScene, target: Node): Promise<void> => {
  const { image, graph } = scene;
  const { view, candidate: before, inspection: inspectionBefore } = image;
  const { path, descriptor } = target;
  await graph.refuseReplaced(target);
  const above = layersAbove(view.root, target);
  const committed = await Promise.all(
    above.map(async (node) => keyOf(await statHostFile(node.path))),
  );
  const candidate = await remember(scene, target, committed);
  let opened: Node | null = null;
  try {
    await closeBoth(scene, target, above.at(-1) ?? null);
    opened = await graph.open({ path, format: descriptor.name, readOnly: false });
    const inspection = await inspectionOf(opened);
    image.pivoted(candidate, inspection);
    view.swapRoot(opened);
  } catch (error) {
    // It would be open for writing below the view. Nothing was written to it.
    if (opened !== null) await graph.close(opened).catch(() => undefined);
    const isUndone = await undo(scene, before);
    // What is recorded is what every later engine finds: writes to the other image would be lost to it.
    if (isUndone) image.pivoted(before, inspectionBefore);
    else image.pivoted(candidate, unseen(descriptor, candidate.host, inspectionBefore));
    await openAgain(scene);
    if (isUndone) throw error;
  }
};

/** Of a target that shows what the image before it did, until the scan that follows a pivot has looked at it. */
const unseen = (driver: DriverDescriptor, host: HostFile, before: Inspection): Inspection => {
  const { chain: above } = before;
  const index = above.findIndex(({ path }) => path === host.path);
  const own = { ...fileOf(host), format: driver.name, remote: null };
  const chain = index < 0 ? [own, ...above] : above.slice(index);
  return { ...before, driver, declaredFormat: driver.name, chain, dataFiles: [] };
};

/** What the view stands for, when all of it was closed. What does not open now is opened by the next request. Drained. */
const openAgain = async ({ image, graph, log }: PivotScene): Promise<void> => {
  const { path } = image.host;
  const format = image.inspection.declaredFormat;
  const root = await graph.open({ path, format, readOnly: false }).catch((error: unknown) => {
    const reason = toBlockError(error, { op: 'open', path }).describe();
    log.error(image.name, `what it stands for does not open, until it is used next: ${reason}`);
    return null;
  });
  if (root === null) await image.closedBeside();
  image.view.swapRoot(root);
};

/** From the root on; none when the chain does not have that layer. */
const layersAbove = (root: Node | null, layer: Node): Node[] => {
  const above: Node[] = [];
  for (let node = root; node !== null; node = node.backing) {
    if (node === layer) return above;
    above.push(node);
  }
  return [];
};

/** The target, out of the chain that it may be in, and what the view stands on. Errors: the first one; both are closed. */
const closeBoth = async (
  { image, graph }: PivotScene,
  target: Node,
  overlay: Node | null,
): Promise<void> => {
  const { root } = image.view;
  if (overlay !== null) overlay.backing = null;
  try {
    await graph.close(target);
  } finally {
    if (root !== null) await graph.close(root);
  }
};

/** From here on the view stands for the target, for every engine that comes. */
const remember = async (
  { image, standIns }: PivotScene,
  { path, descriptor }: Node,
  committed: readonly string[],
): Promise<Candidate> => {
  const host = await statHostFile(path);
  const record = standInFor(image.candidate, { path, format: descriptor.name, committed });
  const { standIn: _before, ...plain } = image.candidate;
  // Its own file again, the very same: there is nothing to remember.
  const isBack = path === record.original && keyOf(host) === record.key;
  if (isBack && record.committed?.length === 0) {
    await standIns.remove(record.original);
    return { ...plain, host };
  }
  await standIns.put(record);
  return { ...plain, host, standIn: { record, missing: null } };
};

/** Whether what is recorded is what it was before. */
const undo = async (scene: PivotScene, { standIn, host }: Candidate): Promise<boolean> => {
  const { standIns, image, log } = scene;
  try {
    if (standIn === undefined) await standIns.remove(host.path);
    else await standIns.put(standIn.record);
    return true;
  } catch (error) {
    const reason = toBlockError(error).describe();
    log.error(image.name, `what it is to stand for is recorded, and not taken back: ${reason}`);
    return false;
  }
};

/** See `Catalog.reopen`. */
export const reopen = async (
  image: ImageEntry,
  graph: Graph,
  ownLayers: OwnLayers | null,
): Promise<Node> => {
  const { view, host, inspection } = image;
  // What could not be opened before is opened once, for us and for requests that come meanwhile.
  if (view.root === null && ownLayers === null) return view.open();
  const options = { path: host.path, format: inspection.declaredFormat, readOnly: false };
  const own = ownLayers === null ? {} : { ownLayers };
  const passing = view.root?.dirtyBitmaps.takePassing() ?? [];
  const adopt = async (root: Node | null): Promise<void> => {
    for (const bitmap of passing) {
      if (root === null) bitmap.dropped?.();
      else root.dirtyBitmaps.adopt(bitmap);
    }
    if (root === null) await image.closedBeside();
    view.swapRoot(root);
  };
  try {
    if (view.root !== null) await graph.close(view.root);
    const root = await graph.open({ ...options, ...own });
    await adopt(root);
    return root;
  } catch (error) {
    // When this fails too, the next request tries again.
    await adopt(ownLayers === null ? null : await graph.open(options).catch(() => null));
    throw error;
  }
};
