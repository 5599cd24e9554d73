/**
 * The engine process: composes drivers, graph, directory and backend from the configuration that its supervisor sends,
 * serves until the mount is gone, then flushes and closes everything and exits.
 *
 * It may be killed at any instruction; nothing that must survive lives here alone.
 */
import { constants, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { drivers } from '../../drivers/index.ts';
import type { Backend } from '../../mount/backend.ts';
import { Activity } from '../../mount/catalog/activity.ts';
import type { CatalogOptions } from '../../mount/catalog/catalog-options.ts';
import { type Catalog, openCatalog, sourceGate } from '../../mount/catalog.ts';
import { INIT2 } from '../../mount/kernel/abi.ts';
import type { InitOutcome } from '../../mount/kernel/init.ts';
import type { PassthroughUse } from '../../mount/kernel/passthrough.ts';
import { KernelSession } from '../../mount/kernel/session.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { createLog, type Log } from '../base/log.ts';
import { Graph } from '../block/graph.ts';
import { noLocks } from '../block/image-locks.ts';
import { DriverRegistry } from '../block/registry.ts';
import { createJournalFactory } from '../block/restart-journal-file.ts';
import { Secrets } from '../block/secrets.ts';
import type { ControlContext } from '../control/context.ts';
import { createMonitor } from '../control/monitor.ts';
import { serveMonitor } from '../control/server.ts';
import { JobList } from '../job/job-list.ts';
import { JobStore } from '../job/job-store.ts';
import { cloneFuseDevice, dieWithParent } from '../os/linux.ts';
import { TaskRecorder } from './black-box.ts';
import { controlContext, streamAll } from './control-context.ts';
import { JobBitmaps } from './job-bitmaps.ts';
import { takeUpJobs } from './job-take-up.ts';
import { JobTargets } from './job-targets.ts';
import {
  ENGINE_DESCRIPTORS,
  ENGINE_PROTOCOL,
  type EngineConfig,
  type EngineMessage,
  type SupervisorMessage,
} from './messages.ts';
import type { MetricsSource } from './metrics.ts';
import { serveMetrics } from './metrics-server.ts';
import { prefetchAll, ReadRecords } from './read-records.ts';
import { StandInStore } from './stand-in-store.ts';
import { SupervisorLink } from './supervisor-link.ts';

/** `off`: every request faults; for comparison and debugging. */
const TABLE_SWITCH = 'VDISKFS_TRANSLATION_TABLE';
/** The table's share of the metadata memory; the drivers' caches have the rest. */
const TABLE_SHARE = 1 / 2;
/** And that each image gets for its own tables. */
const IMAGE_SHARE = 1 - TABLE_SHARE;

/** The control socket opens at the latest after this. */
const JOBS_PATIENCE_MS = 2000;

const send = (message: EngineMessage): void => {
  // A supervisor that is gone hears nothing; 'disconnect' ends this process then.
  process.send?.(message, undefined, undefined, () => undefined);
};

interface Engine {
  readonly backend: Backend;
  readonly catalog: Catalog;
  /** Ends the jobs, keeping what a later engine needs to go on, and closes control socket and metrics. */
  readonly closeServers: (how: { readonly mountEnds: boolean }) => Promise<void>;
  /** The mount is gone: what is kept for engines that come later goes, too. */
  readonly ended: () => void;
}

const start = async (config: EngineConfig, link: SupervisorLink, log: Log): Promise<Engine> => {
  const { sources, mountpoint, lock, cache, discard } = config;
  const cacheBytes = config.cacheBytes * IMAGE_SHARE;
  const registry = new DriverRegistry(drivers);
  const locks = lock === 'off' ? noLocks : link;
  const { backingDirectories, credentials } = config;
  const gate = await sourceGate({ sources, backingDirectories, mountpoint });
  const journalFor = createJournalFactory({ directory: config.journalDirectory, log });
  const secrets = new Secrets(config.secrets, { keep: false });
  const { copyOnRead } = config;
  const seen = { registry, gate, locks, log, secrets, credentials };
  const graph = new Graph({ ...seen, cache, cacheBytes, discard, journalFor, copyOnRead });
  const jobs = new JobList(log);
  const { recordDirectory } = config;
  const records =
    recordDirectory === null
      ? null
      : new ReadRecords(recordDirectory, log, { append: config.generation > 0 });
  const tasks = config.careful ? new TaskRecorder(ENGINE_DESCRIPTORS.blackBox) : null;
  const store = new JobStore(config.stateDirectory, log);
  const keptBitmaps = new JobBitmaps({ directory: config.journalDirectory, mountpoint });
  if (config.generation === 0) keptBitmaps.removeAll();
  else keptBitmaps.expect(await store.load());
  const standIns = await StandInStore.load(config.stateDirectory, log);
  const catalog = await openCatalog({
    sources,
    graph,
    registry,
    gate,
    locks,
    credentials,
    log,
    mountpoint,
    readOnly: config.readOnly,
    allowShrink: config.allowShrink,
    detectZeroes: config.detectZeroes,
    standIns,
    format: config.format,
    socketPath: config.socketPath,
    pid: process.pid,
    noteRead: (name, offset, length) => records?.note(name, offset, length),
    opened: (root) => keptBitmaps.opened(root),
    jobsOf: (view) => jobs.infoOf(view.root),
    nodeIds: (keys) => link.nodeIds(keys),
    activity: activityOf(config, link),
    blocked: blockedBy(config),
    begin: (task) => tasks?.begin(task) ?? (() => undefined),
  });
  const backend = await startBackend(config, catalog, log, tasks);
  const quit = (): void => send({ type: 'quit' });
  const targets = new JobTargets({
    graph,
    catalog,
    registry,
    locks,
    secrets,
    backingDirectories,
    mountpoint,
  });
  const scene = { config, catalog, backend, graph, jobs, store, targets, keptBitmaps, log, quit };
  const context = controlContext(scene);
  const closeServers = await startServers(config, { config, catalog, backend, jobs }, context, log);
  return {
    backend,
    catalog,
    ended: () => keptBitmaps.removeAll(),
    closeServers: async (how) => {
      await Promise.all([closeServers(how), records?.close()]);
      await targets.close().catch((error: unknown) => {
        log.error('targets', toBlockError(error).describe());
      });
    },
  };
};

/** Takes up jobs, then opens control socket and metrics. Returns what ends all of it. Errors: those of a first engine's sockets. */
const startServers = async (
  config: EngineConfig,
  source: MetricsSource,
  context: ControlContext,
  log: Log,
): Promise<Engine['closeServers']> => {
  const takenUp =
    config.resume || config.generation > 0 ? takeUpJobs(context, log) : Promise.resolve();
  // A client that asks at once finds the jobs; but an image that hangs keeps nobody from asking.
  await Promise.race([takenUp, sleep(JOBS_PATIENCE_MS, undefined, { ref: false })]);
  const ending = new AbortController();
  const populated = populate(context, config, ending.signal, log);
  const closeSocket = await serveMonitor(config.socketPath, createMonitor(context), log).catch(
    (error: unknown) => {
      if (config.generation === 0) throw error;
      // The mount is in use: it goes on without being asked.
      log.error('control socket', toBlockError(error, { path: config.socketPath }).describe());
      return () => undefined;
    },
  );
  const closeMetrics = await startMetrics(config, source, log);
  return async (how) => {
    closeSocket();
    closeMetrics();
    ending.abort();
    await context.jobs.close(how);
    // Neither starts one any more.
    await Promise.all([takenUp, populated]);
    await context.store.settled();
  };
};

const activityOf = ({ inactive, activityChanges }: EngineConfig, link: SupervisorLink): Activity =>
  new Activity({
    beginsInactive: inactive,
    changed: activityChanges,
    tell: (path, differs) => link.activityChanged(path, differs),
  });

const blockedBy = ({ blocked }: EngineConfig): CatalogOptions['blocked'] => ({
  nodeIds: new Set(blocked.nodeIds),
  paths: new Set(blocked.paths),
});

/** `--prefetch`, then `--stream`. Never throws. */
const populate = async (
  context: ControlContext,
  { prefetchDirectory, streamSpeed }: EngineConfig,
  signal: AbortSignal,
  log: Log,
): Promise<void> => {
  if (prefetchDirectory !== null)
    await prefetchAll(context, { directory: prefetchDirectory, signal, log });
  if (streamSpeed !== null) await streamAll(context, { speed: streamSpeed, signal, log });
};

const startMetrics = async (
  { metrics, generation }: EngineConfig,
  source: MetricsSource,
  log: Log,
): Promise<() => void> => {
  if (metrics === null) return () => undefined;
  return serveMetrics(metrics, source, { mustListen: generation === 0, log });
};

const startBackend = async (
  config: EngineConfig,
  directory: Catalog,
  log: Log,
  tasks: TaskRecorder | null,
): Promise<Backend> => {
  const { mountpoint, readOnly, allowOther, threads, fuse, generation, cacheBytes } = config;
  const measure = config.metrics !== null;
  const options = { directory, mountpoint, readOnly, allowOther, threads, measure, log };
  if (fuse === null) {
    const { mountFuseNative } = await import('../../mount/fuse-native/backend.ts');
    return mountFuseNative({ ...options, source: config.sourceLabel });
  }
  const { init } = fuse;
  const descriptor = ownDescriptor(fuse.descriptor, init);
  // Workers would answer reads that are to be recorded; and a careful engine serves everything itself.
  const isTableOff =
    process.env[TABLE_SWITCH] === 'off' || config.recordDirectory !== null || tasks !== null;
  const tableBytes = isTableOff ? 0 : Math.floor(cacheBytes * TABLE_SHARE);
  const passthrough = {
    inherited: config.passthroughUses,
    changed: (use: PassthroughUse): void => send({ type: 'passthrough', use }),
  };
  return new KernelSession({
    ...options,
    descriptor,
    init,
    generation,
    tableBytes,
    passthrough,
    tasks,
  });
};

/**
 * Where the kernel does not repeat what a dead engine has left unanswered, each engine reads from a channel of its own: what
 * it has taken up ends with an error when it dies, and hangs nobody.
 */
const ownDescriptor = (fuse: number, init: InitOutcome): number => {
  if ((init.flags2 & INIT2.HAS_RESEND) !== 0) return fuse;
  const fresh = openSync('/dev/fuse', constants.O_RDWR);
  cloneFuseDevice(fresh, fuse);
  return fresh;
};

const warningsOf = async (catalog: Catalog): Promise<string[]> => {
  const { views } = await catalog.status();
  return views.flatMap((v) => (v.error === null ? [] : [BlockError.fromWire(v.error).describe()]));
};

/** Serves until the mount is gone. `began`: what serves, when it does. */
const serve = async (
  config: EngineConfig,
  link: SupervisorLink,
  began: (engine: Engine) => void,
): Promise<void> => {
  const log = createLog({ level: config.logLevel });
  const engine = await start(config, link, log);
  began(engine);
  send({ type: 'ready', warnings: await warningsOf(engine.catalog) });
  // A worker that has died may hold a request for which an orderly end would wait for ever: its engine ends as if it was killed.
  await engine.backend.ended;
  await engine.closeServers({ mountEnds: true });
  await engine.catalog.close();
  engine.ended();
  // Not after a worker's death: the mount is still there, and another engine takes it over.
  send({ type: 'unmounted' });
};

/** Another engine goes on: nothing more is taken up, and everything is on disk when the supervisor hears of it. */
const handOver = async ({ backend, catalog, closeServers }: Engine): Promise<void> => {
  await backend.hold?.();
  await closeServers({ mountEnds: false });
  // What cannot be flushed is in the journal, and the next engine meets the same error; it has been logged.
  await catalog.close().catch(() => undefined);
  send({ type: 'handed-over' });
};

const main = (): void => {
  dieWithParent();
  // The parent may have died before the line above: then nobody will tell.
  if (!process.connected) process.exit(1);
  const link = new SupervisorLink(send);
  let serving: Engine | null = null;
  process.on('disconnect', () => process.exit(1));
  process.on('uncaughtException', (error) => {
    createLog({ level: 'error' }).error('engine', error.stack ?? String(error));
    // An ordinary exit waits for the workers, and these for requests.
    process.abort();
  });
  // The supervisor decides when to end; a terminal's ^C, or a service manager's signal, reaches the whole group.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => undefined);
  process.on('message', (message: SupervisorMessage) => {
    if (message.type === 'ping') send({ type: 'pong' });
    if (message.type === 'hand-over' && serving !== null) void handOver(serving);
    if (message.type !== 'start') {
      link.answer(message);
      return;
    }
    const began = (engine: Engine): void => {
      serving = engine;
    };
    serve(message.config, link, began).then(
      () => process.exit(0),
      (error: unknown) => {
        send({ type: 'failed', error: toBlockError(error).toWire() });
        // A worker may sit in its read for ever: the message is out, then nothing is waited for.
        setTimeout(() => process.kill(process.pid, 'SIGKILL'), 100);
      },
    );
  });
};

main();
send({ type: 'loaded', protocol: ENGINE_PROTOCOL });
// A spare engine has the time; the first mount's is opening its images anyway.
for (const driver of drivers) if (driver.role === 'format') void driver.load?.();
