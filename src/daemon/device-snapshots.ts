/** Internal snapshots of a view, for the commands of the control socket. */
import { join } from 'node:path';
import type { Backend } from '../../mount/backend.ts';
import {
  applyLiveSnapshot,
  createLiveSnapshot,
  deleteLiveSnapshot,
  type SnapshotScene,
} from '../../mount/catalog/live-snapshots.ts';
import type { Catalog } from '../../mount/catalog.ts';
import { BlockError } from '../base/block-error.ts';
import type { SnapshotDescription } from '../block/image-description.ts';
import type { Device, DeviceSnapshots } from '../control/context.ts';
import { toSnapshotInfo } from '../image/info.ts';
import { syncView } from './view-sync.ts';

export interface SnapshotSource {
  readonly catalog: Catalog;
  readonly backend: Backend;
  readonly mountpoint: string;
  /** See `ControlContext.setSize`. */
  readonly setSize: (device: Device, lengthBytes: number) => Promise<void>;
}

export const deviceSnapshots = (source: SnapshotSource, device: Device): DeviceSnapshots => {
  const { catalog, backend, mountpoint, setSize } = source;
  const scene = catalog.snapshotScene(device.view, backend.pages);
  if (scene === null) throw new BlockError({ kind: 'not-found', message: 'the view is gone' });
  const path = join(mountpoint, device.view.name);
  return {
    list: () => listOf(scene).map(toSnapshotInfo),
    create: async (name) => {
      await syncView(path, 'snapshot');
      return toSnapshotInfo(await createLiveSnapshot(scene, name));
    },
    apply: async (idOrName, options) => {
      await syncView(path, 'snapshot');
      const before = await device.view.lengthBytes();
      const applied = await applyLiveSnapshot(scene, idOrName, options);
      const now = await device.view.lengthBytes();
      if (now !== before) await setSize(device, now);
      return toSnapshotInfo(applied);
    },
    remove: async (id) => {
      const found = listOf(scene).find((snapshot) => snapshot.id === id);
      if (found === undefined)
        throw new BlockError({ kind: 'not-found', message: `has no snapshot with id '${id}'` });
      await deleteLiveSnapshot(scene, found);
      return toSnapshotInfo(found);
    },
  };
};

const listOf = ({ image }: SnapshotScene): readonly SnapshotDescription[] =>
  image.inspection.description?.snapshots ?? [];
