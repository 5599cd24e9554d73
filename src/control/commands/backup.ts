/** `drive-backup` and `blockdev-backup`: what a device shows at this moment goes to another image, while guests go on writing. */
import { resolve } from 'node:path';
import { toBlockError } from '../../base/block-error.ts';
import { alignUp } from '../../base/range.ts';
import type { Node } from '../../block/node.ts';
import { isUrl } from '../../block/remote-url.ts';
import { Backup, type BackupOptions, type BackupSync } from '../../job/backup.ts';
import { BackupTarget } from '../../job/backup-target.ts';
import type { Job } from '../../job/job.ts';
import { JobError } from '../../job/job-error.ts';
import {
  type ControlContext,
  type Device,
  deviceNamed,
  layersOf,
  refuseChanged,
} from '../context.ts';
import { type ArgumentsOf, choice, defineQmp, flag, integer, optional, text } from '../schema.ts';
import type { JobTarget } from '../targets.ts';

const ON_ERROR = choice('BlockdevOnError', ['report', 'ignore', 'enospc', 'stop', 'auto'] as const);
const SECTOR_BYTES = 512;

/** What both of QEMU's commands take. */
const COMMON = {
  'job-id': optional(text),
  device: text,
  sync: choice('MirrorSyncMode', ['top', 'full', 'none', 'incremental', 'bitmap'] as const),
  speed: optional(integer),
  bitmap: optional(text),
  'bitmap-mode': optional(choice('BitmapSyncMode', ['on-success', 'never', 'always'] as const)),
  compress: optional(flag),
  'on-source-error': optional(ON_ERROR),
  'on-target-error': optional(ON_ERROR),
  'on-cbw-error': optional(choice('OnCbwError', ['break-guest-write', 'break-snapshot'] as const)),
  'auto-finalize': optional(flag),
  'auto-dismiss': optional(flag),
};

export const DRIVE_BACKUP_ARGUMENTS = {
  ...COMMON,
  target: text,
  format: optional(text),
  mode: optional(choice('NewImageMode', ['existing', 'absolute-paths'] as const)),
};

/** The target is a node of `blockdev-add`. */
const BLOCKDEV_BACKUP_ARGUMENTS = { ...COMMON, target: text, 'job-id': text };

type CommonArguments = ArgumentsOf<typeof COMMON>;
type DriveBackupArguments = ArgumentsOf<typeof DRIVE_BACKUP_ARGUMENTS>;

export const backupCommands = [
  defineQmp({
    name: 'drive-backup',
    arguments: DRIVE_BACKUP_ARGUMENTS,
    returns: 'nothing',
    run: async (context: ControlContext, given) => {
      await startDriveBackup(context, given);
    },
  }),
  defineQmp({
    name: 'blockdev-backup',
    arguments: BLOCKDEV_BACKUP_ARGUMENTS,
    returns: 'nothing',
    run: async (context: ControlContext, given) => {
      const { target, ...common } = given;
      await start(context, common, {}, async (_root, jobId) => {
        const taken = await context.targets.take(target, jobId);
        const { path, descriptor } = taken.node;
        return {
          target: taken,
          again: { target: path, format: descriptor.name, mode: 'existing' },
        };
      });
    },
  }),
];

export interface StartOptions {
  readonly paused?: boolean;
  /** An earlier engine has begun it. Its moment is over: it begins anew, with all that it copied. */
  readonly isTakenUp?: boolean;
}

/** Errors: JobError (DeviceNotFound, arguments that do not fit, nodes that another job needs); those of the images. */
export const startDriveBackup = (
  context: ControlContext,
  given: DriveBackupArguments,
  options: StartOptions = {},
): Promise<Job> => {
  const { target: name, format, mode = 'absolute-paths', ...common } = given;
  const path = isUrl(name) ? name : resolve(name);
  const isThere = mode === 'existing';
  if (isThere && options.isTakenUp === true && given.sync === 'none') {
    throw new JobError('what it has copied is of a moment that is over, and cannot be told apart');
  }
  return start(context, common, options, async (root, jobId) => {
    const below = given.sync === 'top' ? root.backing : null;
    const backing = below === null ? null : { filename: below.path, format: below.descriptor.name };
    const target = await context.targets.open(
      {
        path,
        format: format ?? (isThere ? null : root.descriptor.name),
        create: isThere ? null : { virtualSizeBytes: root.lengthBytes, backing },
        nodeName: null,
        // Whole clusters are written: what lies below the target is not needed, and may be where nobody has allowed.
        withoutBacking: true,
      },
      jobId,
    );
    const again = { target: path, mode, ...(format === undefined ? {} : { format }) };
    return { target, again };
  });
};

/** What `drive-backup` is told beside, to open the target again. */
type TargetArguments = Pick<DriveBackupArguments, 'target' | 'format' | 'mode'>;

const start = async (
  context: ControlContext,
  given: CommonArguments,
  options: StartOptions,
  openTarget: (
    root: Node,
    jobId: string,
  ) => Promise<{ readonly target: JobTarget; readonly again: TargetArguments }>,
): Promise<Job> => {
  const device = await deviceNamed(context, given.device);
  const unpin = device.view.pin();
  let opened: JobTarget | null = null;
  try {
    const root = await device.view.open();
    const sync = syncOf(root, given);
    context.refusePassthrough(device);
    const id = context.jobs.idFor(given['job-id'] ?? null, device.name);
    context.jobs.refuse(id, { nodes: [root], layers: layersOf(root) });
    const { target, again } = await openTarget(root, id);
    opened = target;
    const ended = async ({ abandoned }: { readonly abandoned: boolean }): Promise<void> => {
      unpin();
      const released = target.release();
      if (abandoned) released.catch(() => undefined);
      else await released;
    };
    return await begin(context, { id, device, root, target, again, sync, given, ended, options });
  } catch (error) {
    unpin();
    await opened?.discard();
    throw error;
  }
};

interface Plan {
  readonly id: string;
  readonly device: Device;
  readonly root: Node;
  readonly target: JobTarget;
  readonly sync: { readonly what: BackupSync; readonly bitmap: BackupOptions['bitmap'] };
  readonly again: TargetArguments;
  readonly given: CommonArguments;
  readonly ended: BackupOptions['ended'];
  readonly options: StartOptions;
}

/** Takes the moment. The kernel's dirty pages are in it: what returned to a program before the command. */
const begin = async (context: ControlContext, plan: Plan): Promise<Job> => {
  const { id, device, root, target, sync, given, ended, options } = plan;
  const { view } = device;
  refuseOtherLength(root, target.node);
  refuseUnpackable(target.node, given);
  const work = new Backup({
    jobId: id,
    view,
    root,
    target: new BackupTarget({
      node: target.node,
      compress: given.compress ?? false,
      leavesZeroesOut: given.sync === 'full' && target.isNew,
    }),
    sync: sync.what,
    bitmap: sync.bitmap,
    onSourceError: given['on-source-error'] ?? 'report',
    onTargetError: given['on-target-error'] ?? 'report',
    onCbwError: given['on-cbw-error'] ?? 'break-snapshot',
    ended,
  });
  if (!view.readOnly) await context.syncDevice(device, 'backup');
  return view.drained(async () => {
    refuseChanged(view, root);
    await work.begin();
    try {
      const job = context.jobs.start({
        id,
        type: 'backup',
        speed: given.speed ?? 0,
        autoFinalize: given['auto-finalize'] ?? true,
        autoDismiss: given['auto-dismiss'] ?? true,
        work,
        nodes: [root, target.node],
        layers: layersOf(root),
        changed: (now) => keep(context, plan, now),
        kept: () => context.store.settled(),
        dismissed: (now) => context.store.forget(now.id),
      });
      if (options.paused === true) job.pause();
      return job;
    } catch (error) {
      await work.abandon();
      throw error;
    }
  });
};

const keep = (context: ControlContext, { device, again, given }: Plan, job: Job): void => {
  if (job.status === 'null') return;
  context.store.keep({
    id: job.id,
    command: 'drive-backup',
    arguments: { ...given, ...again, device: device.name, 'job-id': job.id, speed: job.speed },
    imagePath: device.path,
    paused: job.isPaused,
    result: job.result,
  });
};

/** Errors: JobError in QEMU's words for a bitmap that is missing or makes no sense. */
const syncOf = (root: Node, given: CommonArguments): Plan['sync'] => {
  const { sync, bitmap: name, speed = 0 } = given;
  const asked = given['bitmap-mode'];
  const mode = sync === 'incremental' ? 'on-success' : asked;
  if (speed < 0) throw new JobError("Parameter 'speed' expects a non-negative value");
  if (asked !== undefined && mode !== asked) {
    throw new JobError("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
  }
  const needsBitmap = sync === 'incremental' || sync === 'bitmap';
  if (name === undefined) {
    if (needsBitmap) throw new JobError(`must provide a valid bitmap name for '${sync}' sync mode`);
    if (asked !== undefined) throw new JobError('Cannot specify bitmap sync mode without a bitmap');
    return { what: sync, bitmap: null };
  }
  if (mode === undefined)
    throw new JobError('Bitmap sync mode must be given when providing a bitmap');
  if (sync === 'none')
    throw new JobError("sync mode 'none' does not produce meaningful bitmap outputs");
  if (!needsBitmap && mode === 'never') {
    const what = `has no meaningful effect when combined with sync mode '${sync}'`;
    throw new JobError(`Bitmap sync mode 'never' ${what}`);
  }
  refuseUnusable(root, name);
  return { what: needsBitmap ? 'bitmap' : sync, bitmap: { name, mode } };
};

/** Errors: JobError for a bitmap that is not there, or that cannot be used. */
const refuseUnusable = ({ dirtyBitmaps }: Node, name: string): void => {
  try {
    dirtyBitmaps.get(name);
  } catch (error) {
    throw new JobError(toBlockError(error).message);
  }
};

// Images come in whole sectors.
const refuseOtherLength = (root: Node, target: Node): void => {
  const { lengthBytes } = target;
  if (lengthBytes === root.lengthBytes) return;
  if (lengthBytes === alignUp(root.lengthBytes, SECTOR_BYTES)) return;
  const sizes = `${root.lengthBytes} and ${lengthBytes} bytes`;
  throw new JobError(`Source and target image have different sizes: ${sizes}`);
};

const refuseUnpackable = ({ descriptor, driver }: Node, given: CommonArguments): void => {
  if (given.compress !== true || driver.writeCompressed !== undefined) return;
  throw new JobError(`Compression is not supported for this drive: format '${descriptor.name}'`);
};
