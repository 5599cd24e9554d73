/** Handing a view over to another host and taking it back, for the commands of the control socket. */
import { join } from 'node:path';
import type { Backend } from '../../mount/backend.ts';
import { giveImage, type HandOverScene, takeImage } from '../../mount/catalog/hand-over.ts';
import type { Catalog } from '../../mount/catalog.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import type { Device, DeviceActivity } from '../control/context.ts';
import type { JobList } from '../job/job-list.ts';
import { syncView } from './view-sync.ts';

export interface ActivitySource {
  readonly catalog: Catalog;
  readonly backend: Backend;
  readonly mountpoint: string;
  readonly jobs: JobList;
  readonly log: Log;
  /** See `ControlContext.setSize`. */
  readonly setSize: (device: Device, lengthBytes: number) => Promise<void>;
  /** Starts again what was suspended on an image. Never throws. */
  readonly takeUpJobs: (imagePath: string) => Promise<void>;
}

export const deviceActivity = (source: ActivitySource): DeviceActivity => {
  /** Images that are being handed over at this moment. */
  const busy = new Set<string>();
  const alone = async (device: Device, run: () => Promise<void>): Promise<void> => {
    if (busy.has(device.path)) throw refused(device, 'is being handed over already');
    busy.add(device.path);
    try {
      await run();
    } finally {
      busy.delete(device.path);
    }
  };
  return {
    deactivate: (device, options) => alone(device, () => deactivate(source, device, options)),
    activate: (device) => alone(device, () => activate(source, device)),
  };
};

const deactivate = async (
  source: ActivitySource,
  device: Device,
  { force }: { readonly force: boolean },
): Promise<void> => {
  const { jobs, log, mountpoint, takeUpJobs } = source;
  const { view, path } = device;
  if (view.isHeld) return;
  const scene = sceneOf(source, device);
  const root = await view.open();
  await jobs.suspend(root);
  const user = (): string | null =>
    view.isPinned
      ? 'is kept open by a job, or by a dirty bitmap that its image does not keep'
      : null;
  try {
    await syncView(join(mountpoint, view.name), 'deactivate');
    await giveImage(scene, { force, user });
  } catch (error) {
    await takeUpJobs(path);
    throw error;
  }
  log.info(view.name, 'is inactive: another host may use its image');
};

const activate = async (source: ActivitySource, device: Device): Promise<void> => {
  if (!device.view.isHeld) return;
  try {
    await take(source, device);
  } catch (error) {
    if (toBlockError(error).errno !== 'ESTALE') throw error;
    // Another file has taken its place, or it is another node now.
    await sceneOf(source, device).rescan();
    const { path } = device;
    const now = (await source.catalog.images()).find(({ host }) => host.path === path);
    if (now === undefined) throw error;
    await take(source, { ...device, view: now.view });
  }
};

const take = async (source: ActivitySource, device: Device): Promise<void> => {
  const { setSize, log, takeUpJobs } = source;
  const { view, path } = device;
  const scene = sceneOf(source, device);
  const told = (await scene.image.sizes()).virtualSizeBytes;
  await takeImage(scene);
  const now = view.root?.lengthBytes ?? told;
  // Kernels believe no size but one that they ask for.
  if (now !== told && view.readOnly) scene.image.supersede();
  else if (now !== told) await setSize(device, now);
  log.info(view.name, 'is active');
  await takeUpJobs(path);
};

const sceneOf = (
  { catalog, backend: { pages, holding } }: ActivitySource,
  device: Device,
): HandOverScene => {
  if (holding === null) throw refused(device, 'the backend fuse-native hands nothing over');
  const scene = catalog.handOverScene(device.view, { pages, holding });
  if (scene === null) throw new BlockError({ kind: 'not-found', message: 'the view is gone' });
  return scene;
};

const refused = (device: Device, message: string): BlockError =>
  new BlockError({ kind: 'busy', message, path: device.path, op: 'hand over' });
