/**
 * `blockdev-snapshot-sync`: a new overlay on top of a device's image, which from then on is only read. The view goes on over
 * the overlay, under the guest, and later engines and mounts know it.
 */
import { basename, dirname, resolve } from 'node:path';
import { BlockError } from '../../base/block-error.ts';
import { readFileName } from '../../block/file-name.ts';
import type { Node } from '../../block/node.ts';
import { JobError } from '../../job/job-error.ts';
import { type ControlContext, type Device, deviceNamed, refuseChanged } from '../context.ts';
import { choice, defineQmp, optional, text } from '../schema.ts';

const DEFAULT_FORMAT = 'qcow2';

export const blockdevSnapshotSync = defineQmp({
  name: 'blockdev-snapshot-sync',
  arguments: {
    device: optional(text),
    'node-name': optional(text),
    'snapshot-file': text,
    'snapshot-node-name': optional(text),
    format: optional(text),
    mode: optional(choice('NewImageMode', ['existing', 'absolute-paths'])),
  },
  returns: 'nothing',
  run: async (context: ControlContext, given) => {
    const name = given.device ?? given['node-name'];
    if (name === undefined) throw new JobError("Parameter 'device' is missing");
    if (given.device !== undefined && given['node-name'] !== undefined) {
      throw new JobError("'device' and 'node-name' cannot be specified at the same time");
    }
    await takeSnapshot(context, await deviceNamed(context, name), {
      path: resolve(given['snapshot-file']),
      format: given.format ?? DEFAULT_FORMAT,
      isThere: given.mode === 'existing',
      nodeName: given['snapshot-node-name'] ?? null,
    });
    return {};
  },
});

interface Overlay {
  readonly path: string;
  readonly format: string;
  /** It was made beforehand, over the device's image. */
  readonly isThere: boolean;
  readonly nodeName: string | null;
}

/** Errors: JobError while a job works on the image, or when it is read-only; those of the overlay. The view stays what it is then. */
const takeSnapshot = async (
  context: ControlContext,
  device: Device,
  overlay: Overlay,
): Promise<void> => {
  const { view } = device;
  const unpin = view.pin();
  try {
    const root = await view.open();
    if (view.readOnlyReason !== null) throw new JobError(`Device '${device.name}' is read only`);
    context.refusePassthrough(device);
    context.jobs.refuseClaim(root);
    const target = await openOverlay(context, device, root, overlay);
    try {
      refuseOther(root, target.node);
      // What returned to a program before the command is in the snapshot.
      await context.syncDevice(device, 'snapshot');
      await view.drained(async () => {
        refuseChanged(view, root);
        context.jobs.refuseClaim(root);
        context.refusePassthrough(device);
        await root.flush();
        await target.node.flush();
        await context.pivot(device, target.node, { reopens: true });
      });
    } catch (error) {
      await target.discard();
      throw error;
    }
    await target.handedOver();
    await context.pivoted(device, null);
  } finally {
    unpin();
  }
};

const openOverlay = (
  context: ControlContext,
  { name }: Device,
  root: Node,
  { path, format, isThere, nodeName }: Overlay,
) => {
  const isBeside = dirname(root.path) === dirname(path);
  const filename = isBeside ? basename(root.path) : root.path;
  const backing = { filename, format: root.descriptor.name };
  const create = isThere ? null : { virtualSizeBytes: root.lengthBytes, backing };
  // What lies below it is open for writing until the view stands on it.
  const request = { path, format, create, nodeName, withoutBacking: true };
  return context.targets.open(request, `snapshot of ${name}`);
};

/** Errors: EINVAL for an overlay that would not show what the image does. */
const refuseOther = (root: Node, overlay: Node): void => {
  const { path, lengthBytes, driver } = overlay;
  const refuse = (message: string): BlockError =>
    new BlockError({ kind: 'bad-request', message, path, op: 'snapshot' });
  const link = driver.backingLink;
  if (link === null) throw refuse('has no backing file: it would not show what the device does');
  const { name } = readFileName(link.filename, path);
  if (resolve(dirname(path), name) !== root.path) {
    throw refuse(`stands on '${link.filename}', which is not the device's image '${root.path}'`);
  }
  if (lengthBytes === root.lengthBytes) return;
  throw refuse(`shows ${lengthBytes} bytes, the device's image ${root.lengthBytes}`);
};
