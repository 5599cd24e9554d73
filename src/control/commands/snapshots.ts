/** Internal snapshots, as QEMU's commands spell them, and as `vdiskfs snapshot` does. */
import { snapshotToApply, snapshotToDelete } from '../../block/snapshot-names.ts';
import { JobError } from '../../job/job-error.ts';
import {
  type ControlContext,
  type Device,
  type DeviceSnapshots,
  deviceNamed,
  type SnapshotInfo,
} from '../context.ts';
import { choice, defineQmp, flag, optional, type QmpCommand, text } from '../schema.ts';

/** For a change of them. Errors: JobError while a job works on the image, or when it is read-only. */
const changeable = async (
  context: ControlContext,
  name: string,
): Promise<{ readonly device: Device; readonly snapshots: DeviceSnapshots }> => {
  const device = await deviceNamed(context, name);
  const root = await device.view.open();
  if (device.view.readOnly) throw new JobError(`Device '${device.name}' is read only`);
  context.jobs.refuseClaim(root);
  if (root.driver.snapshots === undefined) {
    const format = root.descriptor.name;
    const message = `Block format '${format}' used by device '${device.name}' does not support internal snapshots`;
    throw new JobError(message);
  }
  return { device, snapshots: context.snapshots(device) };
};

const matching = (
  all: readonly SnapshotInfo[],
  wanted: { readonly id?: string | undefined; readonly name?: string | undefined },
): SnapshotInfo | undefined =>
  all.find(
    ({ id, name }) =>
      (wanted.id === undefined || wanted.id === id) &&
      (wanted.name === undefined || wanted.name === name),
  );

export const snapshotCommands: readonly QmpCommand<ControlContext>[] = [
  defineQmp({
    name: 'blockdev-snapshot-internal-sync',
    arguments: { device: text, name: text },
    returns: 'nothing',
    run: async (context: ControlContext, { device: deviceName, name }) => {
      const { device, snapshots } = await changeable(context, deviceName);
      if (name === '') throw new JobError('Name is empty');
      if (matching(snapshots.list(), { name }) !== undefined) {
        const message = `Snapshot with name '${name}' already exists on device '${device.name}'`;
        throw new JobError(message);
      }
      await snapshots.create(name);
      return {};
    },
  }),
  defineQmp({
    name: 'blockdev-snapshot-delete-internal-sync',
    arguments: { device: text, id: optional(text), name: optional(text) },
    returns: 'SnapshotInfo',
    run: async (context: ControlContext, { device: deviceName, id, name }) => {
      const { device, snapshots } = await changeable(context, deviceName);
      if (id === undefined && name === undefined) throw new JobError('Name or id must be provided');
      const found = matching(snapshots.list(), { id, name });
      if (found === undefined) {
        const message = `Snapshot with id '${id ?? 'null'}' and name '${name ?? 'null'}' does not exist on device '${device.name}'`;
        throw new JobError(message);
      }
      return snapshots.remove(found.id);
    },
  }),
  defineQmp({
    name: '__vdiskfs_snapshots',
    arguments: { device: text },
    returns: 'SnapshotInfoList',
    run: async (context: ControlContext, { device }) =>
      context.snapshots(await deviceNamed(context, device)).list(),
  }),
  defineQmp({
    name: '__vdiskfs_snapshot',
    arguments: {
      device: text,
      action: choice('VdiskfsSnapshotAction', ['create', 'apply', 'delete']),
      name: text,
      force: optional(flag),
    },
    returns: 'SnapshotInfo',
    run: async (context: ControlContext, { device, action, name, force }) => {
      const { snapshots } = await changeable(context, device);
      const all = snapshots.list();
      switch (action) {
        case 'create':
          return snapshots.create(name);
        case 'apply':
          return snapshots.apply(snapshotToApply(all, name).id, { force: force ?? false });
        case 'delete':
          return snapshots.remove(snapshotToDelete(all, name).id);
      }
    },
  }),
];
