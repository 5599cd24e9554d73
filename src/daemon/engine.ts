/**
 * The engine process: composes drivers, graph, directory and backend from the configuration that its supervisor sends,
 * serves until the mount is gone, then flushes and closes everything and exits.
 *
 * It may be killed at any instruction; nothing that must survive lives here alone.
 */
import { closeSync, constants, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { drivers } from '../../drivers/index.ts';
import type { Backend } from '../../mount/backend.ts';
import { Activity } from '../../mount/catalog/activity.ts';
import type { CatalogOptions } from '../../mount/catalog/catalog-options.ts';
import { sourceGate } from '../../mount/catalog/source-gate.ts';
import { type Catalog, openCatalog } from '../../mount/catalog.ts';
import { INIT2 } from '../../mount/kernel/abi.ts';
import type { InitOutcome } from '../../mount/kernel/init.ts';
import type { PassthroughUse } from '../../mount/kernel/passthrough.ts';
import { KernelSession } from '../../mount/kernel/session.ts';
import { toBlockError } from '../base/block-error.ts';
import { createLog, type Log } from '../base/log.ts';
import { Graph } from '../block/graph.ts';
import { noLocks } from '../block/image-locks.ts';
import { DriverRegistry } from '../block/registry.ts';
import { createJournalFactory } from '../block/restart-journal-file.ts';
import { Secrets } from '../block/secrets.ts';
import { JobList } from '../job/job-list.ts';
import { JobStore } from '../job/job-store.ts';
import { receiveDescriptors } from '../os/descriptor-passing.ts';
import { putDescriptor } from '../os/descriptors.ts';
import { cloneFuseDevice } from '../os/mounts.ts';
import { dieWithParent } from '../os/process.ts';
import { TaskRecorder } from './black-box.ts';
import { type EngineServers, startServers } from './engine-servers.ts';
import { JobBitmaps } from './job-bitmaps.ts';
import {
  ENGINE_DESCRIPTORS,
  ENGINE_PROTOCOL,
  type EngineConfig,
  type EngineMessage,
  type SupervisorMessage,
} from './messages.ts';
import type { ReadRecords } from './read-records.ts';
import type { Rehearsal } from './rehearsal.ts';
import { isRehearsed } from './rehearsal-place.ts';
import { type KeptStandIns, StandInStore } from './stand-in-store.ts';
import { SupervisorLink } from './supervisor-link.ts';

/** `off`: every request faults; for comparison and debugging. */
const TABLE_SWITCH = 'VDISKFS_TRANSLATION_TABLE';
/** The table's share of the metadata memory; the drivers' caches have the rest. */
const TABLE_SHARE = 1 / 2;
/** And that each image gets for its own tables. */
const IMAGE_SHARE = 1 - TABLE_SHARE;

/** What is needed later is loaded this long after the mount is usable, or when it is needed. */
const REST_AFTER_MS = 200;
/** A rehearsal gives way to whoever has waited for the mount, and is of use to who writes soon. */
const REHEARSAL_AFTER_MS = 30;
/** Who has not been told to begin after this time waits for another's death. */
const SPARE_AFTER_MS = 500;

const send = (message: EngineMessage): void => {
  // A supervisor that is gone hears nothing; 'disconnect' ends this process then.
  process.send?.(message, undefined, undefined, () => undefined);
};

interface Engine {
  readonly backend: Backend;
  readonly catalog: Catalog;
  readonly servers: EngineServers;
  readonly records: ReadRecords | null;
  readonly standIns: StandInStore;
  readonly jobs: JobList;
  /** Null before it, and where there is none. */
  rehearsal: Rehearsal | null;
  isClosing: boolean;
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
  const growsHereAlone = !config.passthrough;
  const options = { cache, cacheBytes, discard, journalFor, copyOnRead, growsHereAlone };
  const graph = new Graph({ ...seen, ...options });
  const jobs = new JobList(log);
  const records = await recordsFor(config, log);
  const tasks = config.careful ? new TaskRecorder(ENGINE_DESCRIPTORS.blackBox) : null;
  const store = new JobStore(config.stateDirectory, log);
  const keptBitmaps = new JobBitmaps({ directory: config.journalDirectory, mountpoint });
  if (config.generation === 0) keptBitmaps.removeAll();
  else keptBitmaps.expectAll();
  const standIns = await standInsFor(config, link, log);
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
  const servers = await startServers({
    config,
    catalog,
    backend,
    graph,
    registry,
    locks,
    secrets,
    jobs,
    store,
    keptBitmaps,
    log,
    quit: () => send({ type: 'quit' }),
  });
  return {
    backend,
    catalog,
    servers,
    records,
    standIns,
    jobs,
    rehearsal: null,
    isClosing: false,
    ended: () => keptBitmaps.removeAll(),
  };
};

/** Only the first engine of a mount waits for the state directory, unless one has died in a pivot. */
const standInsFor = async (
  { stateDirectory: directory, standIns }: EngineConfig,
  link: SupervisorLink,
  log: Log,
): Promise<StandInStore> => {
  const tell = (kept: KeptStandIns | null): Promise<void> => link.tellStandIns(kept);
  const options = { directory, log, tell };
  return standIns === null ? StandInStore.load(options) : StandInStore.inherit(options, standIns);
};

const recordsFor = async (
  { recordDirectory, generation }: EngineConfig,
  log: Log,
): Promise<ReadRecords | null> => {
  if (recordDirectory === null) return null;
  const { ReadRecords } = await import('./read-records.ts');
  return new ReadRecords(recordDirectory, log, { append: generation > 0 });
};

/**
 * Ends what works on the images beside the guests, then the images: none of them waits for a target that does not answer.
 * Whether the targets are closed, too.
 */
const closeImages = async (
  engine: Engine,
  how: { readonly mountEnds: boolean },
): Promise<boolean> => {
  const { servers, records, standIns, catalog, rehearsal } = engine;
  engine.isClosing = true;
  const rehearsed = rehearsal?.end();
  const [{ targetsClosed }] = await Promise.all([servers.close(how), records?.close()]);
  try {
    await catalog.close();
  } finally {
    await Promise.all([targetsClosed, standIns.settled(), rehearsed]);
  }
  return targetsClosed;
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

/** Serves until the mount is gone. `began`: what serves, when it does. */
const serve = async (
  config: EngineConfig,
  link: SupervisorLink,
  began: (engine: Engine) => void,
): Promise<void> => {
  const log = createLog({ level: config.logLevel });
  const engine = await start(config, link, log);
  began(engine);
  send({ type: 'ready', warnings: engine.catalog.failures.map((e) => e.describe()) });
  // Workers, and who has waited for the mount, come first.
  setTimeout(() => {
    engine.servers.loadRest();
    loadDrivers();
  }, REST_AFTER_MS).unref();
  if (isRehearsed(config))
    setTimeout(() => void rehearse(engine, config, log), REHEARSAL_AFTER_MS).unref();
  // A worker that has died may hold a request for which an orderly end would wait for ever: its engine ends as if it was killed.
  await engine.backend.ended;
  await closeImages(engine, { mountEnds: true });
  engine.ended();
  // Not after a worker's death: the mount is still there, and another engine takes it over.
  send({ type: 'unmounted' });
};

/** Never rejects: an engine serves as well without. */
const rehearse = async (engine: Engine, config: EngineConfig, log: Log): Promise<void> => {
  const { backend, jobs } = engine;
  try {
    const { beginRehearsal } = await import('./rehearsal.ts');
    if (engine.isClosing) return;
    engine.rehearsal = beginRehearsal({
      runtimeDirectory: dirname(config.journalDirectory),
      mountpoint: config.mountpoint,
      demand: () => backend.counters().requests,
      isBusy: () => jobs.all.some((job) => job.status !== 'concluded'),
      log,
    });
  } catch (error) {
    log.debug(config.mountpoint, `no rehearsal: ${toBlockError(error).describe()}`);
  }
};

/** Another engine goes on: nothing more is taken up, and everything is on disk when the supervisor hears of it. */
const handOver = async (engine: Engine): Promise<void> => {
  engine.isClosing = true;
  void engine.rehearsal?.end();
  await engine.backend.hold?.();
  // What cannot be flushed is in the journal, and the next engine meets the same error; it has been logged.
  const targetsClosed = await closeImages(engine, { mountEnds: false }).catch(() => false);
  send({ type: 'handed-over', targetsClosed });
};

/**
 * Takes what has been sent with the word to begin, and puts it where it belongs: stderr is the mount's log from here on. The
 * configuration with the engine's own number of the FUSE descriptor.
 */
const withDescriptors = (config: EngineConfig): EngineConfig => {
  const received = receiveDescriptors(ENGINE_DESCRIPTORS.fuse);
  const [stderr, blackBox, fuse] = received;
  for (const standard of [1, 2])
    if (stderr !== undefined) putDescriptor(stderr, standard, { inherited: true });
  if (blackBox !== undefined)
    putDescriptor(blackBox, ENGINE_DESCRIPTORS.blackBox, { inherited: false });
  if (fuse !== undefined) putDescriptor(fuse, ENGINE_DESCRIPTORS.fuse, { inherited: false });
  else closeSync(ENGINE_DESCRIPTORS.fuse);
  for (const descriptor of received) closeSync(descriptor);
  if (config.fuse === null) return config;
  return { ...config, fuse: { ...config.fuse, descriptor: ENGINE_DESCRIPTORS.fuse } };
};

const beginServing = async (
  config: EngineConfig,
  link: SupervisorLink,
  began: (engine: Engine) => void,
): Promise<void> => serve(withDescriptors(config), link, began);

/** What only opened images need. */
const loadDrivers = (): void => {
  for (const driver of drivers) if (driver.role === 'format') void driver.load?.();
};

/** A spare engine has the time to load what others load when they serve. */
const loadRest = (): void => {
  loadDrivers();
  void import('./engine-control.ts');
};

const main = (): void => {
  dieWithParent();
  // The parent may have died before the line above: then nobody will tell.
  if (!process.connected) process.exit(1);
  const link = new SupervisorLink(send);
  let serving: Engine | null = null;
  const isSpare = setTimeout(loadRest, SPARE_AFTER_MS).unref();
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
    clearTimeout(isSpare);
    const began = (engine: Engine): void => {
      serving = engine;
    };
    beginServing(message.config, link, began).then(
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
