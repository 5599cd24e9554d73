/**
 * A rehearsal: an engine that has just started serves some thousand writes that nobody has sent, to scratch images of its own
 * (rehearsal-round.ts), while it has nothing else to do. V8 makes machine code of what has run some hundred times, and a guest that writes at
 * once would wait for that in its first second (figures in ARCHITECTURE.md).
 *
 * It gives way: to requests, to jobs, to other engines that rehearse, and it ends after a while, as far as it has come. An error that
 * it is told of is nobody's loss.
 */
import { mkdir, realpath, rm, statfs } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { endsWithin } from '../base/bounded-wait.ts';
import type { Log } from '../base/log.ts';
import { isLocalFileSystem } from '../os/local-file-systems.ts';
import { rehearsalDirectory, takePlace } from './rehearsal-place.ts';
import { type Pace, rehearseRound } from './rehearsal-round.ts';

/** Each makes all objects anew, with other sizes: code that has seen one of them is made for that one alone. */
const ROUNDS = 4;
/** With less space left there is no round, which needs a tenth of it. */
const LEAST_FREE_BYTES = 256 << 20;
/** For the place, which another engine has. */
const PLACE_PATIENCE_MS = 5000;
const PLACE_POLL_MS = 100;
/** From its first write on: on a machine that is busy, others need the core more. */
const MOST_MS = 3000;
/** After a request of somebody's, or while a job works; twice as long where that goes on, and half as long where it does not. */
const FIRST_REST_MS = 10;
const LAST_REST_MS = 160;
/** What is left of one that does not end the supervisor removes. */
const END_PATIENCE_MS = 1000;

export interface RehearsalScene {
  readonly runtimeDirectory: string;
  readonly mountpoint: string;
  /** Changes with each request of the mount. */
  readonly demand: () => number;
  /** Jobs work. */
  readonly isBusy: () => boolean;
  readonly log: Log;
}

export interface Rehearsal {
  /** Ends it, and waits a second at most until nothing of it is left. Never rejects. */
  end(): Promise<void>;
}

/** Goes on by itself. */
export const beginRehearsal = (scene: RehearsalScene): Rehearsal => {
  const { mountpoint, log } = scene;
  const ending = new AbortController();
  const begunMs = performance.now();
  const ended = rehearse(scene, ending.signal).then(
    (writes) => {
      const text = `rehearsed ${writes} writes in ${Math.round(performance.now() - begunMs)} ms`;
      log.debug(mountpoint, text);
    },
    (error: unknown) => log.debug(mountpoint, `no rehearsal: ${toBlockError(error).describe()}`),
  );
  return {
    end: async () => {
      ending.abort();
      await endsWithin(ended, END_PATIENCE_MS);
    },
  };
};

/** How many writes were served. Errors: EBUSY, ENOSPC, those of the host. */
const rehearse = async (scene: RehearsalScene, signal: AbortSignal): Promise<number> => {
  const { runtimeDirectory } = scene;
  const leave = await place(runtimeDirectory, signal);
  const directory = rehearsalDirectory(runtimeDirectory);
  try {
    const pace = paceOf(scene, signal);
    let writes = 0;
    for (let round = 0; round < ROUNDS && !pace.isOver; round++) {
      await pace.turn();
      if (pace.isOver) break;
      await rm(directory, { recursive: true, force: true });
      await refuseWithoutSpace(runtimeDirectory);
      await mkdir(directory, { mode: 0o700 });
      writes += (await rehearseRound({ directory: await realpath(directory), round, pace })).writes;
    }
    return writes;
  } finally {
    try {
      await rm(directory, { recursive: true, force: true });
    } finally {
      leave();
    }
  }
};

/** Waits for engines that rehearse already. Errors: EBUSY. */
const place = async (runtimeDirectory: string, signal: AbortSignal): Promise<() => void> => {
  for (let waitedMs = 0; waitedMs < PLACE_PATIENCE_MS; waitedMs += PLACE_POLL_MS) {
    const leave = takePlace(runtimeDirectory);
    if (leave !== null) return leave;
    if (signal.aborted) break;
    await pause(PLACE_POLL_MS, signal);
  }
  throw new BlockError({ kind: 'busy', message: 'other engines rehearse', path: runtimeDirectory });
};

/** Also ends when the signal is aborted. */
const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  sleep(ms, undefined, { signal }).catch(() => undefined);

const refuseWithoutSpace = async (path: string): Promise<void> => {
  const { type, bavail, bsize } = await statfs(path);
  if (isLocalFileSystem(type) && bavail * bsize >= LEAST_FREE_BYTES) return;
  const message = `there is no local file system with ${LEAST_FREE_BYTES} bytes free`;
  throw new BlockError({ kind: 'no-space', message, path });
};

const paceOf = ({ demand, isBusy }: RehearsalScene, signal: AbortSignal): Pace => {
  const endMs = performance.now() + MOST_MS;
  const isOver = (): boolean => signal.aborted || performance.now() >= endMs;
  let seen = demand();
  let restMs = FIRST_REST_MS;
  return {
    get isOver() {
      return isOver();
    },
    turn: async () => {
      const isWanted = (): boolean => demand() !== seen || isBusy();
      while (isWanted() && !isOver()) {
        seen = demand();
        await pause(restMs, signal);
        restMs = isWanted()
          ? Math.min(2 * restMs, LAST_REST_MS)
          : Math.max(restMs / 2, FIRST_REST_MS);
      }
    },
  };
};
