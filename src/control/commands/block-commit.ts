/** `block-commit`: what layers of a chain have goes into a layer below them. */
import { basename, dirname, resolve } from 'node:path';
import type { Node } from '../../block/node.ts';
import { Commit } from '../../job/commit.ts';
import type { Job } from '../../job/job.ts';
import { JobError } from '../../job/job-error.ts';
import type { Claim } from '../../job/job-list.ts';
import type { JobWork } from '../../job/job-work.ts';
import { Mirror } from '../../job/mirror.ts';
import { DEFAULT_BUFFER_BYTES, defaultGranularity } from '../../job/mirror-options.ts';
import {
  type ControlContext,
  chainOf,
  type Device,
  deviceNamed,
  refuseChanged,
} from '../context.ts';
import { type ArgumentsOf, choice, defineQmp, flag, integer, optional, text } from '../schema.ts';

const ON_ERROR = choice('BlockdevOnError', ['report', 'ignore', 'enospc', 'stop', 'auto']);

export const COMMIT_ARGUMENTS = {
  'job-id': optional(text),
  device: text,
  'base-node': optional(text),
  base: optional(text),
  'top-node': optional(text),
  top: optional(text),
  'backing-file': optional(text),
  speed: optional(integer),
  'on-error': optional(ON_ERROR),
  'auto-finalize': optional(flag),
  'auto-dismiss': optional(flag),
  // Although other images are made of the base.
  __vdiskfs_force: optional(flag),
};

type CommitArguments = ArgumentsOf<typeof COMMIT_ARGUMENTS>;

export const blockCommit = defineQmp({
  name: 'block-commit',
  arguments: COMMIT_ARGUMENTS,
  returns: 'nothing',
  run: async (context: ControlContext, given) => {
    await startCommit(context, given);
    return {};
  },
});

/** Where in a chain. */
interface Place {
  /** 0: the image itself, which is written meanwhile. */
  readonly top: number;
  readonly base: number;
}

interface Scene {
  readonly context: ControlContext;
  readonly device: Device;
  readonly given: CommitArguments;
  readonly id: string;
  readonly place: Place;
  /** The chain, with layers that are ours alone. */
  readonly chain: readonly Node[];
  /** Lets others have the layers again. */
  readonly endClaim: () => Promise<void>;
}

/** Errors: JobError (DeviceNotFound, layers that are none, nodes that another job needs); BlockError: EBUSY, naming who uses a layer. */
export const startCommit = async (
  context: ControlContext,
  given: CommitArguments,
  options: { readonly paused?: boolean } = {},
): Promise<Job> => {
  const device = await deviceNamed(context, given.device);
  const { view } = device;
  if ((given.speed ?? 0) < 0) throw new JobError("Parameter 'speed' expects a non-negative value");
  const unpin = view.pin();
  try {
    const root = await view.open();
    if (view.readOnlyReason !== null) {
      throw new JobError(`'${device.name}' is read-only: ${view.readOnlyReason}`);
    }
    context.refusePassthrough(device);
    const place = placeOf(root, given);
    const id = context.jobs.idFor(given['job-id'] ?? null, device.name);
    context.jobs.refuse(id, claimOf(chainOf(root), place));
    const paths = chainOf(root)
      .slice(1, place.base + 1)
      .map((node) => node.path);
    const force = given.__vdiskfs_force ?? false;
    const end = await context.claimLayers(device, paths, { force, jobId: id });
    const endClaim = async (): Promise<void> => {
      unpin();
      await end();
    };
    try {
      return await begin(
        { context, device, given, id, place, endClaim, chain: chainOf(root) },
        options,
      );
    } catch (error) {
      await end();
      throw error;
    }
  } catch (error) {
    unpin();
    throw error;
  }
};

/** In one drained section: nobody gets between the layers and the job that has them. */
const begin = (
  scene: Omit<Scene, 'chain'> & { readonly chain: readonly Node[] },
  options: { readonly paused?: boolean },
): Promise<Job> => {
  const { context, device, place, id, chain: before } = scene;
  const { view } = device;
  const [base, overlay] = [before[place.base], before[place.top - 1]];
  const writable = [base, place.top > 1 ? overlay : undefined].flatMap((n) => n?.path ?? []);
  return view.drained(async () => {
    refuseChanged(view, before[0] as Node);
    context.jobs.refuse(id, claimOf(before, place));
    const downTo = base?.path ?? '';
    const chain = chainOf(await context.reopen(device, { downTo, writable }));
    try {
      const job = startJob({ ...scene, chain });
      if (options.paused === true) job.pause();
      return job;
    } catch (error) {
      await context.reopen(device, null);
      throw error;
    }
  });
};

/** Everything from the image down to the base is opened for the job alone. */
const claimOf = (chain: readonly Node[], { base }: Place): Claim => ({
  nodes: chain.slice(0, base + 1),
  layers: chain.slice(base + 1),
});

const startJob = (scene: Scene): Job => {
  const { context, given, id, place, chain } = scene;
  return context.jobs.start({
    id,
    type: 'commit',
    speed: given.speed ?? 0,
    autoFinalize: given['auto-finalize'] ?? true,
    autoDismiss: given['auto-dismiss'] ?? true,
    work: place.top === 0 ? activeCommit(scene) : layerCommit(scene),
    ...claimOf(chain, place),
    changed: (job) => keep(scene, job),
    kept: () => context.store.settled(),
    dismissed: (job) => context.store.forget(job.id),
  });
};

const layerCommit = ({ context, device, given, place, chain, endClaim }: Scene): JobWork => {
  const overlay = chain[place.top - 1] as Node;
  const base = chain[place.base] as Node;
  const isBeside = dirname(base.path) === dirname(overlay.path);
  const filename = given['backing-file'] ?? (isBeside ? basename(base.path) : base.path);
  return new Commit({
    view: device.view,
    overlay,
    layers: chain.slice(place.top, place.base),
    base,
    link: { filename, format: base.descriptor.name },
    onError: given['on-error'] ?? 'report',
    reopen: async () => {
      await context.reopen(device, null);
    },
    ended: async () => {
      try {
        await context.chainChanged(device);
      } finally {
        await endClaim();
      }
    },
  });
};

/** The image is written meanwhile: a mirror to a layer of its own chain, over which the view goes on. */
const activeCommit = ({ context, device, given, place, chain, endClaim }: Scene): JobWork => {
  const { view } = device;
  const root = chain[0] as Node;
  const base = chain[place.base] as Node;
  const onError = given['on-error'] ?? 'report';
  return new Mirror({
    view,
    root,
    target: base,
    sync: 'top',
    above: base,
    bitmap: null,
    bitmapMode: 'never',
    granularityBytes: defaultGranularity(base),
    bufferBytes: DEFAULT_BUFFER_BYTES,
    copyMode: 'background',
    onSourceError: onError,
    onTargetError: onError,
    unmap: true,
    targetIsZero: false,
    refuseUnseen: () => context.refusePassthrough(device),
    pivot: async () => {
      context.refusePassthrough(device);
      // What it has is in the base, durably; it shows the same without.
      if (root.backing === base && root.driver.makeEmpty !== undefined) await root.makeEmpty();
      await context.pivot(device, base, { reopens: true });
    },
    ended: async ({ pivoted }) => {
      try {
        if (pivoted) await context.pivoted(device, null);
        else await view.drained(async () => void (await context.reopen(device, null)));
      } finally {
        await endClaim();
      }
    },
  });
};

const keep = ({ context, device, given, place, chain }: Scene, job: Job): void => {
  if (job.status === 'null') return;
  const { 'top-node': _top, 'base-node': _base, ...common } = given;
  const top = place.top === 0 ? {} : { top: chain[place.top]?.path };
  context.store.keep({
    id: job.id,
    command: 'block-commit',
    arguments: {
      ...common,
      ...top,
      base: chain[place.base]?.path,
      device: device.name,
      'job-id': job.id,
      speed: job.speed,
    },
    imagePath: chain[0]?.path ?? device.path,
    paused: job.isPaused,
    result: job.result,
  });
};

/** Errors: JobError in QEMU's words. */
const placeOf = (root: Node, given: CommitArguments): Place => {
  const chain = chainOf(root);
  const top = indexOf(chain, { path: given.top, name: given['top-node'], what: 'top' }) ?? 0;
  const named = indexOf(chain, { path: given.base, name: given['base-node'], what: 'base' });
  const base = named ?? chain.length - 1;
  if (base === top) throw new JobError('Cannot commit an image into itself');
  if (base < top) throw new JobError(`'${chain[base]?.path}' is not below '${chain[top]?.path}'`);
  const below = chain[base] as Node;
  if (top === 0 && below.lengthBytes > root.lengthBytes) {
    const sizes = `${below.lengthBytes} and ${root.lengthBytes} bytes`;
    throw new JobError(
      `The base is longer than the disk (${sizes}): resize the view to its length before`,
    );
  }
  return { top, base };
};

const indexOf = (
  chain: readonly Node[],
  {
    path,
    name,
    what,
  }: {
    readonly path: string | undefined;
    readonly name: string | undefined;
    readonly what: string;
  },
): number | null => {
  if (path !== undefined && name !== undefined) {
    throw new JobError(`'${what}-node' and '${what}' are mutually exclusive`);
  }
  const wanted = path ?? name;
  if (wanted === undefined) return null;
  const isIt = (node: Node): boolean =>
    path === undefined
      ? node.name === name
      : node.path === resolve(path) || node.path.endsWith(`/${path}`);
  const index = chain.findIndex(isIt);
  if (index >= 0) return index;
  throw new JobError(`Can't find '${wanted}' in the backing chain`);
};
