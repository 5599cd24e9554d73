/** `block-stream`: what lies below an image becomes its own. */
import { resolve } from 'node:path';
import { endsWithin, GIVE_UP_MS } from '../../base/bounded-wait.ts';
import type { Node } from '../../block/node.ts';
import type { Job } from '../../job/job.ts';
import { JobError } from '../../job/job-error.ts';
import { Stream } from '../../job/stream.ts';
import { type ControlContext, type Device, deviceNamed, layersOf } from '../context.ts';
import { type ArgumentsOf, choice, defineQmp, flag, integer, optional, text } from '../schema.ts';

const ON_ERROR = choice('BlockdevOnError', ['report', 'ignore', 'enospc', 'stop', 'auto']);

export const STREAM_ARGUMENTS = {
  'job-id': optional(text),
  device: text,
  base: optional(text),
  'base-node': optional(text),
  bottom: optional(text),
  'backing-file': optional(text),
  speed: optional(integer),
  'on-error': optional(ON_ERROR),
  'auto-finalize': optional(flag),
  'auto-dismiss': optional(flag),
};

type StreamArguments = ArgumentsOf<typeof STREAM_ARGUMENTS>;

export const blockStream = defineQmp({
  name: 'block-stream',
  arguments: STREAM_ARGUMENTS,
  returns: 'nothing',
  run: async (context: ControlContext, given) => {
    await startStream(context, given);
    return {};
  },
});

/** Errors: JobError (DeviceNotFound, a base that is none, nodes that another job needs), BlockError of the opening. */
export const startStream = async (
  context: ControlContext,
  given: StreamArguments,
  options: { readonly paused?: boolean } = {},
): Promise<Job> => {
  const device = await deviceNamed(context, given.device);
  const { view } = device;
  const speed = given.speed ?? 0;
  if (speed < 0) throw new JobError("Parameter 'speed' expects a non-negative value");
  const unpin = view.pin();
  try {
    const root = await view.open();
    if (view.readOnlyReason !== null) {
      throw new JobError(`'${device.name}' is read-only: ${view.readOnlyReason}`);
    }
    const base = baseOf(root, given);
    const id = context.jobs.idFor(given['job-id'] ?? null, device.name);
    const work = new Stream({
      view,
      root,
      base,
      backingFile: given['backing-file'] ?? null,
      onError: given['on-error'] ?? 'report',
      replaceBacking: (overlay, below) => context.replaceBacking(overlay, below),
      ended: async ({ chainChanged }) => {
        unpin();
        if (chainChanged) await context.chainChanged(device);
      },
    });
    const job = context.jobs.start({
      id,
      type: 'stream',
      speed,
      autoFinalize: given['auto-finalize'] ?? true,
      autoDismiss: given['auto-dismiss'] ?? true,
      work,
      nodes: [root],
      layers: layersDownTo(root, base),
      resumable: true,
      changed: (now) => keep(context, device, now, given),
      kept: () => context.store.settled(),
      dismissed: (now) => context.store.forget(now.id),
    });
    if (options.paused === true) job.pause();
    // Who was told that it began finds it again, whenever the engine dies; not where the disk hangs.
    await endsWithin(context.store.settled(), GIVE_UP_MS);
    return job;
  } catch (error) {
    unpin();
    throw error;
  }
};

const keep = (context: ControlContext, device: Device, job: Job, given: StreamArguments): void => {
  if (job.status === 'null') return;
  context.store.keep({
    id: job.id,
    command: 'block-stream',
    arguments: { ...given, device: device.name, 'job-id': job.id, speed: job.speed },
    imagePath: device.path,
    paused: job.isPaused,
    result: job.result,
  });
};

const baseOf = (root: Node, given: StreamArguments): Node | null => {
  const named = ['base', 'base-node', 'bottom'].filter((key) => Object.hasOwn(given, key));
  if (named.length > 1) {
    throw new JobError(`'${named[0]}' and '${named[1]}' cannot be specified at the same time`);
  }
  const below = layersOf(root);
  if (given.base !== undefined) {
    const wanted = given.base;
    const found =
      below.find((n) => n.path === resolve(wanted)) ??
      below.find((n) => n.path.endsWith(`/${wanted}`));
    if (found === undefined) throw new JobError(`Can't find '${wanted}' in the backing chain`);
    return found;
  }
  if (given['base-node'] !== undefined) return layerNamed(below, given['base-node'], root);
  if (given.bottom !== undefined) return layerNamed(below, given.bottom, root).backing;
  return null;
};

const layerNamed = (below: readonly Node[], name: string, root: Node): Node => {
  const found = below.find((node) => node.name === name);
  if (found !== undefined) return found;
  throw new JobError(`Node '${name}' is not a backing image of '${root.name}'`);
};

/** What lies between, and the base, which has to stay where it is. */
const layersDownTo = (root: Node, base: Node | null): readonly Node[] => {
  const layers = layersOf(root);
  return base === null ? layers : layers.slice(0, layers.indexOf(base) + 1);
};
