/**
 * What a mount knows of an image without having it open: its file as it was looked at last, what its header says, and why
 * it did not open.
 *
 * Scans, openings, closings and requests for attributes look at the same file beside each other, and what one has found must not undo
 * what another one knows. Hence two rules. What a scan has seen of the file before it was looked at here counts for nothing
 * (`latest`): the file changes through us as well. And what was learnt of the image while a scan read its header, stays (`adopt`).
 *
 * It looks at no file but in `adoptOwnChanges`; everything else is done at once.
 */
import type { BlockError, BlockErrorKind } from '../../src/base/block-error.ts';
import type { ImageDescription } from '../../src/block/image-description.ts';
import { areAsTheyWere, asTheyAre } from './data-files.ts';
import { type HostFile, tryStatHostFile } from './host-file.ts';
import type { Inspection } from './inspection.ts';
import type { Candidate } from './listing.ts';

/** How long an image that could not be opened is taken to be so, before its file is looked at again, in ms. */
const RETRY_AFTER_MS = 1000;

/** Failures of an opening that say something of the image, not of the moment. */
const LASTING: ReadonlySet<BlockErrorKind> = new Set([
  'invalid-image',
  'unsupported',
  'not-permitted',
  'not-found',
]);

/** What a scan has found of an image. */
export interface ScanFindings {
  readonly candidate: Candidate;
  readonly inspection: Inspection;
  /** What was known of the image when the scan looked at it; null when nothing was. */
  readonly inspectionBefore: Inspection | null;
  /** When the scan began; `performance.now()`. */
  readonly sinceMs: number;
}

/** Why the file, as it was then, did not open for writing. */
export interface Unwritable {
  readonly stamp: string;
  readonly reason: string;
}

export class ImageKnowledge {
  #candidate: Candidate;
  #inspection: Inspection;
  #openError: BlockError | null;
  #unwritable: Unwritable | null = null;
  /** When the file was last looked at beside the scans. */
  #seenMs = Number.NEGATIVE_INFINITY;
  /** When its header was last read because it could not be opened. */
  #retriedMs = 0;

  constructor(known: {
    readonly candidate: Candidate;
    readonly inspection: Inspection;
    /** See `openError`. */
    readonly openError: BlockError | null;
  }) {
    this.#candidate = known.candidate;
    this.#inspection = known.inspection;
    this.#openError = known.openError;
  }

  get candidate(): Candidate {
    return this.#candidate;
  }

  get host(): HostFile {
    return this.#candidate.host;
  }

  get inspection(): Inspection {
    return this.#inspection;
  }

  /** Why an opening has failed; null when none has, or the file has changed since. */
  get openError(): BlockError | null {
    return this.#openError;
  }

  /** Null when it was not tried since the file is what it is. */
  get unwritable(): Unwritable | null {
    return this.#unwritable;
  }

  /**
   * A candidate of a scan that began at `sinceMs` (`performance.now()`), with the file as it was looked at last: what we have done to
   * it since is ours, and does not make it another one.
   */
  latest(candidate: Candidate, sinceMs: number): Candidate {
    const { host } = candidate;
    const isSame = host.identity === this.host.identity && host.path === this.host.path;
    return isSame && this.#seenMs >= sinceMs ? { ...candidate, host: this.host } : candidate;
  }

  /** What a scan has found of the same file. What we know since the scan has looked, stays. */
  adopt(found: ScanFindings, { isOpen }: { readonly isOpen: boolean }): void {
    // A scan that has begun before a pivot: the next one knows.
    const isOtherFile = found.candidate.host.identity !== this.host.identity;
    const isOtherTarget = targetOf(found.candidate) !== targetOf(this.#candidate);
    if (isOtherTarget || (isOpen && isOtherFile)) return;
    const candidate = this.latest(found.candidate, found.sinceMs);
    this.#forgetErrorOf(candidate.host);
    this.#candidate = candidate;
    if (this.#inspection === found.inspectionBefore) this.#inspection = found.inspection;
  }

  /** Whether the files besides its own are as they were looked at. */
  hasSameDataFiles(): Promise<boolean> {
    return areAsTheyWere(this.#inspection.dataFiles);
  }

  /** Of an image that cannot be opened: whether its header is to be read again, with the file as it is now. */
  isWorthRetry(host: HostFile): boolean {
    const waited = performance.now() - this.#retriedMs > RETRY_AFTER_MS;
    return waited || host.stamp !== this.host.stamp;
  }

  /** Its header is being read because it could not be opened, with the file as it is now. */
  retry(host: HostFile): void {
    // Of a file that has not changed, only an opening tells whether it opens now.
    this.#forgetErrorOf(host);
    this.#see(host);
    this.#retriedMs = performance.now();
  }

  /** What its header says now. What cannot be read for the moment is still made of what it was made of: nobody else is to write that. */
  learn(inspection: Inspection): void {
    const isRead = inspection.error === null;
    this.#inspection = isRead ? inspection : { ...inspection, chain: this.#inspection.chain };
  }

  /** The image is had from somebody else: nothing that was found before is true of the file as it is now. */
  beginAnew(host: HostFile): void {
    this.#forgetFailures();
    this.#see(host);
  }

  /** After `beginAnew`: what its header says, whatever it said before. */
  learnAnew(inspection: Inspection): void {
    this.#inspection = inspection;
  }

  /** The view goes on over another file. */
  become(candidate: Candidate, inspection: Inspection): void {
    this.#candidate = candidate;
    this.#inspection = inspection;
    this.#forgetFailures();
  }

  opened(): void {
    this.#openError = null;
  }

  /** It was opened for writing, which mends it, or fails. */
  openedForWriting(): void {
    if (this.#inspection.description?.dirty === true) this.#describe({ dirty: false });
  }

  /** Kept when it says something of the image. */
  openFailed(failure: BlockError): void {
    if (LASTING.has(failure.kind)) this.#openError = failure;
  }

  /** The file, as it is now, does not open for writing. */
  doesNotOpenForWriting(reason: string): void {
    this.#unwritable = { stamp: this.host.stamp, reason };
  }

  /** Its chain has been closed: it may have grown since its header was read. */
  closed(as: { readonly virtualSizeBytes: number; readonly isCorrupt: boolean }): void {
    const corrupt = as.isCorrupt || this.#inspection.description?.corrupt === true;
    this.#describe({ virtualSizeBytes: as.virtualSizeBytes, corrupt });
  }

  snapshotsChanged(snapshots: ImageDescription['snapshots']): void {
    this.#describe({ snapshots });
  }

  /** What we did to the files ourselves does not make them other ones: they are looked at. */
  async adoptOwnChanges(): Promise<void> {
    const host = await tryStatHostFile(this.host.path);
    if (host?.identity === this.host.identity) this.#see(host);
    const dataFiles = await asTheyAre(this.#inspection.dataFiles);
    this.#inspection = { ...this.#inspection, dataFiles };
  }

  #see(host: HostFile): void {
    this.#candidate = { ...this.#candidate, host };
    this.#seenMs = performance.now();
  }

  #forgetErrorOf(host: HostFile): void {
    if (host.stamp !== this.host.stamp) this.#openError = null;
  }

  #forgetFailures(): void {
    this.#openError = null;
    this.#unwritable = null;
  }

  #describe(change: Partial<ImageDescription>): void {
    const { description } = this.#inspection;
    if (description === null) return;
    this.#inspection = { ...this.#inspection, description: { ...description, ...change } };
  }
}

const targetOf = ({ standIn }: Candidate): string | null => standIn?.record.target ?? null;
