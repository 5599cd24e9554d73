/**
 * Who may write one image: the locks that the mount holds on it, and the reason why its view is read-only. What the reason
 * should be, `whyReadOnly` decides; which one is in force is owned here.
 *
 * Whether it may be written is settled (`settle`) only while no handle is open and nobody has pinned the view, so a guest or a
 * job never sees it change; a change that comes meanwhile waits for the last release. Settlings run one after another; the
 * opening and the closing of the chain, of which the view never lets two in at once, change the reasons beside them.
 */
import { type BlockError, toBlockError } from '../../src/base/block-error.ts';
import type { View } from '../../src/block/view.ts';
import type { EntryContext } from './entry-context.ts';
import { writabilityChanged } from './entry-errors.ts';
import { ImageHolds } from './image-hold.ts';
import type { ImageKnowledge } from './image-knowledge.ts';
import { CORRUPT, whyReadOnly } from './write-permission.ts';

/** The image's entry, as it is when it is asked. */
interface AccessedImage {
  readonly name: string;
  readonly view: View;
  /** Open handles. */
  readonly handles: number;
  readonly gone: boolean;
  readonly usedBy: string | null;
  readonly isOpen: boolean;
  readonly isInactive: boolean;
}

/** Made before the image's view is, so it asks for the view only later. */
export class WriteAccess {
  readonly #context: EntryContext;
  readonly #image: AccessedImage;
  readonly #knowledge: ImageKnowledge;
  readonly #hold: ImageHolds;
  /** In force; see `settle`. */
  #readOnlyReason: string | null = 'it has not been looked at yet';
  /** Takes the place of the reason in force when the open chain has been closed. */
  #nextReason: string | null;
  #settling: Promise<void> = Promise.resolve();

  constructor(of: {
    readonly context: EntryContext;
    readonly image: AccessedImage;
    readonly knowledge: ImageKnowledge;
  }) {
    this.#context = of.context;
    this.#image = of.image;
    this.#knowledge = of.knowledge;
    this.#hold = new ImageHolds(of.context.locks);
    this.#nextReason = this.#readOnlyReason;
  }

  /** In force, for people; null when the image may be written. */
  get readOnlyReason(): string | null {
    return this.#readOnlyReason;
  }

  /** Why a lock was not given; null when all that were asked for are held. */
  get refusal(): BlockError | null {
    return this.#hold.refusal;
  }

  /** The settlings that were asked for until now have ended. Never throws. */
  get settled(): Promise<void> {
    return this.#settling;
  }

  /**
   * Brings lock and writability to what they should be, now or, while handles are open, at the last release. Calls
   * queue. Never throws; a lock that was not given is in `refusal`, anything else in the log.
   */
  settle(): Promise<void> {
    this.#settling = this.#settling
      .then(() => this.#settle())
      .catch((error: unknown) => {
        this.#context.log.error(this.#image.name, toBlockError(error).describe());
      });
    return this.#settling;
  }

  /** `settle`, for one who has to have it so. Errors: those of the locks; EBUSY while handles keep the writability as it was. */
  async settleOrThrow(): Promise<void> {
    await this.settle();
    const { refusal } = this.#hold;
    if (refusal !== null) throw refusal;
    // One that has open handles is not changed by `settle`.
    const now = await this.#wantedReason();
    if ((now === null) === (this.#readOnlyReason === null)) return;
    throw writabilityChanged(this.#image.name, now);
  }

  /** The file does not open for writing: read-only from now on. While the chain is being opened, so before anybody writes. */
  doesNotOpenForWriting(reason: string): void {
    this.#readOnlyReason = this.#nextReason = reason;
  }

  /** The view has closed the chain: what was to come takes force. */
  closed({ isCorrupt }: { readonly isCorrupt: boolean }): void {
    if (isCorrupt) this.#nextReason ??= CORRUPT;
    this.#readOnlyReason = this.#nextReason;
  }

  /**
   * Gives the locks back, once the chain is closed. A settling of an image that is still ours would take them again. Errors: those of
   * the locks.
   */
  release(): Promise<void> {
    return this.#hold.release();
  }

  async #settle(): Promise<void> {
    const image = this.#image;
    const wanted = await this.#wantedReason();
    const same = (wanted === null) === (this.#readOnlyReason === null);
    if (!same && (image.handles > 0 || image.view.isPinned)) return;
    this.#nextReason = wanted;
    if (!same && image.isOpen) await image.view.close();
    this.#readOnlyReason = wanted;
    const { host, inspection } = this.#knowledge;
    if (image.gone || inspection.error !== null || image.isInactive) return;
    const paths = [host.path, ...inspection.dataFiles.map((file) => file.path)];
    await this.#hold.ensure(paths, wanted === null ? 'write' : 'read');
  }

  #wantedReason(): Promise<string | null> {
    const { host, inspection, unwritable, candidate } = this.#knowledge;
    const { usedBy } = this.#image;
    const { readOnly } = this.#context;
    const missing = candidate.standIn?.missing ?? null;
    return whyReadOnly({ host, inspection, readOnly, missing, usedBy, unwritable });
  }
}
