/**
 * One image of a mount: who it is, its view, its attributes, what kernels were told of it, and whether it is ours or another
 * host's. Its parts: what is known of it (`ImageKnowledge`), who may write it (`WriteAccess`), the looks at its file
 * (`ImageLooks`), and the openings and closings of its chain (`ImageOpening`).
 *
 * The parts see the entry as it is when they ask, never a copy. The view alone opens the chain, and closes it but for a pivot;
 * whether the image is ours changes only while the view is held.
 */
import { BlockError } from '../../src/base/block-error.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import { View } from '../../src/block/view.ts';
import type { Entry, FileAttributes } from '../directory.ts';
import { extendedAttributesOf, fileAttributesOf, type ImageSizes, sizesOf } from './attributes.ts';
import type { EntryContext } from './entry-context.ts';
import { FileTimes } from './file-times.ts';
import type { HostFile } from './host-file.ts';
import { ImageKnowledge, type ScanFindings } from './image-knowledge.ts';
import { ImageLooks } from './image-looks.ts';
import { ImageOpening } from './image-opening.ts';
import type { Inspection } from './inspection.ts';
import type { Candidate } from './listing.ts';
import { remoteFilesOf } from './remote-files.ts';
import { ShownState } from './shown-state.ts';
import { WriteAccess } from './write-access.ts';

export interface ImageEntryFields {
  readonly nodeId: number;
  readonly key: string;
  readonly name: string;
  readonly candidate: Candidate;
  readonly inspection: Inspection;
  /** Why an opening of the same file as it is has failed before; null when none has. */
  readonly openError: BlockError | null;
}

export class ImageEntry implements Entry {
  readonly nodeId: number;
  readonly key: string;
  readonly view: View;
  name: string;
  /** The view whose image uses this one as backing; null for none. */
  usedBy: string | null = null;
  /** The name leads elsewhere now, or nowhere. */
  gone = false;
  /** A backend was given it, so a kernel may know its node id. */
  known = false;
  /** Open handles. */
  handles = 0;
  /** When the last request or handle ended, for idle closing; `performance.now()`. */
  idleSinceMs = 0;
  readonly #context: EntryContext;
  readonly #knowledge: ImageKnowledge;
  readonly #shown = new ShownState();
  readonly #times = new FileTimes();
  readonly #access: WriteAccess;
  readonly #looks: ImageLooks;
  readonly #opening: ImageOpening;
  #lastAttributes: FileAttributes | null = null;
  #reported = '';
  /** The last of those that `alone` lets in. */
  #alone: Promise<unknown> = Promise.resolve();
  /** False while another host may have the image: no lock of it is held, and its file is not looked at. */
  #isOurs = true;

  constructor(context: EntryContext, fields: ImageEntryFields) {
    this.#context = context;
    this.nodeId = fields.nodeId;
    this.key = fields.key;
    this.name = fields.name;
    this.#knowledge = new ImageKnowledge(fields);
    const own = { knowledge: this.#knowledge, times: this.#times, shown: this.#shown };
    const parts = { context, image: this, ...own };
    this.#access = new WriteAccess(parts);
    this.#looks = new ImageLooks({ ...parts, access: this.#access });
    this.#opening = new ImageOpening({ ...parts, access: this.#access, looks: this.#looks });
    this.view = this.#createView();
    this.#isOurs = context.activity.isActive(this.host.path);
    if (!this.#isOurs) this.view.hold();
  }

  /** Another host may have the image: what is known of it is what was known when it was given away. */
  get isInactive(): boolean {
    return !this.#isOurs;
  }

  get candidate(): Candidate {
    return this.#knowledge.candidate;
  }

  get host(): HostFile {
    return this.#knowledge.host;
  }

  get inspection(): Inspection {
    return this.#knowledge.inspection;
  }

  get readOnlyReason(): string | null {
    return this.#access.readOnlyReason;
  }

  /** Why it cannot be opened, as far as is known. */
  get error(): BlockError | null {
    return this.inspection.error ?? this.#access.refusal ?? this.openError;
  }

  /** Why it is not served although it may be sound: engines die of it. */
  get refusal(): BlockError | null {
    return this.#context.refusal(this.nodeId, this.host.path);
  }

  /** Why an opening has failed; null when none has, or the file has changed since. */
  get openError(): BlockError | null {
    return this.#knowledge.openError;
  }

  /** Kernels were told the opposite of what is true now, so it has to be replaced. */
  get mustBeReplaced(): boolean {
    return !this.canBecome({ broken: this.error !== null });
  }

  /** A server has other content now: the next scan puts another node in its place. */
  get isSuperseded(): boolean {
    return this.#shown.isSuperseded;
  }

  /** Looks whether an open server file has said that it is another one now. True once it has. */
  noticesChange(): boolean {
    const isStale = remoteFilesOf(this.view.root).some(({ state }) => state.isStale);
    if (this.#shown.isSuperseded || !isStale) return false;
    this.#shown.supersede();
    return true;
  }

  /** Whether kernels were told nothing else yet. */
  canBecome(state: { readonly broken: boolean }): boolean {
    return this.#shown.canBecome(state);
  }

  /** Whether kernels were told that it cannot be opened. */
  get isShownBroken(): boolean {
    return this.#shown.isBroken || this.error !== null;
  }

  /** The chain is open, or being opened (what a journal holds is brought to it) or closed: the file changes through us. */
  get isOpen(): boolean {
    return this.view.root !== null || this.#opening.isUnderWay;
  }

  /** See `ImageKnowledge.latest`. */
  latest(candidate: Candidate, sinceMs: number): Candidate {
    return this.#knowledge.latest(candidate, sinceMs);
  }

  /** What a scan has found of the same file. */
  adopt(found: ScanFindings & { readonly name: string }): void {
    this.name = found.name;
    this.#knowledge.adopt(found, this);
  }

  /** See `WriteAccess.settle`. What went wrong is in `error`. */
  settle(): Promise<void> {
    return this.#access.settle();
  }

  /** Says in the log, once, why the image cannot be opened. */
  report(error: BlockError | null = this.error): void {
    const text = error?.describe() ?? '';
    if (text === this.#reported) return;
    this.#reported = text;
    if (text !== '') this.#context.log.warning(this.name, text);
  }

  async attributes(): Promise<FileAttributes> {
    const fresh = await this.#looks.freshHost();
    const host = { ...fresh, modifyTimeMs: this.#times.modifyTimeMs ?? fresh.modifyTimeMs };
    this.#shown.tell({ broken: this.error !== null });
    if (this.#isOurs && this.mustBeReplaced) this.#context.outdated();
    this.#lastAttributes = fileAttributesOf({
      host,
      ...(await sizesOf(this.view.root, this.inspection, host)),
      broken: this.isShownBroken,
      view: this.view,
    });
    return this.#lastAttributes;
  }

  /** Whether an image that could not be opened can be now, as far as shows without opening it. */
  async isMended(): Promise<boolean> {
    await this.#looks.freshHost();
    return this.error === null;
  }

  async setTimes(
    accessTimeMs: number | null,
    modifyTimeMs: number | null,
  ): Promise<FileAttributes> {
    if (this.#access.readOnlyReason !== null) {
      const message = `the view is read-only: ${this.#access.readOnlyReason}`;
      throw new BlockError({ kind: 'read-only', op: 'set times', message });
    }
    const isKept = (accessTimeMs === null && this.isOpen) || this.host.kind === 'remote';
    if (isKept || !this.#isOurs) {
      this.#times.keep(modifyTimeMs);
      const seen = this.#lastAttributes;
      return seen === null || modifyTimeMs === null ? this.attributes() : { ...seen, modifyTimeMs };
    }
    const host = await this.#looks.freshHost();
    if (this.gone) return this.attributes();
    const times = {
      accessTimeMs: accessTimeMs ?? host.accessTimeMs,
      modifyTimeMs: modifyTimeMs ?? this.#times.modifyTimeMs ?? host.modifyTimeMs,
    };
    await this.#times.set(host.path, times, () => this.#knowledge.adoptOwnChanges());
    return this.attributes();
  }

  async extendedAttributes(): Promise<ReadonlyMap<string, string>> {
    const host = await this.#looks.freshHost();
    return extendedAttributesOf({
      ...(await sizesOf(this.view.root, this.inspection, host)),
      inspection: this.inspection,
      jobs: this.#context.jobsOf(this.view),
      active: this.#isOurs,
    });
  }

  /** Virtual size and what the image takes on the host, in bytes. */
  async sizes(): Promise<ImageSizes> {
    return sizesOf(this.view.root, this.inspection, this.host);
  }

  /**
   * One after the other: openings of the image's snapshots, and changes of which there are. Lock order: inside of a drained
   * section of the image's view, never around one.
   */
  alone<T>(run: () => Promise<T>): Promise<T> {
    const result = this.#alone.then(run);
    this.#alone = result.catch(() => undefined);
    return result;
  }

  /** Before a snapshot is opened: whether the file is the one that was looked at. Errors: ESTALE; why it does not open. */
  async checkFile(): Promise<void> {
    if (!this.isOpen) await this.#looks.lookAgain();
  }

  /** Which snapshots there are now. */
  snapshotsChanged(snapshots: readonly SnapshotDescription[]): void {
    this.#knowledge.snapshotsChanged(snapshots);
  }

  /** The header names another backing file than it did: looks at it again, while the image stays open. */
  lookAtChain(): Promise<void> {
    return this.#looks.lookAtChain();
  }

  /**
   * The view is held: closes the chain, and then gives the locks back, so that another host can have the image. `closed`:
   * called in between. Errors: those of the last flush; the image is still ours then.
   */
  async giveAway(closed: () => Promise<void>): Promise<void> {
    await this.view.close();
    await this.#access.settled;
    this.#isOurs = false;
    await closed();
    await this.#access.release();
  }

  /**
   * The view is held: takes the locks, looks at the file anew, and opens the chain. Errors: those of locks and opening; ESTALE
   * when another file has taken the place of this one, or it is shown broken and sound; the image is not ours then.
   */
  async takeBack(): Promise<void> {
    this.#isOurs = true;
    try {
      // Only the header says which files are locked, and only the locks keep it from changing.
      await this.#looks.lookAfresh();
      await this.#access.settleOrThrow();
      await this.#looks.lookAfresh();
      await this.#access.settleOrThrow();
      await this.view.open({ held: true });
    } catch (error) {
      if (this.mustBeReplaced) this.supersede();
      this.#isOurs = false;
      await this.#access.release();
      throw error;
    }
  }

  /** Kernels know another size than the image has now, and believe no other: the next scan puts another node in its place. */
  supersede(): void {
    this.#shown.supersede();
    this.#context.outdated();
  }

  /** The view goes on over another file, which is open: what it was made for is its own no more. Drained. */
  pivoted(candidate: Candidate, inspection: Inspection): void {
    this.#knowledge.become(candidate, inspection);
    this.#times.keep(null);
  }

  /** The chain was closed, not through the view: the file as it is now is ours. Before the view's root is taken away. Drained. */
  async closedBeside(): Promise<void> {
    await this.#knowledge.adoptOwnChanges();
  }

  /** Closes the chain and gives the lock back. Errors: those of the last flush. */
  async dispose(): Promise<void> {
    try {
      await this.view.close();
    } finally {
      await this.#access.settled;
      await this.#access.release();
    }
  }

  #createView(): View {
    const entry = this;
    const { allowShrink, detectZeroes, log } = this.#context;
    return new View({
      get name() {
        return entry.name;
      },
      get readOnlyReason() {
        return entry.readOnlyReason;
      },
      allowShrink,
      detectZeroes,
      log,
      noteRead: (offset, lengthBytes) => this.#context.noteRead(this.name, offset, lengthBytes),
      unpinned: () => void entry.settle(),
      open: () => entry.#opening.open(),
      close: (root) => entry.#opening.close(root),
    });
  }
}
