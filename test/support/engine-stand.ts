/**
 * What an engine is made of beside its mount: catalog, graph, jobs and the commands of the control socket. Guests use its views;
 * there is no kernel that holds anything of theirs. Another one over the same directory is a later mount.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { drivers } from '../../drivers/index.ts';
import type { Backend } from '../../mount/backend.ts';
import { ImageEntry } from '../../mount/catalog/image-entry.ts';
import { sourceGate } from '../../mount/catalog/source-gate.ts';
import type { StandIns } from '../../mount/catalog/stand-ins.ts';
import { type Catalog, openCatalog } from '../../mount/catalog.ts';
import { createLog, type Log } from '../../src/base/log.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import { Graph } from '../../src/block/graph.ts';
import { noLocks } from '../../src/block/image-locks.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import { createJournalFactory } from '../../src/block/restart-journal-file.ts';
import type { View } from '../../src/block/view.ts';
import type { ControlContext } from '../../src/control/context.ts';
import { createMonitor } from '../../src/control/monitor.ts';
import type { Monitor } from '../../src/control/server.ts';
import { controlContext } from '../../src/daemon/control-context.ts';
import { JobBitmaps } from '../../src/daemon/job-bitmaps.ts';
import { JobTargets } from '../../src/daemon/job-targets.ts';
import type { EngineConfig } from '../../src/daemon/messages.ts';
import { NodeIds } from '../../src/daemon/node-ids.ts';
import { StandInStore } from '../../src/daemon/stand-in-store.ts';
import type { Job } from '../../src/job/job.ts';
import { JobList } from '../../src/job/job-list.ts';
import { JobStore } from '../../src/job/job-store.ts';
import { noSecrets } from './no-secrets.ts';
import { type Cleanup, scratchDirectory } from './scratch.ts';

export interface EngineStandOptions {
  /** `images` in it is the source; everything else of the stand lies beside. */
  readonly directory: string;
  /** Takes the place of the `file` protocol. */
  readonly file?: DriverDescriptor;
  /** What stands between the engine and its records of what views stand for. */
  readonly standIns?: (store: StandIns) => StandIns;
  /** In the place of a kernel that is told to write what it holds of a view. */
  readonly sync?: (view: View) => Promise<void>;
}

interface Parts {
  readonly catalog: Catalog;
  readonly graph: Graph;
  readonly jobs: JobList;
  readonly monitor: Monitor;
  readonly targets: JobTargets;
  readonly store: JobStore;
  readonly lines: readonly string[];
}

/** A directory with a folder of images; stands that are put into `opened` are closed before it is removed. */
export const standDirectory = async (
  t: Cleanup,
): Promise<{ directory: string; images: string; opened: EngineStand[] }> => {
  const opened: EngineStand[] = [];
  t.after(async () => {
    for (const stand of opened) await stand.close();
  });
  const directory = await scratchDirectory(t);
  const images = imagesOf(directory);
  await mkdir(images);
  return { directory, images, opened };
};

/** Below a stand's directory. */
export const imagesOf = (directory: string): string => join(directory, 'images');

export class EngineStand {
  readonly graph: Graph;
  /** Names of what was emitted; the status of a change of status. */
  readonly events: string[] = [];
  /** Of the log. */
  readonly lines: readonly string[];
  readonly #parts: Parts;
  readonly #opened = new Set<ImageEntry>();

  private constructor(parts: Parts) {
    this.#parts = parts;
    this.graph = parts.graph;
    this.lines = parts.lines;
    parts.jobs.listen((name, data) => {
      this.events.push(name === 'JOB_STATUS_CHANGE' ? String(data['status']) : name);
    });
  }

  static async open(options: EngineStandOptions): Promise<EngineStand> {
    const { directory, file, standIns = (store) => store } = options;
    const mountpoint = join(directory, 'mountpoint');
    const stateDirectory = join(directory, 'state');
    const journalDirectory = join(directory, 'journals');
    await mkdir(imagesOf(directory), { recursive: true });
    const lines: string[] = [];
    const log = createLog({ level: 'info', journald: false, write: (line) => lines.push(line) });
    const used = drivers.map((d) => (file !== undefined && d.name === 'file' ? file : d));
    const registry = new DriverRegistry(used);
    const sources = [{ name: null, path: imagesOf(directory) }];
    const gate = await sourceGate({ sources, backingDirectories: [directory], mountpoint: null });
    const graph = new Graph({
      registry,
      gate,
      locks: noLocks,
      log,
      cache: 'writeback',
      cacheBytes: 256 << 10,
      discard: 'unmap',
      secrets: noSecrets,
      growsHereAlone: true,
      journalFor: createJournalFactory({ directory: journalDirectory, log }),
    });
    const ids = new NodeIds({ earlier: [], given: () => undefined });
    const catalog = await openCatalog({
      sources,
      graph,
      registry,
      gate,
      locks: noLocks,
      log,
      mountpoint: null,
      readOnly: false,
      allowShrink: false,
      detectZeroes: 'off',
      format: null,
      standIns: standIns(await StandInStore.load({ directory: stateDirectory, log })),
      socketPath: join(directory, 'socket'),
      pid: process.pid,
      nodeIds: async (keys) => ids.idsFor(keys),
      blocked: { nodeIds: new Set(), paths: new Set() },
      begin: () => () => undefined,
    });
    const jobs = new JobList(log);
    const targets = new JobTargets({
      graph,
      catalog,
      registry,
      locks: noLocks,
      secrets: noSecrets,
      log,
      backingDirectories: [directory],
      mountpoint,
    });
    const store = new JobStore(stateDirectory, log);
    const parts = { catalog, graph, jobs, targets, store };
    const context = contextOf({ ...parts, log }, { mountpoint, journalDirectory }, options);
    return new EngineStand({ ...parts, lines, monitor: createMonitor(context) });
  }

  /** A command of the control socket. Errors: its own. */
  execute(name: string, given: Readonly<Record<string, unknown>>): Promise<unknown> {
    return this.#parts.monitor.execute(name, given);
  }

  job(id: string): Job | null {
    return this.#parts.jobs.get(id);
  }

  /** Of an image, by the name of its file in the mount. It has a handle from then on. */
  async view(name: string): Promise<View> {
    const { catalog } = this.#parts;
    const entry = await catalog.lookup(name);
    if (!(entry instanceof ImageEntry)) {
      throw new Error(`there is no view ${name}: ${this.lines.join('\n')}`);
    }
    if (!this.#opened.has(entry)) catalog.opened(entry);
    this.#opened.add(entry);
    return entry.view;
  }

  /** The mount ends. Errors: the first of its closings. */
  async close(): Promise<void> {
    const { jobs, targets, catalog, store } = this.#parts;
    await jobs.close({ mountEnds: true });
    await store.settled();
    await targets.close();
    await catalog.close();
  }
}

const contextOf = (
  parts: Omit<Parts, 'monitor' | 'lines'> & { readonly log: Log },
  paths: Pick<EngineConfig, 'mountpoint' | 'journalDirectory'>,
  { sync = async () => undefined }: EngineStandOptions,
): ControlContext => {
  const { mountpoint, journalDirectory } = paths;
  // No kernel, and so nothing that it serves by itself.
  const backend = { pages: { isPassthrough: () => false } } as unknown as Backend;
  const context = controlContext({
    ...parts,
    config: { mountpoint } as EngineConfig,
    backend,
    keptBitmaps: new JobBitmaps({ directory: journalDirectory, mountpoint }),
    quit: () => undefined,
  });
  return { ...context, syncDevice: ({ view }) => sync(view) };
};
