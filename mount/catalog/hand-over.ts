/**
 * Handing images of a mount over to another host, and taking them back.
 *
 * Giving: the image is opened, so that what an engine left in its journal when it died is in it; the kernel's pages are
 * dropped and requests held (mount/kernel/hand-over.ts); the chain is closed, which waits for what is in flight and writes
 * what is in memory; who outlives this process is told; the locks are given back. Whatever fails before that leaves the
 * view active. Taking: the locks; header, chain and tables are read anew; who outlives this process is told; requests go on.
 *
 * One call for one image at a time.
 */
import { BlockError } from '../../src/base/block-error.ts';
import type { KernelPages, ViewHolding } from '../backend.ts';
import type { Activity } from './activity.ts';
import type { ImageEntry } from './image-entry.ts';
import { released } from './release-wait.ts';
import type { SnapshotEntry } from './snapshot-entry.ts';

/** An image of the catalog, and what handing it over needs beside. */
export interface HandOverScene {
  readonly image: ImageEntry;
  readonly pages: KernelPages;
  readonly holding: ViewHolding;
  readonly activity: Activity;
  /** The views of its snapshots. */
  readonly snapshots: () => readonly SnapshotEntry[];
  /** Brings the views to what there is now. */
  readonly rescan: () => Promise<void>;
}

export interface GiveOptions {
  /** Also when somebody may have the view open for writing. */
  readonly force: boolean;
  /** What works on the image beside guests, looked at when nothing can begin any more; null for nothing. */
  readonly user: () => string | null;
}

/** Errors: EBUSY, and the view is active as before; those of opening and of the last flush. */
export const giveImage = async (scene: HandOverScene, options: GiveOptions): Promise<void> => {
  const { image, holding, pages, activity } = scene;
  const { nodeId, view } = image;
  if (view.isHeld) return;
  refuseFor(image.name, holding.refusal(nodeId));
  const isFree = (): boolean => !pages.mayBeWritten(nodeId);
  if (!options.force && !(await released(isFree)))
    refuseFor(image.name, 'may be open for writing', 'close it first, or force it');
  await view.open();
  await holding.hold(nodeId);
  view.hold();
  const snapshots = scene.snapshots();
  try {
    refuseFor(image.name, options.user());
    for (const snapshot of snapshots) snapshot.view.hold();
    for (const snapshot of snapshots) await snapshot.view.close();
    await image.giveAway(() => activity.set(image.host.path, false));
  } catch (error) {
    await goOn(scene, snapshots, false);
    throw error;
  }
};

/** Errors: why the image cannot be had (EBUSY for another host's locks, ESTALE for another file at its path); it is inactive then. */
export const takeImage = async (scene: HandOverScene): Promise<void> => {
  const { image, activity } = scene;
  if (!image.view.isHeld) return;
  await image.takeBack();
  await activity.set(image.host.path, true);
  await goOn(scene, scene.snapshots(), true);
  await scene.rescan();
};

const goOn = async (
  { image, holding }: HandOverScene,
  snapshots: readonly SnapshotEntry[],
  fresh: boolean,
): Promise<void> => {
  const entries = [image, ...snapshots];
  for (const { view } of entries) view.letGo();
  await Promise.all(entries.map(({ nodeId }) => holding.letGo(nodeId, { fresh })));
};

const refuseFor = (name: string, reason: string | null, hint?: string): void => {
  if (reason === null) return;
  const message = `the view ${name} ${reason}`;
  throw new BlockError({ kind: 'busy', op: 'deactivate', message, ...(hint && { hint }) });
};
