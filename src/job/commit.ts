/**
 * Commit of layers that are only read: what the layers from a top down to above a base have goes into the base, and the overlay
 * above the top is put on the base. Guests see the same all along: what is written to the base lies below a layer that has it.
 *
 * Begun anew, it copies all of it again, to the same end. The header of the overlay is changed last, when the base is durable.
 */
import { BlockError } from '../base/block-error.ts';
import { alignDown } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { BackingLink } from '../block/image-description.ts';
import { layerRunOf, writeSparsely } from '../block/layers.ts';
import type { Node } from '../block/node.ts';
import type { View } from '../block/view.ts';
import { Copies } from './copies.ts';
import { CopyBuffers } from './copy-buffers.ts';
import { CopyFailures } from './copy-failures.ts';
import type { ErrorPolicy } from './error-policy.ts';
import type { JobControl, JobWork } from './job-work.ts';

const COPY_BYTES = 1 << 20;
const COPIES_AT_ONCE = 6;
/** With a speed limit, pieces are as small as a tenth of a second allows. */
const PIECES_PER_SECOND = 10;
/** Zeros need no buffer. */
const ZERO_BYTES = 1 << 30;

export interface CommitOptions {
  readonly view: View;
  /** The layer above the top, open for writing: perhaps the view's root. */
  readonly overlay: Node;
  /** From the top down to above the base. */
  readonly layers: readonly Node[];
  /** Open for writing. */
  readonly base: Node;
  /** How the overlay's header names the base. */
  readonly link: BackingLink;
  readonly onError: ErrorPolicy;
  /** Opens the chain of the view as others have it; in a drained section. */
  readonly reopen: () => Promise<void>;
  /** Called once, when the chain is open as others have it. */
  readonly ended: () => Promise<void>;
}

interface Piece {
  readonly start: number;
  readonly lengthBytes: number;
  readonly from: Node | 'zero';
}

interface Scene {
  readonly control: JobControl;
  readonly buffers: CopyBuffers;
}

export class Commit implements JobWork {
  readonly #options: CommitOptions;
  readonly #failures: CopyFailures;
  #doneBytes = 0;
  #endBytes = 0;
  #isReopened = false;

  constructor(options: CommitOptions) {
    this.#options = options;
    this.#failures = new CopyFailures(options.onError);
  }

  async run(control: JobControl): Promise<void> {
    const { view, base } = this.#options;
    await this.#growBase();
    control.progress(0, this.#endBytes);
    const buffers = new CopyBuffers(control.copyMemory, COPY_BYTES);
    const copies = new Copies(() => Math.min(COPIES_AT_ONCE, buffers.copiesAtOnce));
    try {
      for (let at = 0; at < this.#endBytes; ) {
        await control.pausePoint();
        const { piece, lengthBytes } = await this.#next(control, at);
        at += lengthBytes;
        if (piece === null) this.#done(control, lengthBytes);
        else {
          await control.throttle(piece.from === 'zero' ? 0 : lengthBytes);
          await copies.begin(() => this.#copy({ control, buffers }, piece));
        }
      }
      await copies.finish();
    } finally {
      await copies.settled();
    }
    this.#failures.throwIgnored();
    await view.withRoot(() => base.flush());
    control.progress(this.#endBytes, this.#endBytes);
  }

  async prepare(): Promise<void> {
    const { view, overlay, link } = this.#options;
    await view.drained(async () => {
      await this.#zeroGrowth();
      await overlay.changeBacking(link);
      // The header says so from here on. What keeps the chain from being opened now is met by the next request, which tries again.
      await this.#reopen().catch(ignoreFailure);
    });
  }

  async clean(): Promise<void> {
    const { view, ended } = this.#options;
    try {
      if (!this.#isReopened) await view.drained(() => this.#reopen());
    } finally {
      await ended();
    }
  }

  /** What the overlay has gained since `run`: the base may be longer than the layer that hides its end now. */
  async #zeroGrowth(): Promise<void> {
    const { overlay, base } = this.#options;
    const end = Math.min(base.lengthBytes, overlay.lengthBytes);
    if (end <= this.#endBytes) return;
    const gainedBytes = end - this.#endBytes;
    await base.writeZeroes(guestOffset(this.#endBytes), gainedBytes, { unmap: true });
    await base.flush();
  }

  async #reopen(): Promise<void> {
    // Tried once: when it fails, the view opens what it can at the next request.
    this.#isReopened = true;
    await this.#options.reopen();
  }

  /**
   * The base gets as long as the top. One that is longer showed nothing past the end of a layer above it, and is not to
   * show it afterwards.
   */
  async #growBase(): Promise<void> {
    const { view, overlay, layers, base } = this.#options;
    const [top] = layers;
    const topBytes = top?.lengthBytes ?? 0;
    if (base.lengthBytes < topBytes) await view.drained(() => base.resize(topBytes));
    this.#endBytes = Math.max(topBytes, Math.min(base.lengthBytes, overlay.lengthBytes));
  }

  /** What comes next. Metadata that cannot be read is a failed read. */
  async #next(
    control: JobControl,
    at: number,
  ): Promise<{ readonly lengthBytes: number; readonly piece: Piece | null }> {
    const { view, layers, base } = this.#options;
    for (;;) {
      try {
        const run = await view.withRoot(() => layerRunOf(layers, at, this.#endBytes - at));
        if (run.from === null) return { lengthBytes: run.lengthBytes, piece: null };
        const most = run.from === 'zero' ? ZERO_BYTES : copyBytes(control.speed);
        const lengthBytes = Math.min(run.lengthBytes, most);
        return { lengthBytes, piece: { start: at, lengthBytes, from: run.from } };
      } catch (error) {
        if (await this.#failures.goesOn(control, error, 'read')) continue;
        const lengthBytes = Math.min(base.driver.clusterBytes, this.#endBytes - at);
        return { lengthBytes, piece: null };
      }
    }
  }

  async #copy({ control, buffers }: Scene, { start, lengthBytes, from }: Piece): Promise<void> {
    const { view, base } = this.#options;
    const at = guestOffset(start);
    for (;;) {
      let operation: 'read' | 'write' = 'write';
      try {
        await view.withRoot(async () => {
          if (from === 'zero') {
            await base.writeZeroes(at, lengthBytes, { unmap: true });
            return;
          }
          operation = 'read';
          await buffers.with(lengthBytes, async (bytes) => {
            await from.read(at, bytes);
            operation = 'write';
            await writeSparsely(base, start, bytes);
          });
        });
        break;
      } catch (error) {
        if (!(await this.#failures.goesOn(control, error, operation))) break;
      }
    }
    this.#done(control, lengthBytes);
  }

  #done(control: JobControl, lengthBytes: number): void {
    this.#doneBytes += lengthBytes;
    control.progress(this.#doneBytes, this.#endBytes);
  }
}

const ignoreFailure = (error: unknown): void => {
  if (!(error instanceof BlockError)) throw error;
};

const copyBytes = (speed: number): number =>
  speed === 0
    ? COPY_BYTES
    : Math.max(512, alignDown(Math.min(COPY_BYTES, speed / PIECES_PER_SECOND), 512));
