/** An opened qcow2 image: puts the parts together and holds the order of opening and closing. */
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { type GuestOffset, guestOffset } from '../../src/base/units.ts';
import type { BitmapStore } from '../../src/block/dirty-tracking.ts';
import type {
  CopyInHow,
  DriverInstance,
  Mapping,
  OpenRequest,
  WriteZeroesOptions,
} from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import type { BackingLink } from '../../src/block/image-description.ts';
import type { InternalSnapshots } from '../../src/block/internal-snapshots.ts';
import type { Node } from '../../src/block/node.ts';
import { Allocator } from './allocator.ts';
import { checkImageFile } from './check-image.ts';
import { runCheckpoint } from './checkpoint.ts';
import { CompressedClusters } from './compressed.ts';
import { CorruptMark } from './corruption.ts';
import { isCompressed } from './entry.ts';
import { FlatFile } from './flat-file.ts';
import { FreeTail } from './free-tail.ts';
import { checkShapeOf, type Qcow2Header, readHeader, refuseUnsupported } from './header.ts';
import { rewriteHeaderCluster, withBackingFormat } from './header-cluster.ts';
import { AES_READ_ONLY, AUTOCLEAR, CRYPT_METHOD, HEADER, INCOMPATIBLE } from './layout.ts';
import { EntryLookup } from './lookup.ts';
import { PersistentBitmaps } from './persistent-bitmaps.ts';
import { hasPreallocatedMetadata } from './preallocation.ts';
import { Releases } from './release.ts';
import { replayJournal } from './replay.ts';
import { Resizer } from './resize.ts';
import { readSavedMetadata, refuseConflict } from './saved-metadata.ts';
import { snapshotHeader } from './snapshot-view.ts';
import { Snapshots } from './snapshots.ts';
import { ImageState } from './state.ts';
import { OwnTables } from './tables.ts';
import { Writer } from './write.ts';
import { Zeroes } from './zeroes.ts';

/** Errors: kind invalid-image, unsupported; EROFS for one that must be repaired before it is written. */
export const openQcow2 = async (request: OpenRequest): Promise<DriverInstance> => {
  let header = await readHeader(request.file, request.path);
  refuseUnsupported(header, request.path);
  if (!request.readOnly && header.cryptMethod === CRYPT_METHOD.aes)
    throw oldEncryption(request.path);
  if (!request.readOnly && isMarked(header, 'dirty') && !isMarked(header, 'corrupt')) {
    await repairDirty(request);
    header = await readHeader(request.file, request.path);
  }
  if (!request.readOnly) refuseUnrepaired(header, request.path);
  if (request.snapshot !== null) header = await snapshotHeader(request, header, request.snapshot);
  const image = await Qcow2Image.load(request, header);
  try {
    if (!request.readOnly) await image.takeUpJournal();
  } catch (error) {
    image.abandon();
    throw error;
  }
  return image;
};

const isMarked = (header: Qcow2Header, bit: 'dirty' | 'corrupt'): boolean =>
  (header.incompatible & INCOMPATIBLE[bit]) !== 0;

const oldEncryption = (path: string): BlockError =>
  new BlockError({
    kind: 'read-only',
    message: `is only read: it ${AES_READ_ONLY}`,
    hint: 'copy it with vdiskfs convert, to one that is encrypted with LUKS',
    path,
    op: 'open',
  });

/** The program that wrote it last was not able to bring its refcounts up to date. The bit stays when it is not mended. */
const repairDirty = async ({ file, path, log }: OpenRequest): Promise<void> => {
  const found = await checkImageFile({ file, path, repair: 'all' });
  const mended = `${found.corruptionsFixed} corruptions and ${found.leaksFixed} leaks were mended`;
  const left = found.corruptions + found.checkErrors;
  const rest = left === 0 ? '' : `, ${left} errors are left`;
  log.warning(path, `was not closed cleanly: ${mended}${rest}`);
};

const refuseUnrepaired = (header: Qcow2Header, path: string): void => {
  const isCorrupt = isMarked(header, 'corrupt');
  if (!isCorrupt && !isMarked(header, 'dirty')) return;
  throw new BlockError({
    kind: 'read-only',
    message: isCorrupt
      ? 'is marked corrupt'
      : 'was not closed cleanly, and its refcounts could not be mended',
    hint: isCorrupt
      ? 'repair it with vdiskfs check -r all, or open it read-only'
      : 'repair it with qemu-img check -r all, or open it read-only',
    path,
    op: 'open',
  });
};

/** Encrypted clusters are where the entries say, but not as the guest sees them. */
const veiled = (m: Mapping): Mapping => {
  const { kind, lengthBytes } = m;
  switch (kind) {
    case 'data':
      return { kind: 'opaque', lengthBytes, encrypted: true };
    case 'zero':
      return { kind, lengthBytes, allocated: m.allocated };
    case 'unallocated':
      return { kind, lengthBytes };
    case 'opaque':
      return m;
  }
};

export class Qcow2Image implements DriverInstance {
  readonly snapshots?: InternalSnapshots;
  readonly backingLink: BackingLink | null;
  readonly clusterBytes: number;
  readonly subclusterBytes: number;
  readonly bitmapStore?: BitmapStore;
  readonly #bitmaps: PersistentBitmaps;
  readonly #state: ImageState;
  readonly #lookup: EntryLookup;
  readonly #compressed: CompressedClusters;
  readonly #releases: Releases;
  readonly #tail: FreeTail;
  readonly #corrupt: CorruptMark;
  readonly #writer: Writer;
  readonly #zeroes: Zeroes;
  readonly #resizer: Resizer;
  readonly #flat: FlatFile;
  #prepared: Promise<void> | null = null;
  #isPrepared = false;
  #autoclear: Promise<void> | null = null;
  #preallocated: Promise<boolean> | null = null;

  private constructor(state: ImageState) {
    const { request, header, clusterBytes } = state;
    this.#state = state;
    this.backingLink = header.backing;
    this.clusterBytes = clusterBytes;
    this.subclusterBytes = header.subclusterBytes;
    this.#lookup = new EntryLookup(state);
    this.#compressed = new CompressedClusters(request.file, request.path, header);
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
    this.#bitmaps = new PersistentBitmaps(state, allocator, () => this.#clearAutoclear());
    this.#tail = new FreeTail(state, allocator);
    this.#releases = new Releases(state, allocator, {
      compressed: this.#compressed,
      tail: this.#tail,
    });
    this.#corrupt = new CorruptMark(request, {
      hasBit: header.version >= 3,
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
          await this.#prepare();
          await this.#settle();
        }),
      forgetUnpacked: () => this.#compressed.forget(),
      holdBitmaps: () => this.#bitmaps.holdAll(),
    });
  }

  static async load(request: OpenRequest, header: Qcow2Header): Promise<Qcow2Image> {
    let image: Qcow2Image | null = null;
    const state = await ImageState.load(request, header, async () => {
      await image?.checkpoint();
    });
    image = new Qcow2Image(state);
    if (!request.readOnly) await readSavedMetadata(state);
    if (request.snapshot === null) await image.#bitmaps.open();
    return image;
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

  /** Before the first request of an image that is opened for writing. */
  async takeUpJournal(): Promise<void> {
    if (await replayJournal(this.#state)) await this.#state.schedule.request();
  }

  /** Instead of `close`, when opening failed. */
  abandon(): void {
    this.#state.data.close();
  }

  mapping(offset: GuestOffset, lengthBytes: number): Mapping | Promise<Mapping> {
    const found = this.#lookup.mapping(offset, lengthBytes);
    return found instanceof Promise ? found.then((m) => this.#shown(m)) : this.#shown(found);
  }

  #shown(m: Mapping): Mapping {
    if (this.#state.data.isEncrypted) return veiled(m);
    // Nobody writes beside the driver what SIGKILL may unmap: nobody would wait for it.
    const isKept = m.kind === 'data' && m.inPlace && this.#state.journaled.isBehind;
    return isKept ? { ...m, inPlace: false } : m;
  }

  // Looked up again, a piece at a time: what was opaque when the caller looked may be mapped otherwise by now.
  async read(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    for (let done = 0; done < buffer.length; ) {
      const at = guestOffset(offset + done);
      const m = await this.#lookup.mapping(at, buffer.length - done);
      const piece = buffer.subarray(done, done + m.lengthBytes);
      if (m.kind === 'opaque') await this.#readCompressed(at, piece);
      else if (m.kind === 'data')
        await this.#state.data.read({ guest: at, host: m.hostOffset }, piece);
      else await this.#readAbsent(m.kind, at, piece);
      done += m.lengthBytes;
    }
  }

  async #readAbsent(
    kind: 'zero' | 'unallocated',
    at: GuestOffset,
    piece: Uint8Array,
  ): Promise<void> {
    const backing = kind === 'zero' ? null : this.#state.request.backing();
    if (backing === null) piece.fill(0);
    else await backing.readClipped(at, piece);
  }

  async #readCompressed(at: GuestOffset, piece: Uint8Array): Promise<void> {
    const { map, clusterBytes } = this.#state;
    const place = map.place(at);
    const slice = await map.slices.get(map.tableOffset(place.l1Index) + place.sliceStart);
    const entry = map.entry(slice, place.index);
    if (!isCompressed(entry.high)) return this.read(at, piece);
    const cluster = await this.#compressed.read(entry);
    const inCluster = at % clusterBytes;
    piece.set(cluster.subarray(inCluster, inCluster + piece.length));
  }

  writeAtOnce(offset: GuestOffset, buffer: Uint8Array): boolean {
    if (!this.#isPrepared || this.#corrupt.isSet || !this.#state.admitsAtOnce()) return false;
    return this.#writer.writeAtOnce(offset, buffer);
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
      await this.#prepare();
      await this.#zeroes.forget(0, this.lengthBytes);
      await this.flush();
    });
  }

  async changeBacking(link: BackingLink | null): Promise<void> {
    await this.#prepare();
    await this.flush();
    const { request, file, clusterBytes, isDataFileRaw } = this.#state;
    // As they are on disk: bitmaps may have been saved since the image was opened.
    const header = await readHeader(file, request.path);
    if (link !== null && isDataFileRaw) {
      const message = 'has a raw external data file, and so no backing file';
      throw new BlockError({ kind: 'bad-request', message, path: file.path });
    }
    const extensions = withBackingFormat(header.extensions, link?.format ?? null);
    const shape = { clusterBytes, headerBytes: header.headerBytes };
    await rewriteHeaderCluster(file, shape, extensions, link);
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
    if (this.#state.isDataFileRaw && !this.#state.request.readOnly) await this.#prepare();
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
      await this.#prepare();
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

  #prepare(): Promise<void> {
    this.#prepared ??= this.#prepareWriting().catch((error: unknown) => {
      this.#prepared = null;
      throw error;
    });
    return this.#prepared;
  }

  async #prepareWriting(): Promise<void> {
    refuseConflict(this.#state);
    await this.#clearAutoclear();
    await this.#bitmaps.holdRecording();
    this.#allowInPlace(true);
    this.#isPrepared = true;
  }

  #allowInPlace(isAllowed: boolean): void {
    this.#lookup.inPlace = isAllowed;
    this.#state.request.mappingChanged({ start: guestOffset(0), lengthBytes: this.lengthBytes });
  }

  /** Everything that changes the image. Errors: those of `change`; EIO for an image that was found corrupt. */
  #change(change: () => Promise<void>): Promise<void> {
    return this.#corrupt.guard(async () => {
      await this.#prepare();
      await this.#state.admit();
      await change();
      await this.#state.settled();
    });
  }

  // Autoclear bits say that something beside the mapping is up to date; from the first write on it may not be. Bitmaps are
  // kept so.
  #clearAutoclear(): Promise<void> {
    this.#autoclear ??= this.#writeAutoclear().catch((error: unknown) => {
      this.#autoclear = null;
      throw error;
    });
    return this.#autoclear;
  }

  async #writeAutoclear(): Promise<void> {
    const { header, file } = this.#state;
    const raw = this.#state.isDataFileRaw ? AUTOCLEAR.rawDataFile : 0;
    const kept = raw | (this.#bitmaps.isValid ? AUTOCLEAR.bitmaps : 0);
    if (!header.hasAutoclear || (header.autoclear === kept && header.autoclearHigh === 0)) return;
    await this.#state.writeHeaderRange(HEADER.autoclear, (view) => view.setUint32(4, kept), 8);
    await file.flush();
  }

  async #moveRefcountTable(offset: number, clusters: number): Promise<void> {
    await this.#state.writeHeaderDurably(
      HEADER.refcountTableOffset,
      (view) => {
        view.setUint32(0, Math.floor(offset / 2 ** 32));
        view.setUint32(4, offset >>> 0);
        view.setUint32(8, clusters);
      },
      12,
    );
  }
}
