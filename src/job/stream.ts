/**
 * Stream: copies what is allocated in the layers between an image and a base into the image, then drops these layers.
 * Without a base, all of its chain.
 *
 * What was copied stays copied: a stream that was ended begins anew with what is still missing. The guest's writes win
 * (`Node.populate`), and its reads never wait for a copy. The backing link is changed last, when everything is durable.
 */
import { basename, dirname } from 'node:path';
import { alignDown, alignUp, isAllZero } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { BackingLink } from '../block/image-description.ts';
import type { Node } from '../block/node.ts';
import type { View } from '../block/view.ts';
import { Copies } from './copies.ts';
import { CopyBuffers } from './copy-buffers.ts';
import { CopyFailures } from './copy-failures.ts';
import { DirectCopy } from './direct-copy.ts';
import type { ErrorPolicy } from './error-policy.ts';
import type { JobControl, JobWork } from './job-work.ts';
import { LEAST_PIECE_BYTES, MOST_PIECE_BYTES, PieceSize } from './piece-size.ts';

const COPY_BYTES = LEAST_PIECE_BYTES;
/** As many as there are connections to a web server. */
const COPIES_AT_ONCE = 8;
/** It keeps a core busy: another would make guests wait (p99 of their reads 0.5 of that beside a stream of QEMU, with one 0.26). */
const DIRECT_COPIES_AT_ONCE = 1;
/** With a speed limit, pieces are as small as a tenth of a second allows. */
const PIECES_PER_SECOND = 10;

export interface StreamOptions {
  readonly view: View;
  /** The view's root, which no other job changes meanwhile. */
  readonly root: Node;
  /** A layer of its chain, which stays; null for none. */
  readonly base: Node | null;
  /** What the header shall say instead of the base's own path; null for that. */
  readonly backingFile: string | null;
  readonly onError: ErrorPolicy;
  /** See `Graph.replaceBacking`. */
  readonly replaceBacking: (overlay: Node, base: Node | null) => Promise<void>;
  /** Called once, whatever came of it. */
  readonly ended: (outcome: { readonly chainChanged: boolean }) => Promise<void>;
}

/** What comes next from an offset on. */
interface Piece {
  readonly lengthBytes: number;
  readonly what: 'skip' | 'copy' | 'zero';
}

interface Scene {
  readonly control: JobControl;
  readonly buffers: CopyBuffers;
}

export class Stream implements JobWork {
  readonly #options: StreamOptions;
  readonly #failures: CopyFailures;
  #doneBytes = 0;
  #chainChanged = false;
  /** Up to here it is done. */
  #endBytes = 0;
  readonly #direct: DirectCopy;
  /** Of what comes from a server; null where nothing does. */
  readonly #remotePieces: PieceSize | null;

  constructor(options: StreamOptions) {
    this.#options = options;
    this.#failures = new CopyFailures(options.onError);
    this.#direct = new DirectCopy('populate', options.root.backing, options.root);
    this.#remotePieces = isRemote(options.root.backing) ? new PieceSize() : null;
  }

  async run(control: JobControl): Promise<void> {
    const { view, root, base } = this.#options;
    control.progress(0, root.lengthBytes);
    // Nothing lies in between.
    if (root.backing === null || root.backing === base) {
      control.progress(root.lengthBytes, root.lengthBytes);
      return;
    }
    const bufferBytes = this.#remotePieces === null ? COPY_BYTES : MOST_PIECE_BYTES;
    const buffers = new CopyBuffers(control.copyMemory, bufferBytes);
    const copies = new Copies(() => Math.min(COPIES_AT_ONCE, buffers.copiesAtOnce));
    const directCopies = new Copies(() => DIRECT_COPIES_AT_ONCE);
    try {
      for (let at = 0; at < root.lengthBytes; this.#endBytes = at) {
        await control.pausePoint();
        const piece = await this.#next(control, at);
        if (piece === null) break;
        const from = at;
        at += piece.lengthBytes;
        if (piece.what === 'skip') this.#done(control, piece.lengthBytes);
        else {
          await control.throttle(piece.what === 'copy' ? piece.lengthBytes : 0);
          const isLong = this.#remotePieces === null && piece.lengthBytes > COPY_BYTES;
          const begin = (): Promise<void> => this.#copy({ control, buffers }, from, piece);
          await (isLong ? directCopies : copies).begin(begin);
        }
      }
      await Promise.all([copies.finish(), directCopies.finish()]);
    } finally {
      await Promise.all([copies.settled(), directCopies.settled()]);
    }
    this.#failures.throwIgnored();
    await view.withRoot((now) => now.flush());
    control.progress(root.lengthBytes, root.lengthBytes);
  }

  async prepare(): Promise<void> {
    const { view, root, base, replaceBacking } = this.#options;
    if (root.backing === base) return;
    await view.drained(async () => {
      await this.#zeroGrowth();
      await root.changeBacking(this.#link());
      // The header says so from here on, whatever becomes of the graph.
      this.#chainChanged = true;
      await replaceBacking(root, base);
      root.notifyMappingChanged({ start: guestOffset(0), lengthBytes: root.lengthBytes });
    });
  }

  /** What the image has gained since `run`: the base may be longer than the layer that hides its end now. */
  async #zeroGrowth(): Promise<void> {
    const { root, base } = this.#options;
    const { clusterBytes } = root.driver;
    const end = Math.min(base?.lengthBytes ?? 0, root.lengthBytes);
    // What the guest gave up past the end of a layer in between was zeros by that alone.
    let from = this.#endBytes;
    for (let node = root.backing; node !== null && node !== base; node = node.backing) {
      from = Math.min(from, node.lengthBytes);
    }
    if (end <= from) return;
    const whole = Math.min(alignUp(from, clusterBytes), root.lengthBytes);
    // The cluster in which it ended keeps what lies before.
    const start = alignDown(from, clusterBytes);
    const bytes = Buffer.alloc(whole - start);
    await root.readForCopy(guestOffset(start), bytes);
    await root.populate(guestOffset(start), bytes.length, bytes);
    if (end > whole) await root.populate(guestOffset(whole), end - whole, null);
    await root.flush();
  }

  async clean(): Promise<void> {
    await this.#options.ended({ chainChanged: this.#chainChanged });
  }

  #link(): BackingLink | null {
    const { root, base, backingFile } = this.#options;
    if (base === null) return null;
    const isBeside = dirname(base.path) === dirname(root.path);
    const filename = backingFile ?? (isBeside ? basename(base.path) : base.path);
    return { filename, format: base.descriptor.name };
  }

  /** What is to be done from a cluster's start on; null at the end. Metadata that cannot be read is a failed read. */
  async #next(control: JobControl, at: number): Promise<Piece | null> {
    for (;;) {
      try {
        return await this.#options.view.withRoot((root) => this.#look(root, at, control.speed));
      } catch (error) {
        if (!(await this.#failures.goesOn(control, error, 'read'))) {
          return { lengthBytes: this.#options.root.driver.clusterBytes, what: 'skip' };
        }
      }
    }
  }

  async #look(root: Node, at: number, speed: number): Promise<Piece | null> {
    const { clusterBytes } = root.driver;
    const rest = root.lengthBytes - at;
    if (rest <= 0) return null;
    const m = await root.mapping(guestOffset(at), rest);
    if (m.kind !== 'unallocated') return { lengthBytes: m.lengthBytes, what: 'skip' };
    const status = await root.blockStatus(guestOffset(at), m.lengthBytes, this.#options.base);
    const what = this.#whatOf(status, at);
    const isEnd = status.lengthBytes === m.lengthBytes;
    const wanted = what === 'skip' ? m.lengthBytes : this.#wanted(at, speed, what);
    const run = Math.min(status.lengthBytes, wanted);
    if (what === 'copy') {
      return { lengthBytes: Math.min(alignUp(run, clusterBytes), m.lengthBytes), what };
    }
    const whole = isEnd && run === m.lengthBytes ? run : alignDown(run, clusterBytes);
    // Only a part of the cluster is zero, or missing below: the cluster is copied as it is read.
    if (whole === 0) return { lengthBytes: Math.min(clusterBytes, m.lengthBytes), what: 'copy' };
    return { lengthBytes: whole, what };
  }

  #wanted(at: number, speed: number, what: Piece['what']): number {
    const { clusterBytes } = this.#options.root.driver;
    const bytes = copyBytes(speed, clusterBytes, this.#remotePieces?.bytes);
    const isDirect = what === 'copy' && speed === 0 && at % clusterBytes === 0;
    return isDirect ? Math.max(bytes, alignDown(this.#direct.reachBytes(at), clusterBytes)) : bytes;
  }

  #whatOf(
    status: { readonly allocated: boolean; readonly zero: boolean },
    at: number,
  ): Piece['what'] {
    const { root, base } = this.#options;
    // Unallocated without a backing image reads as zeros.
    if (base === null) return status.zero ? 'skip' : 'copy';
    if (status.allocated) return status.zero ? 'zero' : 'copy';
    // Past the end of a layer in between it reads as zeros; the base would show there.
    for (let node = root.backing; node !== null && node !== base; node = node.backing) {
      if (at >= node.lengthBytes && at < base.lengthBytes) return 'zero';
    }
    return 'skip';
  }

  async #copy({ control, buffers }: Scene, at: number, piece: Piece): Promise<void> {
    for (;;) {
      let operation: 'read' | 'write' = 'read';
      try {
        await this.#options.view.withRoot(async (root) => {
          const length = Math.min(piece.lengthBytes, root.lengthBytes - at);
          const { backing } = root;
          if (length <= 0 || backing === null) return;
          if (piece.what === 'zero') {
            operation = 'write';
            await root.populate(guestOffset(at), length, null);
            return;
          }
          if (await this.#direct.copy(backing, root, { start: at, lengthBytes: length })) return;
          const stepBytes = this.#stepBytes(root, length);
          for (let done = 0; done < length; done += stepBytes) {
            const step = { at: at + done, lengthBytes: Math.min(stepBytes, length - done) };
            const isPart = step.lengthBytes < length;
            if (
              isPart &&
              (await this.#direct.copy(backing, root, {
                start: step.at,
                lengthBytes: step.lengthBytes,
              }))
            )
              continue;
            operation = 'read';
            await buffers.with(step.lengthBytes, async (bytes) => {
              const begunMs = performance.now();
              await backing.readClipped(guestOffset(step.at), bytes);
              this.#remotePieces?.took(bytes.length, performance.now() - begunMs);
              operation = 'write';
              const content = isAllZero(bytes) ? null : bytes;
              if (content === null && this.#options.base === null) return;
              await root.populate(guestOffset(step.at), step.lengthBytes, content);
            });
          }
        });
        break;
      } catch (error) {
        if (!(await this.#failures.goesOn(control, error, operation))) break;
      }
    }
    this.#done(control, piece.lengthBytes);
  }

  #stepBytes({ driver }: Node, lengthBytes: number): number {
    return this.#remotePieces === null ? copyBytes(0, driver.clusterBytes) : lengthBytes;
  }

  #done(control: JobControl, lengthBytes: number): void {
    this.#doneBytes += lengthBytes;
    control.progress(this.#doneBytes, this.#options.root.lengthBytes);
  }
}

/** Some layer lies on a server. */
const isRemote = (top: Node | null): boolean => {
  for (let node = top; node !== null; node = node.backing) {
    if (node.file?.driver.remote !== undefined) return true;
  }
  return false;
};

const copyBytes = (speed: number, clusterBytes: number, wanted = COPY_BYTES): number => {
  const limited = speed === 0 ? wanted : Math.min(wanted, speed / PIECES_PER_SECOND);
  return Math.max(clusterBytes, alignDown(limited, clusterBytes));
};
