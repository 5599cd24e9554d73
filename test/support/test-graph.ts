/** Graphs for tests: all drivers, any directory, no locks; with a `file` driver of the test's own where it wants one. */
import { drivers } from '../../drivers/index.ts';
import { type Log, silentLog } from '../../src/base/log.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import { Graph } from '../../src/block/graph.ts';
import { noLocks } from '../../src/block/image-locks.ts';
import { openGate } from '../../src/block/open-gate.ts';
import { DriverRegistry } from '../../src/block/registry.ts';
import type { RestartJournal } from '../../src/block/restart-journal.ts';
import { createJournalFactory } from '../../src/block/restart-journal-file.ts';
import { type SecretSource, Secrets } from '../../src/block/secrets.ts';

export interface TestGraphOptions {
  /** Everything that headers name lies below it. */
  readonly directory: string;
  /** Takes the place of the `file` protocol. */
  readonly file?: DriverDescriptor;
  /** Formats beside ours. */
  readonly formats?: readonly DriverDescriptor[];
  readonly journalDirectory?: string;
  /** Of the locks of images; see `ImageLock`. */
  readonly tenure?: string | null;
  /** Stands between the drivers and their journals. */
  readonly journal?: (made: RestartJournal) => RestartJournal;
  readonly cacheBytes?: number;
  readonly discard?: 'unmap' | 'ignore';
  readonly copyOnRead?: boolean;
  readonly growsHereAlone?: boolean;
  readonly secrets?: readonly SecretSource[];
  readonly log?: Log;
}

export const testGraph = async (options: TestGraphOptions): Promise<Graph> => {
  const { directory, file, journalDirectory, log = silentLog, journal = (made) => made } = options;
  const { tenure = null } = options;
  const used = drivers.map((d) => (file !== undefined && d.name === 'file' ? file : d));
  const journals =
    journalDirectory === undefined
      ? null
      : createJournalFactory({ directory: journalDirectory, log });
  return new Graph({
    registry: new DriverRegistry([...used, ...(options.formats ?? [])]),
    gate: await openGate([directory]),
    locks: noLocks,
    log,
    cache: 'writeback',
    cacheBytes: options.cacheBytes ?? 256 << 10,
    discard: options.discard ?? 'unmap',
    copyOnRead: options.copyOnRead ?? false,
    growsHereAlone: options.growsHereAlone ?? false,
    secrets: new Secrets(options.secrets ?? [], { keep: false }),
    journalFor: journals === null ? null : async (of) => journal(await journals(of, { tenure })),
  });
};
