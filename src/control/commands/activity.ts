/** Handing images over to another host: QEMU's `blockdev-set-active`, and what `vdiskfs activate` and `deactivate` ask for. */
import { JobError } from '../../job/job-error.ts';
import { type ControlContext, deviceNamed } from '../context.ts';
import { defineQmp, flag, optional, type QmpCommand, text } from '../schema.ts';

/** Without a name all devices, one after the other; the first that cannot ends it. */
const setAll = async (context: ControlContext, active: boolean): Promise<void> => {
  for (const device of await context.devices()) {
    if (active) await context.activity.activate(device);
    else await context.activity.deactivate(device, { force: false });
  }
};

export const activityCommands: readonly QmpCommand<ControlContext>[] = [
  defineQmp({
    name: 'blockdev-set-active',
    arguments: { 'node-name': optional(text), active: flag },
    returns: 'nothing',
    run: async (context: ControlContext, { 'node-name': name, active }) => {
      if (name === undefined) await setAll(context, active);
      else if (active) await context.activity.activate(await deviceNamed(context, name));
      else await context.activity.deactivate(await deviceNamed(context, name), { force: false });
      return {};
    },
  }),
  defineQmp({
    name: '__vdiskfs_set_active',
    arguments: { device: text, active: flag, force: optional(flag) },
    returns: 'nothing',
    run: async (context: ControlContext, { device: name, active, force = false }) => {
      const device = await deviceNamed(context, name);
      if (active && force) throw new JobError("Parameter 'force' is for deactivation only");
      if (active) await context.activity.activate(device);
      else await context.activity.deactivate(device, { force });
      return {};
    },
  }),
];
