/**
 * One image of a mount: its file, what its header says, its lock, the reason why it is read-only, and its view.
 *
 * Whether it may be written is settled (`settle`) only while no handle is open and nobody has pinned the view, so a guest or a
 * job never sees it change; a change that comes meanwhile waits for the last release.
 */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import type { OpenImageOptions } from '../../src/block/graph.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { View } from '../../src/block/view.ts';
import type { Entry, FileAttributes } from '../directory.ts';
import { extendedAttributesOf, fileAttributesOf, type ImageSizes, sizesOf } from './attributes.ts';
import type { EntryContext } from './entry-context.ts';
import { backingIsWritten, staleFile, usedElsewhere, writabilityChanged } from './entry-errors.ts';
import { FileTimes } from './file-times.ts';
import { type HostFile, statHostFile, tryStatHostFile } from './host-file.ts';
import { ImageHolds } from './image-hold.ts';
import { ImageKnowledge, type ScanFindings } from './image-knowledge.ts';
import type { Inspection } from './inspection.ts';
import type { Candidate } from './listing.ts';
import { differsFrom, remoteFilesOf } from './remote-files.ts';
import { ShownState } from './shown-state.ts';
import { CORRUPT, whyReadOnly } from './write-permission.ts';

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
  readonly #hold: ImageHolds;
  /** In force; see `settle`. */
  #readOnlyReason: string | null = 'it has not been looked at yet';
  /** Takes the place of the reason in force when the open chain has been closed. */
  #nextReason: string | null;
  readonly #knowledge: ImageKnowledge;
  readonly #shown = new ShownState();
  readonly #times = new FileTimes();
  #lastAttributes: FileAttributes | null = null;
  #reported = '';
  #settling: Promise<void> = Promise.resolve();
  /** The last of those that `alone` lets in. */
  #alone: Promise<unknown> = Promise.resolve();
  /** Closings that go on: until their end the file changes through us. */
  #closings = 0;
  /** The same of openings, once the file is found to be the one that was looked at. */
  #openings = 0;
  /** False while another host may have the image: no lock of it is held, and its file is not looked at. */
  #isOurs = true;

  constructor(context: EntryContext, fields: ImageEntryFields) {
    this.#context = context;
    this.#hold = new ImageHolds(context.locks);
    this.#nextReason = this.#readOnlyReason;
    this.nodeId = fields.nodeId;
    this.key = fields.key;
    this.name = fields.name;
    this.#knowledge = new ImageKnowledge(fields);
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
    return this.#readOnlyReason;
  }

  /** Why it cannot be opened, as far as is known. */
  get error(): BlockError | null {
    return this.inspection.error ?? this.#hold.refusal ?? this.openError;
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
    return this.view.root !== null || this.#openings > 0 || this.#closings > 0;
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

  /**
   * Brings lock and writability to what they should be, now or, while handles are open, at the last release. Calls
   * queue. Never throws; what went wrong is in `error`.
   */
  settle(): Promise<void> {
    this.#settling = this.#settling
      .then(() => this.#settle())
      .catch((error: unknown) => {
        this.#context.log.error(this.name, toBlockError(error).describe());
      });
    return this.#settling;
  }

  /** Says in the log, once, why the image cannot be opened. */
  report(error: BlockError | null = this.error): void {
    const text = error?.describe() ?? '';
    if (text === this.#reported) return;
    this.#reported = text;
    if (text !== '') this.#context.log.warning(this.name, text);
  }

  async attributes(): Promise<FileAttributes> {
    const fresh = await this.#freshHost();
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
    await this.#freshHost();
    return this.error === null;
  }

  async setTimes(
    accessTimeMs: number | null,
    modifyTimeMs: number | null,
  ): Promise<FileAttributes> {
    if (this.#readOnlyReason !== null) {
      const message = `the view is read-only: ${this.#readOnlyReason}`;
      throw new BlockError({ kind: 'read-only', op: 'set times', message });
    }
    const isKept = (accessTimeMs === null && this.isOpen) || this.host.kind === 'remote';
    if (isKept || !this.#isOurs) {
      this.#times.keep(modifyTimeMs);
      const seen = this.#lastAttributes;
      return seen === null || modifyTimeMs === null ? this.attributes() : { ...seen, modifyTimeMs };
    }
    const host = await this.#freshHost();
    if (this.gone) return this.attributes();
    const times = {
      accessTimeMs: accessTimeMs ?? host.accessTimeMs,
      modifyTimeMs: modifyTimeMs ?? this.#times.modifyTimeMs ?? host.modifyTimeMs,
    };
    await this.#times.set(host.path, times, () => this.#knowledge.adoptOwnChanges());
    return this.attributes();
  }

  async extendedAttributes(): Promise<ReadonlyMap<string, string>> {
    const host = await this.#freshHost();
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
    if (!this.isOpen) await this.#lookAgain();
  }

  /** Which snapshots there are now. */
  snapshotsChanged(snapshots: readonly SnapshotDescription[]): void {
    this.#knowledge.snapshotsChanged(snapshots);
  }

  /** The header names another backing file than it did: looks at it again, while the image stays open. */
  async lookAtChain(): Promise<void> {
    const host = await tryStatHostFile(this.host.path);
    if (host?.identity !== this.host.identity) return;
    const inspection = await this.#context.inspect({ ...this.candidate, host }, true);
    if (inspection !== null) this.#knowledge.learn(inspection);
  }

  /**
   * The view is held: closes the chain, and then gives the locks back, so that another host can have the image. `closed`:
   * called in between. Errors: those of the last flush; the image is still ours then.
   */
  async giveAway(closed: () => Promise<void>): Promise<void> {
    await this.view.close();
    await this.#settling;
    this.#isOurs = false;
    await closed();
    await this.#hold.release();
  }

  /**
   * The view is held: takes the locks, looks at the file anew, and opens the chain. Errors: those of locks and opening; ESTALE
   * when another file has taken the place of this one, or it is shown broken and sound; the image is not ours then.
   */
  async takeBack(): Promise<void> {
    this.#isOurs = true;
    try {
      // Only the header says which files are locked, and only the locks keep it from changing.
      await this.#lookAfresh();
      await this.#settleOrThrow();
      await this.#lookAfresh();
      await this.#settleOrThrow();
      await this.view.open({ held: true });
    } catch (error) {
      if (this.mustBeReplaced) this.supersede();
      this.#isOurs = false;
      await this.#hold.release();
      throw error;
    }
  }

  /** Kernels know another size than the image has now, and believe no other: the next scan puts another node in its place. */
  supersede(): void {
    this.#shown.supersede();
    this.#context.outdated();
  }

  async #lookAfresh(): Promise<void> {
    const host = await statHostFile(this.host.path);
    const isSame = host.identity === this.host.identity && host.birth === this.host.birth;
    if (this.gone || !isSame) throw this.#stale();
    this.#times.keep(null);
    this.#knowledge.beginAnew(host);
    const inspection = await this.#context.inspect(this.candidate, true);
    if (inspection === null) throw this.#stale();
    this.#knowledge.learnAnew(inspection);
    if (inspection.error !== null) throw inspection.error;
  }

  async #settleOrThrow(): Promise<void> {
    await this.settle();
    const { refusal } = this.#hold;
    if (refusal !== null) throw refusal;
    // One that has open handles is not changed by `settle`.
    const now = await this.#wantedReason();
    if ((now === null) === (this.#readOnlyReason === null)) return;
    throw writabilityChanged(this.name, now);
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
      await this.#settling;
      await this.#hold.release();
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
        return entry.#readOnlyReason;
      },
      allowShrink,
      detectZeroes,
      log,
      noteRead: (offset, lengthBytes) => this.#context.noteRead(this.name, offset, lengthBytes),
      unpinned: () => void entry.settle(),
      open: () => entry.#open(),
      close: (root) => entry.#close(root),
    });
  }

  async #open(): Promise<Node> {
    const { refusal, nodeId, name } = this;
    if (refusal !== null) throw refusal;
    if (!this.#isOurs && !this.gone) {
      throw usedElsewhere(this.host.path);
    }
    const end = this.#context.begin({ id: `open ${nodeId}`, nodeId, path: null, name });
    try {
      return await this.#openChain();
    } finally {
      end();
    }
  }

  async #openChain(): Promise<Node> {
    let opening = 0;
    try {
      await this.#lookAgain();
      opening = 1;
      this.#openings++;
      for (;;) {
        const reason = this.#readOnlyReason;
        const { path } = this.host;
        const format = this.inspection.declaredFormat;
        const root = await this.#openFor({ path, format, readOnly: reason !== null });
        if (root === null) continue;
        this.#knowledge.opened();
        this.idleSinceMs = performance.now();
        if (differsFrom(this.inspection, root)) this.#shown.supersede();
        if (!this.mustBeReplaced && (this.#readOnlyReason === null) === (reason === null)) {
          this.#context.opened(root);
          return root;
        }
        await this.#context.graph.close(root);
        if (this.mustBeReplaced) throw this.#stale();
      }
    } catch (error) {
      const failure = toBlockError(error, { op: 'open', path: this.host.path });
      this.#knowledge.openFailed(failure);
      if (failure.errno !== 'ESTALE') this.report(failure);
      if (this.mustBeReplaced) this.#context.outdated();
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
      const failure = toBlockError(error, { op: 'open', path: this.host.path });
      // Trying to mend it, or to bring to it what a journal holds, may have changed the file.
      if (!options.readOnly) await this.#knowledge.adoptOwnChanges();
      if (options.readOnly || failure.kind !== 'read-only') throw failure;
      this.report(failure);
      this.#knowledge.doesNotOpenForWriting(failure.message);
      this.#readOnlyReason = this.#nextReason = failure.message;
      return null;
    }
  }

  async #close(root: Node): Promise<void> {
    const virtualSizeBytes = root.lengthBytes;
    const isCorrupt = root.driver.isMarkedCorrupt === true;
    this.#closings++;
    try {
      await this.#context.graph.close(root);
    } finally {
      if (isCorrupt) this.#nextReason ??= CORRUPT;
      this.#readOnlyReason = this.#nextReason;
      this.#knowledge.closed({ virtualSizeBytes, isCorrupt });
      await this.#giveModifyTime();
      await this.#knowledge.adoptOwnChanges();
      this.#closings--;
    }
  }

  // A time that cannot be set is not worth an error: the content is there.
  async #giveModifyTime(): Promise<void> {
    const { path, identity, kind } = this.host;
    if (this.gone || kind === 'remote') this.#times.keep(null);
    await this.#times.give(path, identity).catch((error: unknown) => {
      this.#context.log.debug(this.name, toBlockError(error).describe());
    });
  }

  /** Before an opening: throws what keeps the image from being opened as it is now. */
  async #lookAgain(): Promise<void> {
    await this.#times.settled();
    const host = await tryStatHostFile(this.host.path);
    if (this.gone || host === null || host.identity !== this.host.identity) throw this.#stale();
    if (host.stamp !== this.host.stamp && this.error === null) throw this.#stale();
    if (this.error === null && !(await this.#knowledge.hasSameDataFiles())) throw this.#stale();
    if (this.error !== null) await this.#reinspect(host, true);
    const refusal = this.inspection.error ?? this.#hold.refusal;
    if (refusal !== null) throw refusal;
    const writer = await this.#context.writerBelow(this.inspection, this.name);
    if (writer !== null) throw backingIsWritten(this.host.path, writer.name);
  }

  #stale(): BlockError {
    this.#context.outdated();
    return staleFile(this.host.path);
  }

  async #reinspect(host: HostFile, patient: boolean): Promise<void> {
    this.#knowledge.retry(host);
    const inspection = await this.#context.inspect(this.candidate, patient);
    if (inspection === null) throw this.#stale();
    this.#knowledge.learn(inspection);
    await this.settle();
  }

  /** The file's attributes as they are now; of a file that is gone, or another host's, as they were. */
  async #freshHost(): Promise<HostFile> {
    if (!this.#isOurs) return this.host;
    await this.#times.settled();
    const host = this.gone ? null : await tryStatHostFile(this.host.path);
    if (host === null || host.identity !== this.host.identity) return this.host;
    if (this.isOpen) return host;
    if (this.error !== null) {
      if (this.#knowledge.isWorthRetry(host))
        await this.#reinspect(host, false).catch(() => undefined);
    } else if (host.stamp !== this.host.stamp) this.#context.outdated();
    return this.error === null ? this.host : host;
  }

  async #settle(): Promise<void> {
    const wanted = await this.#wantedReason();
    const same = (wanted === null) === (this.#readOnlyReason === null);
    if (!same && (this.handles > 0 || this.view.isPinned)) return;
    this.#nextReason = wanted;
    if (!same && this.isOpen) await this.view.close();
    this.#readOnlyReason = wanted;
    if (this.gone || this.inspection.error !== null || !this.#isOurs) return;
    const paths = [this.host.path, ...this.inspection.dataFiles.map((file) => file.path)];
    await this.#hold.ensure(paths, wanted === null ? 'write' : 'read');
  }

  #wantedReason(): Promise<string | null> {
    const { host, inspection, unwritable } = this.#knowledge;
    const { usedBy } = this;
    const { readOnly } = this.#context;
    const missing = this.candidate.standIn?.missing ?? null;
    return whyReadOnly({ host, inspection, readOnly, missing, usedBy, unwritable });
  }
}
