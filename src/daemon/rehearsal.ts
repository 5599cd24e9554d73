/**
 * A rehearsal: an engine that has just started serves some thousand writes that nobody has sent, to scratch images of its own, while it has
 * nothing else to do. V8 makes machine code of what has run some hundred times, and a guest that writes at once would wait for that in its
 * first second (figures in ARCHITECTURE.md).
 *
 * All of it is the real thing, but for the kernel, whose place `RehearsedWrites` takes: session, translation table, catalog, graph, drivers
 * and journals. Each round makes all of them anew, with other sizes: code that has seen one object, or one size, is made for that one, and
 * thrown away when the next one comes.
 *
 * It touches no image of anybody's and takes no locks. Its files lie in the runtime directory, which mostly is a tmpfs, and are removed before a
 * disk would see them (rehearsal-place.ts).
 */
import { openSync } from 'node:fs';
import { mkdir, rm, statfs } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { drivers } from '../../drivers/index.ts';
import { sourceGate } from '../../mount/catalog/source-gate.ts';
import { type Catalog, openCatalog } from '../../mount/catalog.ts';
import { type RehearsedWrite, RehearsedWrites } from '../../mount/kernel/rehearsed-writes.ts';
import { KernelSession } from '../../mount/kernel/session.ts';
import type { WorkerSetup } from '../../mount/kernel/worker-pool.ts';
import { assert, present } from '../base/assert.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import { type Log, silentLog } from '../base/log.ts';
import { guestOffset } from '../base/units.ts';
import { Graph } from '../block/graph.ts';
import { noLocks } from '../block/image-locks.ts';
import { DriverRegistry } from '../block/registry.ts';
import { createJournalFactory } from '../block/restart-journal-file.ts';
import { Secrets } from '../block/secrets.ts';
import { createImage } from '../image/create.ts';
import { isLocalFileSystem } from '../os/local-file-systems.ts';
import { type RehearsalPlace, rehearsalDirectory } from './rehearsal-place.ts';

const ROUNDS = 4;
/** Of the overlay; a write of half a cluster copies the other half. */
const CLUSTERS = 1024;
const SMALLEST_CLUSTER_BYTES = 4096;
/** After so many of these writes comes one of so many clusters, to an image without a base, until that is full. */
const STRETCH_CLUSTERS = 16;
/** So many writes are handed over before the engine looks at what else there is to do. */
const WRITES_A_TURN = 4;
/** Has no divisor in common with CLUSTERS: its multiples reach each of them. */
const PRIME = 787;
/** The base is filled in such parts. */
const BASE_WRITE_BYTES = 256 << 10;
const TABLE_BYTES = 256 << 10;
const SLOT_PAYLOAD_BYTES = 256 << 10;
/** With less space left there is no rehearsal, which needs a tenth of it. */
const LEAST_FREE_BYTES = 256 << 20;
/** After a request of somebody's, or while a job works. */
const REST_MS = 10;
/** An engine that has had to do for so long knows its part. */
const MOST_REST_MS = 2000;
/** A write that takes longer has failed, or hangs. */
const WRITE_PATIENCE_MS = 2000;

export interface RehearsalScene {
  readonly place: RehearsalPlace;
  /** Changes whenever somebody else wants something of this engine. */
  readonly demand: () => number;
  readonly isBusy: () => boolean;
  readonly log: Log;
}

export interface Rehearsal {
  /** Ends it, and waits until nothing of it is left. Never rejects. */
  end(): Promise<void>;
}

/** Goes on by itself. What goes wrong with it is nobody's loss: the log says it, for developers. */
export const beginRehearsal = (scene: RehearsalScene): Rehearsal => {
  const ending = new AbortController();
  const { place, log } = scene;
  const begunMs = performance.now();
  const ended = rehearse(scene, ending).then(
    (writes) => {
      const text = `rehearsed ${writes} writes in ${Math.round(performance.now() - begunMs)} ms`;
      log.debug(place.mountpoint, text);
    },
    (error: unknown) =>
      log.debug(place.mountpoint, `no rehearsal: ${toBlockError(error).describe()}`),
  );
  return {
    end: async () => {
      ending.abort();
      await endsWithin(ended, GIVE_UP_MS);
    },
  };
};

/** How many writes were served. Errors: those of the host. */
const rehearse = async (scene: RehearsalScene, ending: AbortController): Promise<number> => {
  const directory = rehearsalDirectory(scene.place);
  if (!(await isRoomFor(dirname(directory)))) return 0;
  const turn = turns(scene, ending);
  let writes = 0;
  for (let round = 0; round < ROUNDS && !ending.signal.aborted; round++) {
    await rm(directory, { recursive: true, force: true });
    await mkdir(directory, { mode: 0o700 });
    try {
      writes += await rehearseRound({
        directory,
        round,
        turn,
        isOver: () => ending.signal.aborted,
      });
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }
  return writes;
};

const isRoomFor = async (directory: string): Promise<boolean> => {
  const { type, bavail, bsize } = await statfs(directory);
  return isLocalFileSystem(type) && bavail * bsize >= LEAST_FREE_BYTES;
};

/** Each resolves when nobody wants anything of this engine. */
const turns = ({ demand, isBusy }: RehearsalScene, ending: AbortController) => {
  let seen = demand();
  let restedMs = 0;
  return async (): Promise<void> => {
    for (let now = demand(); now !== seen || isBusy(); now = demand()) {
      seen = now;
      restedMs += REST_MS;
      if (restedMs > MOST_REST_MS) ending.abort();
      if (ending.signal.aborted) return;
      await sleep(REST_MS);
    }
  };
};

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

export interface RehearsalRound {
  /** Empty. The round leaves its images there. */
  readonly directory: string;
  readonly round: number;
  /** Between some writes and the next. */
  readonly turn: () => Promise<void>;
  readonly isOver: () => boolean;
}

/** One round; resolves to how many writes were handed over, when all are served and everything is closed. */
export const rehearseRound = async (scene: RehearsalRound): Promise<number> => {
  const { directory, round } = scene;
  const clusterBytes = SMALLEST_CLUSTER_BYTES << (round % 2);
  const registry = new DriverRegistry(drivers);
  const { graph, gate, secrets } = await scratchGraph(directory, registry);
  const paths = await makeImages({ directory, clusterBytes, registry, secrets, graph });
  const sources = [
    { name: 'overlay', path: paths.overlay },
    { name: 'plain', path: paths.plain },
  ];
  const catalog = await openCatalog({
    sources,
    graph,
    registry,
    gate,
    locks: noLocks,
    log: silentLog,
    mountpoint: null,
    readOnly: false,
    allowShrink: false,
    detectZeroes: 'off',
    format: null,
    socketPath: '',
    pid: process.pid,
    nodeIds: async (keys) => keys.map((_key, index) => index + 2),
    blocked: { nodeIds: new Set(), paths: new Set() },
    begin: () => () => undefined,
  });
  try {
    const images = await catalog.images();
    const nodeOf = (path: string): number => {
      const image = images.find(({ host }) => host.path === path);
      return present(image, 'an image that was made has a view').nodeId;
    };
    const nodes = { overlay: nodeOf(paths.overlay), plain: nodeOf(paths.plain) };
    return await withSession(catalog, (stage) => play(stage, { ...scene, clusterBytes, nodes }));
  } finally {
    await catalog.close();
  }
};

const scratchGraph = async (directory: string, registry: DriverRegistry) => {
  const secrets = new Secrets([], { keep: false });
  const gate = await sourceGate({ sources: [], backingDirectories: [directory], mountpoint: null });
  const graph = new Graph({
    registry,
    gate,
    locks: noLocks,
    log: silentLog,
    // What is removed in a moment is not to reach a disk.
    cache: 'unsafe',
    cacheBytes: TABLE_BYTES,
    discard: 'unmap',
    growsHereAlone: true,
    secrets,
    journalFor: createJournalFactory({ directory, log: silentLog }),
  });
  return { graph, gate, secrets };
};

/** An overlay over a base that is full, and an image without a base. */
const makeImages = async (scene: {
  readonly directory: string;
  readonly clusterBytes: number;
  readonly registry: DriverRegistry;
  readonly secrets: Secrets;
  readonly graph: Graph;
}): Promise<{ readonly overlay: string; readonly plain: string }> => {
  const { directory, clusterBytes, registry, secrets, graph } = scene;
  const virtualSizeBytes = CLUSTERS * clusterBytes;
  const make = async (name: string, base: string | null): Promise<string> => {
    const path = join(directory, name);
    await createImage(
      {
        path,
        format: 'qcow2',
        virtualSizeBytes,
        options: new Map([['cluster_size', String(clusterBytes)]]),
        backing: base === null ? null : { filename: base, format: 'qcow2' },
        withoutOpeningBacking: true,
      },
      { registry, locks: noLocks, secrets, backingDirectories: [directory] },
    );
    return path;
  };
  const base = await make('base', null);
  const root = await graph.open({ path: base, format: 'qcow2', readOnly: false });
  const content = new Uint8Array(BASE_WRITE_BYTES).fill(1);
  for (let at = 0; at < virtualSizeBytes; at += content.length)
    await root.write(guestOffset(at), content);
  await graph.close(root);
  return { overlay: await make('overlay', base), plain: await make('plain', null) };
};

interface Stage {
  readonly writes: RehearsedWrites;
  /** Of writes that were answered, and have not failed. */
  readonly writtenBytes: () => number;
}

/** Where answers go. Never closed: an answer that came late would else be written to whatever file has got its number. */
let nowhere: number | null = null;

/** A session that no kernel knows. */
const withSession = async <T>(
  directory: Catalog,
  run: (stage: Stage) => Promise<T>,
): Promise<T> => {
  nowhere ??= openSync('/dev/null', 'r+');
  let end = (): void => undefined;
  const over = new Promise<void>((resolve) => {
    end = resolve;
  });
  let setup: WorkerSetup | undefined;
  const session = new KernelSession({
    directory,
    mountpoint: 'rehearsal',
    readOnly: false,
    allowOther: false,
    threads: 1,
    measure: false,
    log: silentLog,
    descriptor: nowhere,
    init: { minor: 0, flags: 0, flags2: 0, maxWriteBytes: SLOT_PAYLOAD_BYTES },
    generation: 0,
    tableBytes: TABLE_BYTES,
    tasks: null,
    passthrough: { inherited: [], changed: () => undefined },
    inPlaceOfThreads: {
      runWorkers: ([given]) => {
        setup = given;
        return over;
      },
      notifications: {
        nameChanged: () => undefined,
        contentChanged: async () => undefined,
        close: async () => undefined,
      },
    },
  });
  try {
    const writes = new RehearsedWrites(present(setup, 'a session starts a worker'));
    return await run({ writes, writtenBytes: () => session.counters().writtenBytes });
  } finally {
    end();
    await session.ended;
  }
};

interface Play extends RehearsalRound {
  readonly clusterBytes: number;
  readonly nodes: { readonly overlay: number; readonly plain: number };
}

/** Half of each cluster of the overlay, in no order, and stretches of the other image in order. Errors: EIO for a write that is not answered. */
const play = async ({ writes, writtenBytes }: Stage, scene: Play): Promise<number> => {
  const { clusterBytes, nodes, turn, isOver } = scene;
  const stretchBytes = STRETCH_CLUSTERS * clusterBytes;
  let sent = 0;
  let sentBytes = 0;
  const send = (write: RehearsedWrite): void => {
    assert(writes.send(write), 'what was handed over before is answered');
    sent++;
    sentBytes += write.lengthBytes;
  };
  const answered = async (): Promise<void> => {
    for (const endMs = performance.now() + WRITE_PATIENCE_MS; writtenBytes() < sentBytes; ) {
      if (performance.now() > endMs)
        throw new BlockError({ kind: 'io', message: 'a rehearsed write is not answered' });
      await nextTurn();
    }
  };
  for (let index = 0; index < CLUSTERS && !isOver(); index++) {
    const cluster = (index * PRIME) % CLUSTERS;
    const half = (cluster % 2) * (clusterBytes / 2);
    const offset = cluster * clusterBytes + half;
    send({ nodeId: nodes.overlay, offset, lengthBytes: clusterBytes / 2 });
    if (index % STRETCH_CLUSTERS === 0)
      send({ nodeId: nodes.plain, offset: index * clusterBytes, lengthBytes: stretchBytes });
    if (index % WRITES_A_TURN < WRITES_A_TURN - 1) continue;
    await answered();
    await turn();
  }
  await answered();
  return sent;
};
