/**
 * An opened qcow2 image: puts the parts together, admits what changes it, and holds the order of closing. It is opened by open.ts.
 */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { type GuestOffset, guestOffset } from '../../src/base/units.ts';
import type { BitmapStore } from '../../src/block/dirty-tracking.ts';
import type {
  CopyInHow,
  DriverInstance,
  Mapping,
  WriteZeroesOptions,
} from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import type { BackingLink } from '../../src/block/image-description.ts';
import type { InternalSnapshots } from '../../src/block/internal-snapshots.ts';
import type { Node } from '../../src/block/node.ts';
import { Allocator } from './allocator.ts';
import { runCheckpoint } from './checkpoint.ts';
import { CompressedClusters } from './compressed.ts';
import { CorruptMark } from './corruption.ts';
import { FlatFile } from './flat-file.ts';
import { FreeTail } from './free-tail.ts';
import { checkShapeOf, readHeader } from './header.ts';
import { rewriteHeaderCluster, withBackingFormat } from './header-cluster.ts';
import { HEADER } from './layout.ts';
import { EntryLookup } from './lookup.ts';
import { PersistentBitmaps } from './persistent-bitmaps.ts';
import { hasPreallocatedMetadata } from './preallocation.ts';
import { Preparation } from './prepare.ts';
import { Reader } from './read.ts';
import { Releases } from './release.ts';
import { Resizer } from './resize.ts';
import { Snapshots } from './snapshots.ts';
import type { ImageState } from './state.ts';
import { OwnTables } from './tables.ts';
import { Writer } from './write.ts';
import { Zeroes } from './zeroes.ts';

export class Qcow2Image implements DriverInstance {
  readonly snapshots?: InternalSnapshots;
  readonly backingLink: BackingLink | null;
  readonly clusterBytes: number;
  readonly subclusterBytes: number;
  readonly bitmapStore?: BitmapStore;
  readonly #bitmaps: PersistentBitmaps;
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #reader: Reader;
  readonly #compressed: CompressedClusters;
  readonly #releases: Releases;
  readonly #tail: FreeTail;
  readonly #corrupt: CorruptMark;
  readonly #preparation: Preparation;
  readonly #writer: Writer;
  readonly #zeroes: Zeroes;
  readonly #resizer: Resizer;
  readonly #flat: FlatFile;
  #preallocated: Promise<boolean> | null = null;

  /** `loadBitmaps` follows, of an image that shows no snapshot. */
  constructor(state: ImageState) {
    const { request, header, clusterBytes } = state;
    this.#state = state;
    this.backingLink = header.backing;
    this.clusterBytes = clusterBytes;
    this.subclusterBytes = header.subclusterBytes;
    this.#lookup = new EntryLookup(state);
    this.#compressed = new CompressedClusters(request.file, request.path, header);
    this.#reader = new Reader(state, this.#lookup, this.#compressed);
    const allocator = new Allocator({
      file: request.file,
      path: request.path,
      clusterBytes,
      refcounts: state.refcounts,
      metadata: state.metadata,
      checkpoint: () => state.schedule.request(),
      tell: (changes) => void state.tell(changes),
      moveRefcountTable: (offset, clusters) => this.#moveRefcountTable(offset, clusters),
      unmapped: (run) => state.unmapped.push(run),
    });
    this.#bitmaps = new PersistentBitmaps(state, allocator, () => this.#preparation.setAutoclear());
    this.#preparation = new Preparation(state, this.#bitmaps, () => this.#allowInPlace(true));
    this.#tail = new FreeTail(state, allocator);
    this.#releases = new Releases(state, allocator, {
      compressed: this.#compressed,
      tail: this.#tail,
    });
    this.#corrupt = new CorruptMark(request, {
      hasBit: header.version >= 3,
      changes: state.headerChanges,
      stopInPlace: () => this.#allowInPlace(false),
    });
    const tables = new OwnTables(state, allocator);
    this.#writer = new Writer(state, this.#lookup, allocator, tables);
    this.#zeroes = new Zeroes(state, this.#lookup, tables, this.#writer);
    this.#resizer = new Resizer(state, allocator, this.#zeroes);
    this.#flat = new FlatFile(state, this.#lookup);
    if (request.snapshot !== null) return;
    this.snapshots = this.#openSnapshots(allocator);
    this.bitmapStore = this.#bitmaps;
  }

  #openSnapshots(allocator: Allocator): InternalSnapshots {
    return new Snapshots({
      state: this.#state,
      allocator,
      quiet: () =>
        this.#corrupt.guard(async () => {
          await this.#preparation.ensure();
          await this.#settle();
        }),
      forgetUnpacked: () => this.#compressed.forget(),
      holdBitmaps: () => this.#bitmaps.holdAll(),
    });
  }

  /** Before the first request. Errors: kind invalid-image, unsupported; EIO. */
  async loadBitmaps(): Promise<void> {
    await this.#bitmaps.open();
  }

  get isMarkedCorrupt(): boolean {
    return this.#corrupt.isSet;
  }

  get lengthBytes(): number {
    return this.#state.lengthBytes;
  }

  get metadataBytes(): number {
    return this.#state.map.slices.bytes + this.#state.refcounts.cache.bytes;
  }

  /** One checkpoint; see checkpoint.ts. The schedule calls it, one at a time. */
  async checkpoint(): Promise<void> {
    await runCheckpoint(this.#state, {
      tail: this.#tail,
      release: (runs) => this.#releases.begin(runs),
    });
  }

  mapping(offset: GuestOffset, lengthBytes: number): Mapping | Promise<Mapping> {
    return this.#reader.mapping(offset, lengthBytes);
  }

  read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    return this.#reader.read(offset, buffer);
  }

  get copiesAtOnce(): boolean {
    return this.#writer.worksAtOnce;
  }

  writeAtOnce(offset: GuestOffset, buffer: Uint8Array, cluster?: Uint8Array | null): boolean {
    if (!this.#preparation.isDone || this.#corrupt.isSet || !this.#state.admitsAtOnce())
      return false;
    return this.#writer.writeAtOnce(offset, buffer, cluster ?? null);
  }

  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    await this.#change(() => this.#writer.write(offset, buffer));
  }

  async writeCompressed(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    await this.#change(() => this.#writer.writeCompressed(offset, buffer));
  }

  async populate(
    offset: GuestOffset,
    lengthBytes: number,
    bytes: Uint8Array | null,
  ): Promise<void> {
    await this.#change(() =>
      bytes === null
        ? this.#zeroes.populate(offset, lengthBytes)
        : this.#writer.populate(offset, bytes),
    );
  }

  async copyIn(offset: GuestOffset, source: HostRange, how: CopyInHow): Promise<void> {
    if (this.#state.data.isEncrypted) throw notCopied();
    await this.#change(() =>
      how === 'write' ? this.#writer.write(offset, source) : this.#writer.populate(offset, source),
    );
  }

  async makeEmpty(): Promise<void> {
    await this.#corrupt.guard(async () => {
      await this.#preparation.ensure();
      await this.#zeroes.forget(0, this.lengthBytes);
      await this.flush();
    });
  }

  async changeBacking(link: BackingLink | null): Promise<void> {
    await this.#preparation.ensure();
    await this.flush();
    const { request, file, clusterBytes, isDataFileRaw, headerChanges } = this.#state;
    // As they are on disk: bitmaps may have been saved since the image was opened.
    const header = await readHeader(file, request.path);
    if (link !== null && isDataFileRaw) {
      const message = 'has a raw external data file, and so no backing file';
      throw new BlockError({ kind: 'bad-request', message, path: file.path });
    }
    const extensions = withBackingFormat(header.extensions, link?.format ?? null);
    const shape = { clusterBytes, headerBytes: header.headerBytes };
    await rewriteHeaderCluster(headerChanges, shape, extensions, link);
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
    const unmap = this.#state.request.discard === 'unmap';
    await this.writeZeroes(offset, lengthBytes, { unmap });
  }

  async flatFile(): Promise<Node | null> {
    if (this.#state.isDataFileRaw && !this.#state.request.readOnly)
      await this.#preparation.ensure();
    return this.#flat.handOut();
  }

  async reloadLength(): Promise<void> {
    await this.#flat.reloadLength();
  }

  get grownBytes(): number {
    return this.#flat.grownBytes;
  }

  async allocate(offset: GuestOffset, lengthBytes: number): Promise<void> {
    await this.#change(() => this.#writer.allocate(offset, lengthBytes));
  }

  async preallocate(
    offset: GuestOffset,
    lengthBytes: number,
    { space }: { readonly space: boolean },
  ): Promise<void> {
    await this.#change(() => this.#writer.allocate(offset, lengthBytes, { isPlain: true, space }));
  }

  // Workers write in place behind this driver: the file is synced also when no metadata is dirty.
  async flush(): Promise<void> {
    if (this.#state.isDirty) await this.#state.schedule.request();
    else await Promise.all([this.#state.file.flush(), this.#state.flushClusters()]);
  }

  get flushesFileAlone(): boolean {
    return !this.#state.isDirty && this.#state.dataFile === null;
  }

  async resize(lengthBytes: number): Promise<void> {
    await this.#corrupt.guard(async () => {
      await this.#preparation.ensure();
      // Until they are saved with the new length, none of them fits the image.
      await this.#bitmaps.holdAll();
      await this.#resizer.resize(lengthBytes);
    });
  }

  async allocatedBytes(): Promise<number> {
    const { file, dataFile } = this.#state;
    const own = await file.driver.allocatedBytes();
    return own + ((await dataFile?.driver.allocatedBytes()) ?? 0);
  }

  // As QEMU has it: refcounts that cannot be read fail nobody who only asks where his data is.
  async holesMeanZero(): Promise<boolean> {
    const { header, file } = this.#state;
    this.#preallocated ??= hasPreallocatedMetadata(file, checkShapeOf(header)).catch(() => false);
    return this.#preallocated;
  }

  async close(): Promise<void> {
    try {
      await this.#end();
    } finally {
      this.#state.headerChanges.closed();
      this.#state.data.close();
    }
  }

  async #end(): Promise<void> {
    const { request } = this.#state;
    if (request.readOnly) return;
    // Space is not to be taken in an image that was found corrupt: its bitmaps stay marked in use.
    const saved = this.#corrupt.isSet ? Promise.resolve() : this.#bitmaps.save();
    await saved.catch((error: unknown) => {
      const reason = toBlockError(error).describe();
      request.log.error(request.path, `dirty bitmaps are lost, they could not be saved: ${reason}`);
    });
    await this.#settle();
    await Promise.all([this.#state.file.flush(), this.#state.flushClusters()]);
    request.journal?.close();
    await this.#preparation.takeMarkAway();
  }

  /** Everything is in the image. What is given back after one checkpoint is counted down on disk by the next. */
  async #settle(): Promise<void> {
    const { schedule } = this.#state;
    await schedule.close();
    for (;;) {
      // It may be at work while nothing is dirty yet.
      await this.#releases.settled();
      if (!this.#state.isDirty) break;
      await schedule.request();
    }
    await schedule.close();
  }

  #allowInPlace(isAllowed: boolean): void {
    this.#lookup.inPlace = isAllowed;
    this.#state.request.mappingChanged({ start: guestOffset(0), lengthBytes: this.lengthBytes });
  }

  /** Everything that changes the image. Errors: those of `change`; EIO for an image that was found corrupt. */
  #change(change: () => Promise<void>): Promise<void> {
    return this.#corrupt.guard(async () => {
      await this.#preparation.ensure();
      await this.#state.admit();
      await change();
      await this.#state.settled();
    });
  }

  async #moveRefcountTable(offset: number, clusters: number): Promise<void> {
    await this.#state.writeHeaderDurably(
      HEADER.refcountTableOffset,
      (view) => {
        view.setUint32(0, Math.floor(offset / 2 ** 32));
        view.setUint32(4, offset >>> 0);
        view.setUint32(8, clusters);
      },
      // The old table has no room for another block, and the new one names all that it names.
      { lengthBytes: 12, isHarmless: true },
    );
  }
}
