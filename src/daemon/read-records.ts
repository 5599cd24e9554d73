/** `--record` and `--prefetch`: one record for each view, named after it. */
import { join } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { endsWithin, GIVE_UP_MS } from '../base/bounded-wait.ts';
import type { Log } from '../base/log.ts';
import type { ControlContext, Device } from '../control/context.ts';
import { Copies } from '../job/copies.ts';
import { prefetch } from '../job/prefetch.ts';
import { loadRecord, ReadRecorder } from '../job/read-record.ts';

/** Images that are fetched for at the same time. */
const VIEWS_AT_ONCE = 4;

const recordPath = (directory: string, viewName: string): string =>
  join(directory, `${viewName}.jsonl`);

/** Records the reads of every view. */
export class ReadRecords {
  readonly #directory: string;
  readonly #log: Log;
  readonly #append: boolean;
  readonly #recorders = new Map<string, ReadRecorder>();

  /** `append`: an earlier engine of this mount has begun the records. */
  constructor(directory: string, log: Log, { append }: { readonly append: boolean }) {
    this.#directory = directory;
    this.#log = log;
    this.#append = append;
  }

  note(viewName: string, offset: number, lengthBytes: number): void {
    let recorder = this.#recorders.get(viewName);
    if (recorder === undefined) {
      recorder = new ReadRecorder(recordPath(this.#directory, viewName), this.#log, {
        append: this.#append,
      });
      this.#recorders.set(viewName, recorder);
    }
    recorder.note(offset, lengthBytes);
  }

  /** Everything noted so far is in the files, or their directory does not answer for five seconds. Never throws. */
  async close(): Promise<void> {
    const written = Promise.all([...this.#recorders.values()].map((recorder) => recorder.close()));
    if (await endsWithin(written, GIVE_UP_MS)) return;
    const outcome = 'what was read last is not recorded';
    this.#log.warning(this.#directory, `does not answer for ${GIVE_UP_MS / 1000} s: ${outcome}`);
  }
}

/** Fetches for every writable view that has a record. Never throws. */
export const prefetchAll = async (
  context: ControlContext,
  options: { readonly directory: string; readonly signal: AbortSignal; readonly log: Log },
): Promise<void> => {
  const fetches = new Copies(() => VIEWS_AT_ONCE);
  for (const device of await context.devices()) {
    if (options.signal.aborted) break;
    await fetches.begin(() => prefetchDevice(device, options));
  }
  await fetches.settled();
};

const prefetchDevice = async (
  { view, name }: Device,
  { directory, signal, log }: Parameters<typeof prefetchAll>[1],
): Promise<void> => {
  const unpin = view.pin();
  try {
    const ranges = await loadRecord(recordPath(directory, view.name));
    if (ranges === null || view.readOnly) return;
    const fetchedBytes = await prefetch(view, ranges, signal);
    log.info(name, `fetched ${fetchedBytes} bytes that were read before`);
  } catch (error) {
    const reason = error instanceof BlockError ? error : toBlockError(error);
    log.warning(name, `not all is fetched: ${reason.describe()}`);
  } finally {
    unpin();
  }
};
