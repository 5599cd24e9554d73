/**
 * A `file` protocol that keeps a log of everything that changes one file, so that a power cut at any point of it can be
 * replayed. Each operation is logged when it begins and when it ends: a flush covers what had ended before it began.
 */
import { file as hostFile } from '../../drivers/file/index.ts';
import { present } from '../../src/base/assert.ts';
import type { DriverDescriptor, DriverInstance } from '../../src/block/driver.ts';

export type Change =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Uint8Array }
  /** Reads as zeros afterwards; grows the file where it reaches past the end. */
  | { readonly kind: 'zero'; readonly offset: number; readonly lengthBytes: number }
  | { readonly kind: 'resize'; readonly lengthBytes: number };

export interface LoggedChange {
  readonly change: Change;
  /** Positions in the log: the number of events before it. */
  readonly begun: number;
  ended: number;
}

export interface LoggedFlush {
  readonly begun: number;
  ended: number;
}

/** What has not ended yet. */
export const NEVER = Number.POSITIVE_INFINITY;

export class FileLog {
  readonly changes: LoggedChange[] = [];
  readonly flushes: LoggedFlush[] = [];
  readonly #clock: { events: number };

  /** Files with one clock are cut at the same moment. */
  constructor(clock: { events: number } = { events: 0 }) {
    this.#clock = clock;
  }

  get events(): number {
    return this.#clock.events;
  }

  set events(events: number) {
    this.#clock.events = events;
  }

  /** The moment of an answer to a guest: what it asks for next is later, also when that comes to no file at all. */
  answer(): number {
    return this.events++;
  }

  async change<T>(change: Change, run: () => Promise<T>): Promise<T> {
    const logged: LoggedChange = { change, begun: this.events++, ended: NEVER };
    this.changes.push(logged);
    const result = await run();
    logged.ended = this.events++;
    return result;
  }

  /** One that begins and ends in the same turn; not logged when `run` says that nothing was done. */
  changeAtOnce(change: Change, run: () => boolean): boolean {
    if (!run()) return false;
    this.changes.push({ change, begun: this.events++, ended: this.events++ });
    return true;
  }

  async flush(run: () => Promise<void>): Promise<void> {
    const logged: LoggedFlush = { begun: this.events++, ended: NEVER };
    this.flushes.push(logged);
    await run();
    logged.ended = this.events++;
  }
}

export interface RecordingOptions {
  /** The file that is recorded; others go through as they are. */
  readonly path: string;
  readonly log: FileLog;
  /** Flushes that are answered and not done, to see that the replayer notices. */
  readonly dropsFlush?: (index: number) => boolean;
}

/** `below`: what opens the file, another recorder perhaps. */
export const recordingFile = (
  options: RecordingOptions,
  below: DriverDescriptor = hostFile,
): DriverDescriptor => ({
  ...below,
  openPath: async (request) => {
    const instance = present(await below.openPath?.(request), 'the file driver opens paths');
    return request.path === options.path ? recording(instance, options) : instance;
  },
});

const recording = (inner: DriverInstance, options: RecordingOptions): DriverInstance => {
  const { log, dropsFlush } = options;
  const has = <T>(method: T | undefined): T => present(method, 'the file driver has every method');
  const zero = (offset: number, lengthBytes: number, run: () => Promise<void>): Promise<void> =>
    log.change({ kind: 'zero', offset, lengthBytes }, run);
  return {
    clusterBytes: inner.clusterBytes,
    backingLink: null,
    growsOnWrite: true,
    get lengthBytes() {
      return inner.lengthBytes;
    },
    mapping: (offset, length) => inner.mapping(offset, length),
    read: (offset, buffer) => has(inner.read).call(inner, offset, buffer),
    get worksAtOnce() {
      return inner.worksAtOnce === true;
    },
    readAtOnce: (offset, buffer) => inner.readAtOnce?.(offset, buffer) === true,
    writeAtOnce: (offset, buffer) =>
      log.changeAtOnce(
        { kind: 'write', offset, bytes: Uint8Array.from(buffer) },
        () => inner.writeAtOnce?.(offset, buffer) === true,
      ),
    stores: (offset, length) => has(inner.stores).call(inner, offset, length),
    write: (offset, buffer) =>
      log.change({ kind: 'write', offset, bytes: Uint8Array.from(buffer) }, () =>
        has(inner.write).call(inner, offset, buffer),
      ),
    writeZeroes: (offset, length, how) =>
      zero(offset, length, () => has(inner.writeZeroes).call(inner, offset, length, how)),
    discard: (offset, length) =>
      zero(offset, length, () => has(inner.discard).call(inner, offset, length)),
    allocate: (offset, length) => has(inner.allocate).call(inner, offset, length),
    resize: (lengthBytes) =>
      log.change({ kind: 'resize', lengthBytes }, () => has(inner.resize).call(inner, lengthBytes)),
    flush: async () => {
      if (dropsFlush?.(log.flushes.length) === true) {
        log.events++;
        return;
      }
      await log.flush(() => inner.flush());
    },
    allocatedBytes: () => inner.allocatedBytes(),
    close: () => inner.close(),
  };
};
