/** An opened add-cow image: puts the parts together and holds the order of opening and closing. */
import { toBlockError } from '../../src/base/block-error.ts';
import { type GuestOffset, guestOffset, hostOffset } from '../../src/base/units.ts';
import type {
  CopyInHow,
  DriverInstance,
  Mapping,
  OpenRequest,
  WriteZeroesOptions,
} from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import type { BackingLink } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';
import { runCheckpoint } from './checkpoint.ts';
import { Completion } from './completion.ts';
import { readHeader } from './header.ts';
import { writeBackingLink } from './header-write.ts';
import { replayJournal, takeUpOwedHeader } from './replay.ts';
import { Resizer } from './resize.ts';
import { type GuestRun, ImageState } from './state.ts';
import { Writer } from './write.ts';
import { Zeroes } from './zeroes.ts';

/** Errors: kind invalid-image, unsupported; those of opening the image file. */
export const openAddCow = async (request: OpenRequest): Promise<DriverInstance> => {
  if (!request.readOnly) await takeUpOwedHeader(request);
  const header = await readHeader(request.file, request.path);
  const image = await request.openDataFile(header.image);
  const opened: AddCowImage = new AddCowImage(
    new ImageState({ request, header, image, checkpoint: () => opened.checkpoint() }),
  );
  if (!request.readOnly) await opened.takeUpJournal();
  return opened;
};

export class AddCowImage implements DriverInstance {
  readonly holesMeanZero = true;
  readonly punchesDataFile = true;
  readonly #state: ImageState;
  readonly #writer: Writer;
  readonly #zeroes: Zeroes;
  readonly #completion: Completion;
  readonly #resizer: Resizer;
  /** Clusters whose bits we know of. */
  #knownClusters: number;

  constructor(state: ImageState) {
    this.#state = state;
    this.#writer = new Writer(state);
    this.#zeroes = new Zeroes(state, this.#writer);
    this.#completion = new Completion(state);
    this.#resizer = new Resizer(state, this.#writer, this.#completion);
    this.#knownClusters = state.clusters;
  }

  get lengthBytes(): number {
    return this.#state.lengthBytes;
  }

  /** Once all of it is in the image file, that one's. */
  get clusterBytes(): number {
    const { isAllAllocated, image, clusterBytes } = this.#state;
    return isAllAllocated ? image.driver.clusterBytes : clusterBytes;
  }

  /** Null once it is not used any more: then it need not exist. */
  get backingLink(): BackingLink | null {
    const { isAllAllocated, header } = this.#state;
    return isAllAllocated ? null : header.backing;
  }

  get metadataBytes(): number {
    return this.#state.bitmap.bytes;
  }

  /** One checkpoint, and what its end may allow. The schedule calls it, one at a time. */
  async checkpoint(): Promise<void> {
    await runCheckpoint(this.#state);
    await this.#completion.settle();
  }

  /** Before the first request of an image that is opened for writing. */
  async takeUpJournal(): Promise<void> {
    if (await replayJournal(this.#state)) await this.#state.schedule.request();
  }

  mapping(offset: GuestOffset, lengthBytes: number): Mapping | Promise<Mapping> {
    const run = this.#state.runAt(offset, lengthBytes);
    return run instanceof Promise
      ? run.then((found) => this.#mappingOf(offset, found))
      : this.#mappingOf(offset, run);
  }

  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    await this.#change(() => this.#writer.write(offset, buffer));
  }

  async populate(
    offset: GuestOffset,
    lengthBytes: number,
    bytes: Uint8Array | null,
  ): Promise<void> {
    await this.#change(() => this.#writer.populate(offset, lengthBytes, bytes));
  }

  async copyIn(offset: GuestOffset, source: HostRange, how: CopyInHow): Promise<void> {
    if (how === 'write') throw notCopied();
    await this.#change(() => this.#writer.populate(offset, source.length, source));
  }

  async writeZeroes(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void> {
    await this.#change(() =>
      this.#zeroes.zero(offset, lengthBytes, options.unmap ? 'unmap' : 'keep'),
    );
  }

  async discard(offset: GuestOffset, lengthBytes: number): Promise<void> {
    const isIgnored = this.#state.request.discard === 'ignore';
    await this.#change(() => this.#zeroes.zero(offset, lengthBytes, isIgnored ? 'keep' : 'punch'));
  }

  async allocate(offset: GuestOffset, lengthBytes: number): Promise<void> {
    await this.#change(() => this.#writer.copyUp(offset, lengthBytes));
    await this.#state.image.allocate(offset, lengthBytes);
  }

  async #change(change: () => Promise<void>): Promise<void> {
    await this.#state.admit();
    await change();
    await this.#state.settled();
  }

  // Workers write in place behind this driver: the image file is synced also when no bit is new.
  async flush(): Promise<void> {
    if (this.#state.isDirty) await this.#state.schedule.request();
    else await this.#state.image.flush();
  }

  async resize(lengthBytes: number): Promise<void> {
    await this.#resizer.cover(this.#knownClusters);
    await this.#resizer.resize(lengthBytes);
    this.#knownClusters = this.#state.clusters;
  }

  async reloadLength(): Promise<void> {
    await this.#state.image.driver.reloadLength?.();
  }

  async changeBacking(link: BackingLink | null): Promise<void> {
    const state = this.#state;
    // Also of what is journaled and in the file already: its records are of the header that goes.
    await state.schedule.request();
    state.header = await writeBackingLink(state.headerChanges, state.header, link);
    if (link === null && !state.isAllAllocated) await this.#fill();
  }

  /**
   * Without a backing file nothing is below: what is not there is zeros, and they can be here. Never throws: the link has changed,
   * and all is the same without.
   */
  async #fill(): Promise<void> {
    const { log, path } = this.#state.request;
    try {
      await this.#zeroes.fill();
      await this.flush();
    } catch (error) {
      const reason = toBlockError(error).describe();
      log.warning(path, `is not made complete now that nothing lies below it: ${reason}`);
    }
  }

  async makeEmpty(): Promise<void> {
    const { bitmap, clusters, schedule, image } = this.#state;
    await this.#completion.undone(async () => {
      await bitmap.change(0, clusters, false);
      await schedule.request();
    });
    // Nobody looks there any more.
    await image.discard(guestOffset(0), image.lengthBytes);
    await image.flush();
  }

  async standsAlone(): Promise<Node | null> {
    return (await this.#completion.isReached()) ? this.#state.image : null;
  }

  async allocatedBytes(): Promise<number> {
    const { file, image } = this.#state;
    return (await file.driver.allocatedBytes()) + (await image.driver.allocatedBytes());
  }

  async close(): Promise<void> {
    try {
      await this.#end();
    } finally {
      this.#state.headerChanges.closed();
    }
  }

  async #end(): Promise<void> {
    const { schedule, request, image } = this.#state;
    if (request.readOnly) return;
    await schedule.close();
    await this.#resizer.cover(this.#knownClusters);
    if (this.#state.isDirty) await schedule.request();
    await schedule.close();
    await image.flush();
    request.journal?.close();
  }

  #mappingOf(offset: GuestOffset, { isSet, lengthBytes }: GuestRun): Mapping {
    if (!isSet) return { kind: 'unallocated', lengthBytes };
    const { image, request, journaled } = this.#state;
    // Nobody writes beside the driver what SIGKILL may hide: nobody would wait for it.
    const mayBeWritten = !request.readOnly && !journaled.isBehind;
    // A flat image file never moves its bytes: who reads and writes may go to the file itself.
    const inside =
      image.driver.clusterBytes === 1 ? image.driver.mapping(offset, lengthBytes) : null;
    if (inside !== null && !(inside instanceof Promise) && inside.kind === 'data')
      return { ...inside, inPlace: inside.inPlace && mayBeWritten };
    return {
      kind: 'data',
      lengthBytes,
      file: image,
      hostOffset: hostOffset(offset),
      inPlace: false,
    };
  }
}
