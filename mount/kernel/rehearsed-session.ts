/** A session that no kernel knows: `RehearsedWrites` take the place of its workers, and what it answers goes nowhere. */
import { openSync } from 'node:fs';
import { present } from '../../src/base/assert.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Directory } from '../directory.ts';
import { RehearsedWrites } from './rehearsed-writes.ts';
import { KernelSession } from './session.ts';
import type { WorkerSetup } from './worker-pool.ts';

export interface RehearsedSession {
  readonly session: KernelSession;
  readonly writes: RehearsedWrites;
  /** As when a mount has gone: resolves when all is answered. No writes are handed over afterwards. */
  readonly end: () => Promise<void>;
}

export interface RehearsedSessionOptions {
  readonly directory: Directory;
  /** See `KernelBackendOptions`. */
  readonly tableBytes: number;
  /** The longest write. */
  readonly payloadBytes: number;
}

/** Where answers go. Never closed: an answer that came late would else be written to whatever file has got its number. */
let nowhere: number | null = null;

/** Errors: those of opening /dev/null. */
export const startRehearsedSession = (options: RehearsedSessionOptions): RehearsedSession => {
  const { directory, tableBytes, payloadBytes } = options;
  nowhere ??= openSync('/dev/null', 'r+');
  let over = (): void => undefined;
  const isOver = new Promise<void>((resolve) => {
    over = resolve;
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
    init: { minor: 0, flags: 0, flags2: 0, maxWriteBytes: payloadBytes },
    generation: 0,
    tableBytes,
    tasks: null,
    passthrough: { inherited: [], changed: () => undefined },
    inPlaceOfThreads: {
      runWorkers: ([given]) => {
        setup = given;
        return isOver;
      },
      notifications: {
        nameChanged: () => undefined,
        contentChanged: async () => undefined,
        close: async () => undefined,
      },
    },
  });
  return {
    session,
    writes: new RehearsedWrites(present(setup, 'a session starts a worker')),
    end: () => {
      over();
      return session.ended;
    },
  };
};
