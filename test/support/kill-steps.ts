/**
 * What a process that is killed leaves of an image: the file as the host has it at each step (before and after each change
 * and flush), and the restart journal beside it.
 */
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { prefixesOf, type RecordedFile } from './power-cut.ts';
import { type Change, FileLog } from './recording-file.ts';

/** What a kill leaves beside the image's file: the journal's files. */
interface Step {
  /** Changes of the image's files that have been made. */
  readonly changes: number;
  readonly events: number;
  readonly journal: ReadonlyMap<string, Buffer>;
}

/** Keeps the journal as it is at each step of the image's files. */
export class KillSteps {
  readonly kept: Step[] = [];
  readonly clock = { events: 0 };
  readonly journals: string;
  #begun = 0;
  #ended = 0;

  constructor(journals: string) {
    this.journals = journals;
  }

  async around<T>(isChange: boolean, run: () => Promise<T>): Promise<T> {
    this.#keep();
    if (isChange) this.#begun++;
    const result = await run();
    if (isChange) this.#ended++;
    this.#keep();
    return result;
  }

  changeAtOnce(run: () => boolean): boolean {
    this.#keep();
    const isDone = run();
    if (!isDone) return false;
    this.#begun++;
    this.#ended++;
    this.#keep();
    return true;
  }

  // Only when nothing is in flight: of what is, the host may have any part.
  #keep(): void {
    if (this.#ended !== this.#begun) return;
    const names = readdirSync(this.journals);
    const journal = new Map(names.map((n) => [n, readFileSync(join(this.journals, n))] as const));
    // An event of its own: what is answered after it is not answered by then.
    this.kept.push({ changes: this.#ended, events: this.clock.events++, journal });
  }
}

/** Of one of the files. */
export class SteppedLog extends FileLog {
  readonly #steps: KillSteps;

  constructor(steps: KillSteps) {
    super(steps.clock);
    this.#steps = steps;
  }

  override change<T>(change: Change, run: () => Promise<T>): Promise<T> {
    return this.#steps.around(true, () => super.change(change, run));
  }

  override changeAtOnce(change: Change, run: () => boolean): boolean {
    return this.#steps.changeAtOnce(() => super.changeAtOnce(change, run));
  }

  override flush(run: () => Promise<void>): Promise<void> {
    return this.#steps.around(false, () => super.flush(run));
  }
}

/** One kill after the other: the files at `paths` and the journals are as it leaves them while the caller has its event. */
export function* filesAfterKills(
  steps: KillSteps,
  paths: readonly string[],
  files: readonly RecordedFile[],
): Generator<{ readonly events: number }> {
  const prefixes = prefixesOf(files);
  let images: readonly Uint8Array[] = files.map(({ start }) => start);
  let made = 0;
  for (const { changes, events, journal } of steps.kept) {
    for (; made < changes; made++) images = prefixes.next().value?.images ?? images;
    // In the same files: the journal knows the image by what the host calls it.
    for (const [i, at] of paths.entries()) writeFileSync(at, images[i] ?? '');
    for (const name of readdirSync(steps.journals)) rmSync(join(steps.journals, name));
    for (const [name, bytes] of journal) writeFileSync(join(steps.journals, name), bytes);
    yield { events };
  }
}
