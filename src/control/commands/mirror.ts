/** `drive-mirror`, `blockdev-mirror`, `block-job-change`: a disk is copied while it is used, and may go on over its copy. */
import { isPowerOfTwo } from '../../base/range.ts';
import type { TrackedBitmap } from '../../block/dirty-tracking.ts';
import type { BackingLink } from '../../block/image-description.ts';
import type { Node } from '../../block/node.ts';
import { isUrl } from '../../block/remote-url.ts';
import type { Job } from '../../job/job.ts';
import { JobError } from '../../job/job-error.ts';
import { Mirror } from '../../job/mirror.ts';
import {
  BITMAP_MODES,
  type BitmapMode,
  COPY_MODES,
  DEFAULT_BUFFER_BYTES,
  defaultGranularity,
  MAX_MIRROR_GRANULARITY_BYTES,
  MIN_MIRROR_GRANULARITY_BYTES,
  MIRROR_SYNC,
  type MirrorSync,
} from '../../job/mirror-options.ts';
import {
  type ControlContext,
  type Device,
  deviceNamed,
  layersOf,
  refuseChanged,
} from '../context.ts';
import {
  type ArgumentsOf,
  choice,
  defineQmp,
  flag,
  integer,
  optional,
  type QmpCommand,
  text,
} from '../schema.ts';
import type { JobTarget } from '../targets.ts';

const ON_ERROR = choice('BlockdevOnError', ['report', 'ignore', 'enospc', 'stop', 'auto']);
const COPY_MODE = choice('MirrorCopyMode', COPY_MODES);

const COMMON_ARGUMENTS = {
  'job-id': optional(text),
  device: text,
  target: text,
  sync: choice('MirrorSyncMode', MIRROR_SYNC),
  bitmap: optional(text),
  'bitmap-mode': optional(choice('BitmapSyncMode', BITMAP_MODES)),
  speed: optional(integer),
  granularity: optional(integer),
  'buf-size': optional(integer),
  'on-source-error': optional(ON_ERROR),
  'on-target-error': optional(ON_ERROR),
  'copy-mode': optional(COPY_MODE),
  'auto-finalize': optional(flag),
  'auto-dismiss': optional(flag),
};

export const DRIVE_MIRROR_ARGUMENTS = {
  ...COMMON_ARGUMENTS,
  format: optional(text),
  'node-name': optional(text),
  mode: optional(choice('NewImageMode', ['existing', 'absolute-paths'])),
  unmap: optional(flag),
};

const BLOCKDEV_MIRROR_ARGUMENTS = { ...COMMON_ARGUMENTS, 'target-is-zero': optional(flag) };

type DriveMirror = ArgumentsOf<typeof DRIVE_MIRROR_ARGUMENTS>;
type BlockdevMirror = ArgumentsOf<typeof BLOCKDEV_MIRROR_ARGUMENTS>;
type Common = ArgumentsOf<typeof COMMON_ARGUMENTS>;

/** A mirror that is about to begin. */
interface Plan {
  readonly given: Common;
  readonly unmap: boolean;
  /** Of a target that is not made for the job. */
  readonly targetIsZero: boolean;
  readonly openTarget: (scene: Scene) => Promise<JobTarget>;
}

interface Scene {
  readonly context: ControlContext;
  readonly device: Device;
  readonly root: Node;
  readonly id: string;
}

/** A mirror that has begun. */
export interface Started {
  readonly job: Job;
  /** It goes on where an earlier engine was. */
  readonly resumes: boolean;
}

/** What a later engine is told beside the arguments. */
interface Restart {
  readonly paused?: boolean;
  /** An earlier engine has begun it: everything may have to be copied, whatever it was to copy. */
  readonly again?: boolean;
}

/** Errors: JobError (DeviceNotFound, arguments that do not fit, nodes that another job needs), BlockError of the target. */
export const startDriveMirror = async (
  context: ControlContext,
  given: DriveMirror,
  restart: Restart = {},
): Promise<Started> => {
  const { sync, target, mode = 'absolute-paths' } = given;
  return start(
    context,
    {
      given,
      unmap: given.unmap ?? true,
      targetIsZero: false,
      openTarget: async ({ root, id }) =>
        context.targets.open(
          {
            path: target,
            format: formatOf(given, root),
            create:
              mode === 'existing' || restart.again === true
                ? null
                : { virtualSizeBytes: root.lengthBytes, backing: backingOf(sync, root) },
            nodeName: given['node-name'] ?? null,
            withoutBacking: isOverSource({ sync, mode }),
          },
          id,
        ),
    },
    restart,
  );
};

const startBlockdevMirror = async (
  context: ControlContext,
  given: BlockdevMirror,
): Promise<Started> =>
  start(context, {
    given,
    unmap: true,
    targetIsZero: given['target-is-zero'] ?? false,
    openTarget: ({ id }) => context.targets.take(given.target, id),
  });

const formatOf = ({ format, mode, target }: DriveMirror, root: Node): string | null => {
  if (format !== undefined) return format;
  if (isUrl(target)) return 'raw';
  return mode === 'existing' ? null : root.descriptor.name;
};

/** What lies below a target that is to have the top alone, or nothing. */
const backingOf = (sync: MirrorSync, root: Node): BackingLink | null => {
  const below = sync === 'top' ? root.backing : sync === 'none' ? root : null;
  return below === null ? null : { filename: below.path, format: below.descriptor.name };
};

const start = async (
  context: ControlContext,
  plan: Plan,
  restart: Restart = {},
): Promise<Started> => {
  const { given } = plan;
  const device = await deviceNamed(context, given.device);
  const { view } = device;
  const speed = given.speed ?? 0;
  if (speed < 0) throw new JobError("Parameter 'speed' expects a non-negative value");
  checkGranularity(given.granularity);
  if ((given['buf-size'] ?? 0) < 0) {
    throw new JobError("Parameter 'buf-size' expects a non-negative value");
  }
  const unpin = view.pin();
  let target: JobTarget | null = null;
  try {
    const root = await view.open();
    context.refusePassthrough(device);
    const id = context.jobs.idFor(given['job-id'] ?? null, device.name);
    context.jobs.refuse(id, { nodes: [root], layers: layersOf(root) });
    const bitmap = bitmapOf(given, root, restart);
    const scene = { context, device, root, id };
    target = await plan.openTarget(scene);
    const started = begin(scene, plan, { target, bitmap, restart, unpin });
    if (restart.paused === true) started.job.pause();
    return started;
  } catch (error) {
    await target?.discard().catch(() => undefined);
    unpin();
    throw error;
  }
};

const begin = (
  scene: Scene,
  plan: Plan,
  parts: {
    readonly target: JobTarget;
    readonly bitmap: TrackedBitmap | null;
    readonly restart: Restart;
    readonly unpin: () => void;
  },
): Started => {
  const { context, device, root, id } = scene;
  const { given, unmap } = plan;
  const { target, bitmap, restart, unpin } = parts;
  const { node } = target;
  refuseChanged(device.view, root);
  const keptJob = { id, source: root.path, target: node.path };
  const resumed = restart.again === true ? context.keptBitmaps.take(root, keptJob) : null;
  const beginsAnew = restart.again === true && resumed === null;
  let left: { readonly old: Node | null } | null = null;
  const work = new Mirror({
    view: device.view,
    root,
    target: node,
    sync: beginsAnew && given.sync !== 'top' ? 'full' : given.sync,
    bitmap,
    bitmapMode: bitmapModeOf(given),
    granularityBytes: given.granularity ?? defaultGranularity(node),
    // QEMU takes 0 for its own.
    bufferBytes: (given['buf-size'] ?? 0) || DEFAULT_BUFFER_BYTES,
    copyMode: given['copy-mode'] ?? 'background',
    onSourceError: given['on-source-error'] ?? 'report',
    onTargetError: given['on-target-error'] ?? 'report',
    unmap,
    targetIsZero: (target.isNew || plan.targetIsZero) && node.backing === null,
    kept: {
      resumed,
      create: (content) => context.keptBitmaps.create(keptJob, content),
      outlives: () => context.jobs.isClosed,
    },
    refuseUnseen: () => context.refusePassthrough(device),
    pivot: async () => {
      context.refusePassthrough(device);
      const isOver = node.backing === null && node.driver.backingLink !== null;
      left = { old: await context.pivot(device, node, { reopens: isOver }) };
    },
    ended: async ({ abandoned }) => {
      unpin();
      if (left === null) {
        const released = target.release();
        if (abandoned) released.catch(() => undefined);
        else await released;
        return;
      }
      await target.handedOver();
      await context.pivoted(device, left.old);
    },
  });
  const job = context.jobs.start({
    id,
    type: 'mirror',
    speed: given.speed ?? 0,
    autoFinalize: given['auto-finalize'] ?? true,
    autoDismiss: given['auto-dismiss'] ?? true,
    work,
    nodes: [root, node],
    layers: [...layersOf(root), ...layersOf(node)],
    changed: (now) => keep(scene, plan, { job: now, node, work }),
    kept: () => context.store.settled(),
    dismissed: (now) => context.store.forget(now.id),
  });
  if (bitmap !== null) bitmap.user = `job '${id}'`;
  return { job, resumes: resumed !== null };
};

/** What a later engine goes on with: the target is there then, whatever it was made by. */
const keep = (
  { context, device }: Scene,
  { given, unmap }: Plan,
  { job, node, work }: { readonly job: Job; readonly node: Node; readonly work: Mirror },
): void => {
  if (job.status === 'null') return;
  const {
    'node-name': _nodeName,
    'target-is-zero': _zero,
    ...common
  } = given as BlockdevMirror & DriveMirror;
  context.store.keep({
    id: job.id,
    command: 'drive-mirror',
    arguments: {
      ...common,
      device: device.name,
      'job-id': job.id,
      target: node.path,
      format: node.descriptor.name,
      // One that lies over the source is opened without it.
      mode: isOverSource({ mode: 'absolute-paths', ...common }) ? 'absolute-paths' : 'existing',
      unmap,
      speed: job.speed,
      'copy-mode': work.copyMode,
    },
    imagePath: device.path,
    paused: job.isPaused,
    result: job.result,
  });
};

/** A target that was made over the source itself: it has what is written from the start on. */
const isOverSource = ({
  sync,
  mode,
}: {
  readonly sync: MirrorSync;
  readonly mode?: string | undefined;
}): boolean => sync === 'none' && mode === 'absolute-paths';

const bitmapOf = (
  { sync, bitmap }: Common,
  root: Node,
  { again = false }: Restart,
): TrackedBitmap | null => {
  // Everything is copied; one that an engine's death has left out of date is of no use.
  if (again && bitmap !== undefined && root.dirtyBitmaps.find(bitmap)?.inconsistent !== false) {
    return null;
  }
  const isNeeded = sync === 'incremental' || sync === 'bitmap';
  if (isNeeded !== (bitmap !== undefined)) {
    throw new JobError(
      isNeeded
        ? `must provide a valid bitmap name for '${sync}' sync mode`
        : `sync mode '${sync}' does not take a bitmap`,
    );
  }
  return bitmap === undefined ? null : root.dirtyBitmaps.get(bitmap);
};

// What was mirrored incrementally is not to be copied again.
const bitmapModeOf = ({ sync, 'bitmap-mode': mode }: Common): BitmapMode => {
  if (sync === 'incremental' && mode !== undefined && mode !== 'on-success') {
    throw new JobError("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
  }
  return mode ?? 'on-success';
};

const checkGranularity = (bytes: number | undefined): void => {
  if (bytes === undefined) return;
  const isRight =
    isPowerOfTwo(bytes) &&
    bytes >= MIN_MIRROR_GRANULARITY_BYTES &&
    bytes <= MAX_MIRROR_GRANULARITY_BYTES;
  if (!isRight)
    throw new JobError("Parameter 'granularity' expects a power of 2 in range [512B, 64MB]");
};

export const mirrorCommands: readonly QmpCommand<ControlContext>[] = [
  defineQmp({
    name: 'drive-mirror',
    arguments: DRIVE_MIRROR_ARGUMENTS,
    returns: 'nothing',
    run: async (context: ControlContext, given) => {
      await startDriveMirror(context, given);
      return {};
    },
  }),
  defineQmp({
    name: 'blockdev-mirror',
    arguments: BLOCKDEV_MIRROR_ARGUMENTS,
    returns: 'nothing',
    run: async (context: ControlContext, given) => {
      await startBlockdevMirror(context, given);
      return {};
    },
  }),
  defineQmp({
    name: 'block-job-change',
    arguments: { id: text, type: choice('JobType', ['mirror']), 'copy-mode': COPY_MODE },
    returns: 'nothing',
    run: (context: ControlContext, given) => {
      const job = context.jobs.get(given.id);
      if (job === null) throw new JobError('Job not found');
      if (job.type !== given.type) throw new JobError(`Job type mismatch: '${job.type}'`);
      job.change({ copyMode: given['copy-mode'] });
      return {};
    },
  }),
];
