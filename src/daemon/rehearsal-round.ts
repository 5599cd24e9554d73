/**
 * One round of a rehearsal (rehearsal.ts). All of it is the real thing, but for the kernel, whose place `RehearsedWrites` takes: session,
 * translation table, catalog, graph, drivers and journals. It touches no image of anybody's, takes no locks, and has nothing flushed: what it
 * writes is removed before a disk would see it.
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { drivers } from '../../drivers/index.ts';
import { sourceGate } from '../../mount/catalog/source-gate.ts';
import { openCatalog } from '../../mount/catalog.ts';
import {
  type RehearsedSession,
  startRehearsedSession,
} from '../../mount/kernel/rehearsed-session.ts';
import type { RehearsedWrite, RehearsedWrites } from '../../mount/kernel/rehearsed-writes.ts';
import { assert, present } from '../base/assert.ts';
import { BlockError } from '../base/block-error.ts';
import { silentLog } from '../base/log.ts';
import { guestOffset } from '../base/units.ts';
import { Graph } from '../block/graph.ts';
import { noLocks } from '../block/image-locks.ts';
import { DriverRegistry } from '../block/registry.ts';
import { createJournalFactory } from '../block/restart-journal-file.ts';
import { Secrets } from '../block/secrets.ts';
import { createImage } from '../image/create.ts';

/** Of each image; a write of half a cluster copies the other half. */
const CLUSTERS = 1024;
const SMALLEST_CLUSTER_BYTES = 4096;
/** After so many of these writes comes one of so many clusters, to an image without a base, until that is full. */
const STRETCH_CLUSTERS = 16;
/** So many writes are handed over before the engine looks at what else there is to do. */
const WRITES_A_TURN = 4;
/** Has no divisor in common with CLUSTERS: its multiples reach each of them. */
const PRIME = 787;
/** The base is filled in such parts. */
const BASE_WRITE_BYTES = 64 << 10;
const TABLE_BYTES = 256 << 10;
const SLOT_PAYLOAD_BYTES = 256 << 10;
/** Of the event loop, before a write that takes longer is waited for by the clock. */
const QUICK_TURNS = 50;
/** A write that takes longer hangs. */
const WRITE_PATIENCE_MS = 2000;

/** Between some steps and the next. */
export interface Pace {
  /** It is time to end. */
  readonly isOver: boolean;
  /** Resolves when nobody wants anything else of this engine, or it is time to end. */
  turn(): Promise<void>;
}

export interface RehearsalRound {
  /** Empty, its real path. The round leaves its images there. */
  readonly directory: string;
  readonly round: number;
  readonly pace: Pace;
}

export interface Rehearsed {
  readonly writes: number;
  /** Of them, those with which the page came along that they copy. */
  readonly pages: number;
}

const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Resolves when all is served and closed. Errors: those of the host; EIO for a write that has failed or hangs. */
export const rehearseRound = async (scene: RehearsalRound): Promise<Rehearsed> => {
  const { directory, round } = scene;
  const clusterBytes = SMALLEST_CLUSTER_BYTES << (round % 2);
  const registry = new DriverRegistry(drivers);
  const { graph, gate, secrets } = await scratchGraph(directory, registry);
  const paths = await makeImages({ ...scene, clusterBytes, registry, secrets, graph });
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
    const stage = startRehearsedSession({
      directory: catalog,
      tableBytes: TABLE_BYTES,
      payloadBytes: SLOT_PAYLOAD_BYTES,
    });
    try {
      return await play(stage, { ...scene, clusterBytes, nodes });
    } finally {
      await stage.end();
    }
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
  readonly pace: Pace;
  readonly clusterBytes: number;
  readonly registry: DriverRegistry;
  readonly secrets: Secrets;
  readonly graph: Graph;
}): Promise<{ readonly overlay: string; readonly plain: string }> => {
  const { directory, pace, clusterBytes, registry, secrets, graph } = scene;
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
      { registry, locks: noLocks, secrets, backingDirectories: [directory], cache: 'unsafe' },
    );
    return path;
  };
  const base = await make('base', null);
  const root = await graph.open({ path: base, format: 'qcow2', readOnly: false });
  const content = new Uint8Array(BASE_WRITE_BYTES).fill(1);
  for (let at = 0; at < virtualSizeBytes && !pace.isOver; at += content.length) {
    await root.write(guestOffset(at), content);
    await pace.turn();
  }
  await graph.close(root);
  return { overlay: await make('overlay', base), plain: await make('plain', null) };
};

interface Play extends RehearsalRound {
  readonly clusterBytes: number;
  readonly nodes: { readonly overlay: number; readonly plain: number };
}

/** Half of each cluster of the overlay, in no order, and stretches of the other image in order. */
const play = async ({ writes, session }: RehearsedSession, scene: Play): Promise<Rehearsed> => {
  const { clusterBytes, nodes, pace } = scene;
  const stretchBytes = STRETCH_CLUSTERS * clusterBytes;
  let sent = 0;
  let sentBytes = 0;
  const send = (write: RehearsedWrite): void => {
    assert(writes.send(write), 'what was handed over before is answered');
    sent++;
    sentBytes += write.lengthBytes;
  };
  const answered = async (): Promise<void> => {
    await untilAnswered(writes);
    if (session.counters().writtenBytes < sentBytes) throw failed('has failed');
  };
  for (let index = 0; index < CLUSTERS && !pace.isOver; index++) {
    const cluster = (index * PRIME) % CLUSTERS;
    const half = (cluster % 2) * (clusterBytes / 2);
    const offset = cluster * clusterBytes + half;
    send({ nodeId: nodes.overlay, offset, lengthBytes: clusterBytes / 2 });
    if (index % STRETCH_CLUSTERS === 0)
      send({ nodeId: nodes.plain, offset: index * clusterBytes, lengthBytes: stretchBytes });
    if (index % WRITES_A_TURN < WRITES_A_TURN - 1) continue;
    await answered();
    await pace.turn();
  }
  await answered();
  return { writes: sent, pages: writes.pagesRead };
};

const untilAnswered = async (writes: RehearsedWrites): Promise<void> => {
  for (let turns = 0; !writes.areAnswered; turns++) {
    if (turns < QUICK_TURNS) await nextTurn();
    else if (turns < QUICK_TURNS + WRITE_PATIENCE_MS) await sleep(1);
    else throw failed('hangs');
  }
};

const failed = (how: string): BlockError =>
  new BlockError({ kind: 'io', message: `a rehearsed write ${how}` });
