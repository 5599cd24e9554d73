/**
 * The looks at one image's file beside those of the scans: whether it is still the file that was looked at, and what its header
 * says when it was not to be opened, was another host's, or names another chain.
 *
 * Any number of looks run at once, beside scans, openings and closings; what one learns, `ImageKnowledge` merges. Who compares
 * the file's stamp waits until its times are not being changed by us; that of a file that is open is not compared at all.
 */
import type { BlockError } from '../../src/base/block-error.ts';
import type { EntryContext } from './entry-context.ts';
import { backingIsWritten, staleFile } from './entry-errors.ts';
import type { FileTimes } from './file-times.ts';
import { type HostFile, statHostFile, tryStatHostFile } from './host-file.ts';
import type { ImageKnowledge } from './image-knowledge.ts';
import type { WriteAccess } from './write-access.ts';

/** The image's entry, as it is when it is asked. */
interface LookedAtImage {
  readonly name: string;
  readonly gone: boolean;
  /** Why it cannot be opened, as far as is known. */
  readonly error: BlockError | null;
  readonly isOpen: boolean;
  readonly isInactive: boolean;
}

export class ImageLooks {
  readonly #context: EntryContext;
  readonly #image: LookedAtImage;
  readonly #knowledge: ImageKnowledge;
  readonly #times: FileTimes;
  readonly #access: WriteAccess;

  constructor(of: {
    readonly context: EntryContext;
    readonly image: LookedAtImage;
    readonly knowledge: ImageKnowledge;
    readonly times: FileTimes;
    readonly access: WriteAccess;
  }) {
    this.#context = of.context;
    this.#image = of.image;
    this.#knowledge = of.knowledge;
    this.#times = of.times;
    this.#access = of.access;
  }

  /**
   * Before an opening: throws what keeps the image from being opened as it is now. Errors: ESTALE when the file is another one or has
   * changed; EBUSY while a layer below is written; what the inspection finds wrong; that of a lock that was not given.
   */
  async lookAgain(): Promise<void> {
    await this.#times.settled();
    const known = this.#knowledge;
    const image = this.#image;
    const host = await tryStatHostFile(known.host.path);
    if (image.gone || host === null || host.identity !== known.host.identity) throw this.stale();
    if (host.stamp !== known.host.stamp && image.error === null) throw this.stale();
    if (image.error === null && !(await known.hasSameDataFiles())) throw this.stale();
    if (image.error !== null) await this.#reinspect(host, true);
    const refusal = known.inspection.error ?? this.#access.refusal;
    if (refusal !== null) throw refusal;
    const writer = await this.#context.writerBelow(known.inspection, image.name);
    if (writer !== null) throw backingIsWritten(known.host.path, writer.name);
  }

  /**
   * The image is had from another host: looks at it as if nothing had been known of it. Errors: those of the host; ESTALE when
   * another file has its place; what its header shows to be wrong.
   */
  async lookAfresh(): Promise<void> {
    const known = this.#knowledge;
    const host = await statHostFile(known.host.path);
    const isSame = host.identity === known.host.identity && host.birth === known.host.birth;
    if (this.#image.gone || !isSame) throw this.stale();
    this.#times.keep(null);
    known.beginAnew(host);
    const inspection = await this.#context.inspect(known.candidate, true);
    if (inspection === null) throw this.stale();
    known.learnAnew(inspection);
    if (inspection.error !== null) throw inspection.error;
  }

  /**
   * The header names another backing file than it did: looks at it again, while the image stays open. Never throws: what is found wrong
   * is learnt, and of a file that is gone, or another one, nothing.
   */
  async lookAtChain(): Promise<void> {
    const host = await tryStatHostFile(this.#knowledge.host.path);
    if (host?.identity !== this.#knowledge.host.identity) return;
    const inspection = await this.#context.inspect({ ...this.#knowledge.candidate, host }, true);
    if (inspection !== null) this.#knowledge.learn(inspection);
  }

  /** The file's attributes as they are now; of a file that is gone, or another host's, as they were. */
  async freshHost(): Promise<HostFile> {
    const known = this.#knowledge;
    const image = this.#image;
    if (image.isInactive) return known.host;
    await this.#times.settled();
    const host = image.gone ? null : await tryStatHostFile(known.host.path);
    if (host === null || host.identity !== known.host.identity) return known.host;
    if (image.isOpen) return host;
    if (image.error !== null) {
      if (known.isWorthRetry(host)) await this.#reinspect(host, false).catch(() => undefined);
    } else if (host.stamp !== known.host.stamp) this.#context.outdated();
    return image.error === null ? known.host : host;
  }

  /** The error of one who finds another file than was looked at; a scan is asked to find out which. */
  stale(): BlockError {
    this.#context.outdated();
    return staleFile(this.#knowledge.host.path);
  }

  async #reinspect(host: HostFile, patient: boolean): Promise<void> {
    this.#knowledge.retry(host);
    const inspection = await this.#context.inspect(this.#knowledge.candidate, patient);
    if (inspection === null) throw this.stale();
    this.#knowledge.learn(inspection);
    await this.#access.settle();
  }
}
