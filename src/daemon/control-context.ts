/** The engine's side of the control socket: what its commands work on. */
import { spawn } from 'node:child_process';
import { basename, join } from 'node:path';
import type { ImageEntry } from '../../mount/catalog/image-entry.ts';
import type { Catalog } from '../../mount/catalog.ts';
import { assert } from '../base/assert.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import type { Graph } from '../block/graph.ts';
import type { Node } from '../block/node.ts';
import { startStream } from '../control/commands/block-stream.ts';
import type { ControlContext, Device, KeptBitmaps } from '../control/context.ts';
import type { Targets } from '../control/targets.ts';
import { toInfo } from '../image/info.ts';
import type { JobList } from '../job/job-list.ts';
import type { JobStore } from '../job/job-store.ts';
import { deviceActivity } from './device-activity.ts';
import { deviceSnapshots } from './device-snapshots.ts';
import { takeUpJobs } from './job-take-up.ts';
import { type StatusSource, statusDocument } from './status-document.ts';
import { syncView } from './view-sync.ts';

const RAW_SUFFIX = '.raw';

export interface ControlSource extends StatusSource {
  readonly graph: Graph;
  readonly catalog: Catalog;
  readonly jobs: JobList;
  readonly store: JobStore;
  readonly targets: Targets;
  readonly keptBitmaps: KeptBitmaps;
  readonly log: Log;
  /** Asks the supervisor to unmount. */
  readonly quit: () => void;
}

export const controlContext = (source: ControlSource): ControlContext => {
  const { graph, catalog, backend, jobs, store, config } = source;
  const { mountpoint } = config;
  const setSize: ControlContext['setSize'] = (device, lengthBytes) =>
    truncateView(mountpoint, device, lengthBytes);
  const context: ControlContext = {
    jobs,
    store,
    nodes: () => [...graph.nodes],
    devices: async () => (await catalog.images()).map(deviceOf),
    targets: source.targets,
    keptBitmaps: source.keptBitmaps,
    pivot: (device, target, options) => catalog.pivot(device.view, target, options),
    pivoted: (device, old) => pivoted(source, device, old),
    claimLayers: async (device, paths, { force, jobId }) => {
      const image = catalog.imageOf(device.view);
      if (image === null) throw new BlockError({ kind: 'not-found', message: 'the view is gone' });
      const end = await catalog.claimLayers(
        { image, paths, force },
        `job '${jobId}' commits into it`,
      );
      try {
        await graph.whenLetGo(paths);
        return end;
      } catch (error) {
        await end();
        throw error;
      }
    },
    reopen: (device, ownLayers) => catalog.reopen(device.view, ownLayers),
    refusePassthrough: (device) => {
      const image = catalog.imageOf(device.view);
      if (image === null || !backend.pages.isPassthrough(image.nodeId)) return;
      const message = 'busy: opened in passthrough';
      throw new BlockError({ kind: 'busy', message, path: device.path });
    },
    replaceBacking: (overlay, base) => graph.replaceBacking(overlay, base),
    chainChanged: (device) => catalog.chainChanged(device.view),
    status: () => statusDocument(source),
    setSize,
    activity: deviceActivity({
      catalog,
      backend,
      mountpoint,
      jobs,
      log: source.log,
      setSize,
      takeUpJobs: (imagePath) => takeUpJobs(context, source.log, imagePath),
    }),
    snapshots: (device) => deviceSnapshots({ catalog, backend, mountpoint, setSize }, device),
    syncDevice: (device, op) => syncView(join(mountpoint, device.view.name), op),
    imageInfo,
    quit: source.quit,
  };
  return context;
};

const deviceOf = (image: ImageEntry): Device => {
  const { view } = image;
  return {
    name: view.name.endsWith(RAW_SUFFIX) ? view.name.slice(0, -RAW_SUFFIX.length) : view.name,
    get path() {
      return image.host.path;
    },
    get originalPath() {
      return image.candidate.standIn?.record.original ?? image.host.path;
    },
    view,
  };
};

// What a pivot has left behind: whatever goes wrong with it, the view goes on over the other image.
const pivoted = async (
  { graph, catalog, log }: ControlSource,
  device: Device,
  old: Node | null,
): Promise<void> => {
  const name = device.view.name;
  log.info(name, `goes on over '${device.path}'`);
  if (old !== null) {
    await graph.close(old).catch((error: unknown) => {
      log.error(name, `'${old.path}' is left behind: ${toBlockError(error).describe()}`);
    });
  }
  await catalog.rescan().catch((error: unknown) => {
    log.error(name, toBlockError(error).describe());
  });
};

const imageInfo = async (node: Node): Promise<object> => {
  const { inspect, name } = node.descriptor;
  assert(node.file !== null && inspect !== undefined, `${name} is a format with a header`);
  const description = await inspect(node.file, node.path);
  const info = toInfo(node.path, description, node.lengthBytes, await node.driver.allocatedBytes());
  const { backing } = node;

  return backing === null ? info : { ...info, 'backing-image': await imageInfo(backing) };
};

/** Another process asks the kernel, which asks us: from here it would wait for itself. */
const truncateView = async (
  mountpoint: string,
  device: Device,
  lengthBytes: number,
): Promise<void> => {
  const path = join(mountpoint, basename(device.view.name));
  const child = spawn('truncate', ['-c', '-s', String(lengthBytes), '--', path], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
  });
  let complaint = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint += text;
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', (error) => reject(toBlockError(error, { op: 'resize', path })));
    child.once('close', resolve);
  });
  if (code === 0) return;
  const message = complaint.trim().replace(/^truncate: (?:failed to truncate '[^']*'[^:]*: )?/, '');
  throw new BlockError({ kind: 'io', message, path: device.path, op: 'resize' });
};

/** `--stream`: populates every image that has a backing image, one after the other. Never throws. */
export const streamAll = async (
  context: ControlContext,
  {
    speed,
    signal,
    log,
  }: { readonly speed: number; readonly signal: AbortSignal; readonly log: Log },
): Promise<void> => {
  for (const device of await context.devices()) {
    const { view, name } = device;
    if (signal.aborted) return;
    if (view.readOnly || view.isHeld) continue;
    try {
      const root = await view.open();
      const running = context.jobs.claimOf(root);
      if (running !== null) await running.concluded;
      else if (root.backing !== null) {
        await (await startStream(context, { device: name, speed })).concluded;
      }
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      log.error(name, `is not streamed: ${reason}`);
    }
  }
};
