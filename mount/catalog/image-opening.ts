/**
 * Opens and closes the chain of one image, and brings what is known of the image to what that has shown or changed.
 *
 * The view alone calls it: one opening at a time, none while a closing goes on, closings in drained sections. While either
 * goes on (`isUnderWay`) the file changes through us, so nobody takes it for another one.
 */
import { type BlockError, toBlockError } from '../../src/base/block-error.ts';
import type { OpenImageOptions } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import type { EntryContext } from './entry-context.ts';
import { usedElsewhere } from './entry-errors.ts';
import type { FileTimes } from './file-times.ts';
import type { ImageKnowledge } from './image-knowledge.ts';
import type { ImageLooks } from './image-looks.ts';
import { differsFrom } from './remote-files.ts';
import type { ShownState } from './shown-state.ts';
import type { WriteAccess } from './write-access.ts';

/** The image's entry, as it is when it is asked. */
interface OpenedImage {
  readonly nodeId: number;
  readonly name: string;
  readonly gone: boolean;
  /** When the last request or handle ended; `performance.now()`. */
  idleSinceMs: number;
  /** Why it is not served although it may be sound. */
  readonly refusal: BlockError | null;
  readonly isInactive: boolean;
  /** Kernels were told the opposite of what is true now. */
  readonly mustBeReplaced: boolean;
  /** Says in the log, once, why the image cannot be opened. */
  report(error: BlockError): void;
}

export class ImageOpening {
  readonly #context: EntryContext;
  readonly #image: OpenedImage;
  readonly #knowledge: ImageKnowledge;
  readonly #times: FileTimes;
  readonly #access: WriteAccess;
  readonly #looks: ImageLooks;
  readonly #shown: ShownState;
  /** Closings that go on: until their end the file changes through us. */
  #closings = 0;
  /** The same of openings, once the file is found to be the one that was looked at. */
  #openings = 0;

  constructor(of: {
    readonly context: EntryContext;
    readonly image: OpenedImage;
    readonly knowledge: ImageKnowledge;
    readonly times: FileTimes;
    readonly access: WriteAccess;
    readonly looks: ImageLooks;
    readonly shown: ShownState;
  }) {
    this.#context = of.context;
    this.#image = of.image;
    this.#knowledge = of.knowledge;
    this.#times = of.times;
    this.#access = of.access;
    this.#looks = of.looks;
    this.#shown = of.shown;
  }

  /** The chain is being opened (what a journal holds is brought to it) or closed. */
  get isUnderWay(): boolean {
    return this.#openings > 0 || this.#closings > 0;
  }

  /**
   * For the view. For writing when the image may be written, and read-only when it turns out then that it does not open so. Errors:
   * why it is not served; EBUSY while another host may use it, or its backing image is written; ESTALE when the file is another one,
   * or kernels were told that it is broken; those of locks and of the graph.
   */
  async open(): Promise<Node> {
    const { refusal, nodeId, name } = this.#image;
    if (refusal !== null) throw refusal;
    if (this.#image.isInactive && !this.#image.gone) {
      throw usedElsewhere(this.#knowledge.host.path);
    }
    const end = this.#context.begin({ id: `open ${nodeId}`, nodeId, path: null, name });
    try {
      return await this.#openChain();
    } finally {
      end();
    }
  }

  /** For the view, drained. The locks stay. Errors: those of the last flush. */
  async close(root: Node): Promise<void> {
    const virtualSizeBytes = root.lengthBytes;
    const isCorrupt = root.driver.isMarkedCorrupt === true;
    this.#closings++;
    try {
      await this.#context.graph.close(root);
    } finally {
      this.#access.closed({ isCorrupt });
      this.#knowledge.closed({ virtualSizeBytes, isCorrupt });
      await this.#giveModifyTime();
      await this.#knowledge.adoptOwnChanges();
      this.#closings--;
    }
  }

  async #openChain(): Promise<Node> {
    const image = this.#image;
    const access = this.#access;
    let opening = 0;
    try {
      await this.#looks.lookAgain();
      opening = 1;
      this.#openings++;
      for (;;) {
        const reason = access.readOnlyReason;
        const { path } = this.#knowledge.host;
        const format = this.#knowledge.inspection.declaredFormat;
        const root = await this.#openFor({ path, format, readOnly: reason !== null });
        if (root === null) continue;
        this.#knowledge.opened();
        image.idleSinceMs = performance.now();
        if (differsFrom(this.#knowledge.inspection, root)) this.#shown.supersede();
        if (!image.mustBeReplaced && (access.readOnlyReason === null) === (reason === null)) {
          this.#context.opened(root);
          return root;
        }
        await this.#context.graph.close(root);
        if (image.mustBeReplaced) throw this.#looks.stale();
      }
    } catch (error) {
      const failure = toBlockError(error, { op: 'open', path: this.#knowledge.host.path });
      this.#knowledge.openFailed(failure);
      if (failure.errno !== 'ESTALE') image.report(failure);
      if (image.mustBeReplaced) this.#context.outdated();
      throw failure;
    } finally {
      this.#openings -= opening;
    }
  }

  /** Null: it does not open for writing, and is to be opened read-only instead. */
  async #openFor(options: OpenImageOptions): Promise<Node | null> {
    try {
      const root = await this.#context.graph.open(options);
      if (!options.readOnly) this.#knowledge.openedForWriting();
      return root;
    } catch (error) {
      const failure = toBlockError(error, { op: 'open', path: this.#knowledge.host.path });
      // Trying to mend it, or to bring to it what a journal holds, may have changed the file.
      if (!options.readOnly) await this.#knowledge.adoptOwnChanges();
      if (options.readOnly || failure.kind !== 'read-only') throw failure;
      this.#image.report(failure);
      this.#knowledge.doesNotOpenForWriting(failure.message);
      this.#access.doesNotOpenForWriting(failure.message);
      return null;
    }
  }

  // A time that cannot be set is not worth an error: the content is there.
  async #giveModifyTime(): Promise<void> {
    const { path, identity, kind } = this.#knowledge.host;
    if (this.#image.gone || kind === 'remote') this.#times.keep(null);
    await this.#times.give(path, identity).catch((error: unknown) => {
      this.#context.log.debug(this.#image.name, toBlockError(error).describe());
    });
  }
}
