/**
 * The driver contract: all that an author of a format, protocol or filter driver reads.
 *
 * A driver is a folder `drivers/<name>/` whose `index.ts` exports a `DriverDescriptor`, one line in
 * `drivers/index.ts`, and one conformance file in `test/conformance/`.
 *
 * Division of labour (house rule "the wrapper validates, the driver implements"): callers use `Node`
 * (node.ts), which checks ranges, state and permissions, counts, and registers every request as in flight
 * from before the offset is resolved until its I/O ends. A driver's methods are called only with ranges
 * inside `lengthBytes`, never with length 0, never after `close`.
 *
 * Concurrency: every method may be called while any other is running, except that `resize`, `close`,
 * and a graph change run inside a drained section. A driver serialises for itself what must be serial
 * (see `RangeLocks`), and two requests to different clusters never wait for each other.
 */
import type { BlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import type { GuestOffset, HostOffset } from '../base/units.ts';
import type { BitmapStore, DirtyTracking } from './dirty-tracking.ts';
import type { HostRange } from './host-range.ts';
import type { CheckRequest, CheckResult } from './image-check.ts';
import type { CreateOption, CreatePlan, CreateRequest, DataFilePlan } from './image-creation.ts';
import type { BackingLink, DataFileLink, ImageDescription } from './image-description.ts';
import type { InternalSnapshots } from './internal-snapshots.ts';
import type { Node } from './node.ts';
import type { RemoteCredential } from './remote-access.ts';
import type { RestartJournal } from './restart-journal.ts';
import type { Secret } from './secrets.ts';

export type DriverRole = 'format' | 'protocol' | 'filter';

/** `true`, `false` (the format cannot), `'todo'` (not yet). Tests read them. */
export type Capability = boolean | 'todo';

export interface DriverCapabilities {
  readonly write: Capability;
  /** Overlays a backing node; unallocated ranges read from there. */
  readonly backing: Capability;
  /** Ranges can read as zeros without taking space. */
  readonly zeroWithoutSpace: Capability;
  readonly discard: Capability;
  readonly grow: Capability;
  readonly shrink: Capability;
  readonly create: Capability;
  readonly check: Capability;
  readonly repair: Capability;
  readonly internalSnapshots: Capability;
  readonly compressedWrite: Capability;
}

/**
 * Where the bytes of a range are, for its first `lengthBytes` bytes (at least 1, at most what was asked).
 * A driver joins neighbours that are contiguous in the same file.
 */
export type Mapping =
  | {
      /** Plain bytes in `file` from `hostOffset` on. */
      readonly kind: 'data';
      readonly lengthBytes: number;
      readonly file: Node;
      readonly hostOffset: HostOffset;
      /** Writing in place needs no change of metadata (allocated, refcount 1, image writable). */
      readonly inPlace: boolean;
    }
  /**
   * Reads as zeros whatever the backing holds. `allocated`: a host cluster is kept behind it, at `hostOffset` of the
   * image's own file, which block status shows (runs are joined only where these are contiguous too).
   */
  | {
      readonly kind: 'zero';
      readonly lengthBytes: number;
      readonly allocated: boolean;
      readonly hostOffset?: HostOffset;
      /** What `hostOffset` is of, when it is not the image's own file. */
      readonly file?: Node;
    }
  /**
   * Not in this layer: the backing's bytes, or zeros past its end or without one. `hostOffset`: where space is kept for it
   * all the same, as in `zero`.
   */
  | {
      readonly kind: 'unallocated';
      readonly lengthBytes: number;
      readonly hostOffset?: HostOffset;
      readonly file?: Node;
    }
  /** In this layer, but only the driver's `read` gives the bytes (compressed, encrypted; a protocol driver's own). */
  | { readonly kind: 'opaque'; readonly lengthBytes: number; readonly encrypted?: boolean };

export interface WriteZeroesOptions {
  /** Space may be given back; else it stays allocated where the format can say "zero and allocated". */
  readonly unmap: boolean;
}

/** An opened instance. One per node. */
export interface DriverInstance {
  /** What the guest sees, in bytes; any number, not only multiples of 512. Changed only by `resize`. */
  readonly lengthBytes: number;
  /** The unit in which space is mapped, in bytes; for formats without one, `lengthBytes` does not matter: 1. */
  readonly clusterBytes: number;
  /** Where parts of a cluster may lie in different layers: the size of a part, in bytes. Else that of the cluster. */
  readonly subclusterBytes?: number;

  /**
   * Where a range is. Synchronous when the metadata is in memory, so that hits cost no turn of the event
   * loop. Errors: EIO (metadata unreadable or breaking its format).
   */
  mapping(offset: GuestOffset, lengthBytes: number): Mapping | Promise<Mapping>;

  /**
   * Bytes of a range that `mapping` called opaque; for a protocol driver of any range. Fills the whole buffer:
   * what lies past the host file's end is zeros.
   */
  read?(offset: GuestOffset, buffer: Uint8Array): Promise<void>;

  /** Protocol drivers: whether what is tried at once has a chance now, so that nobody prepares it in vain. */
  readonly worksAtOnce?: boolean;

  /**
   * Protocol drivers: `read` in this turn of the event loop, waiting for nothing. False: it cannot be told that this is possible, or it
   * has failed, and the buffer holds anything.
   */
  readAtOnce?(offset: GuestOffset, buffer: Uint8Array): boolean;

  /**
   * Protocol drivers that know: whether the storage keeps bytes for the start of a range (false: a hole), and
   * for how many bytes that holds. Cheap enough for block status, not for every request.
   */
  stores?(
    offset: HostOffset,
    lengthBytes: number,
  ): Promise<{ stored: boolean; lengthBytes: number }>;

  /** A host file descriptor whose offsets are this node's: the data plane may read and write it directly. */
  readonly hostFd?: number | undefined;
  /**
   * The same file, opened another time, for nothing but fdatasync(2) by the data plane: the kernel tells each open file of a lost
   * write once, so what that one is told of, `flush` is told of too. Undefined while there is none, and where a sync may take as
   * long as a server likes.
   */
  readonly syncFd?: number | undefined;
  /** A sync of `syncFd` has failed: from now on no flush succeeds. */
  syncHasFailed?(error: BlockError): void;
  /** Format drivers: `flush` would now do no more than flush the file below. */
  readonly flushesFileAlone?: boolean;
  /**
   * As `hostFd`, of a file opened for direct I/O, and for reading alone: the data plane may read blocks of
   * DIRECT_BLOCK_BYTES with it. Writes have to be ordered with those that are not aligned: they are the driver's.
   */
  readonly directFd?: number | undefined;
  /**
   * Protocol drivers with `hostFd`: the data plane is about to let workers write up to `end`, in this turn of the event loop and until
   * it has closed the view. False: it must not now; those requests fault.
   */
  lend?(end: HostOffset): boolean;
  /** Protocol drivers of what lies on another machine, where others may change it unseen. */
  readonly remote?: RemoteState;

  /**
   * For drivers whose guest may lie as it is in one file: the node of the file whose bytes, from its start to the image's end,
   * are the guest's and stay so whatever is written there; null when there is none. From then on others may write it, past
   * its end too. Drivers that map all of such an image as one run need none. Errors: EIO.
   */
  flatFile?(): Promise<Node | null>;

  /** Looks at the length of that file again, which a passthrough handle may have changed. Raw images have it at once. */
  reloadLength?(): Promise<void>;

  /** After `reloadLength`: the length to grow to, where the file alone has grown; less than that, or none, when it has not. */
  readonly grownBytes?: number;

  /**
   * Takes note of what others have written past the length that this instance knows: workers write a cluster whose end lies
   * past the end of the file. At once, and never shorter.
   */
  noticeGrowth?(): void;

  /** A request has found the image corrupt, and marked it: it takes no more writes until it is repaired. */
  readonly isMarkedCorrupt?: boolean;

  /** Bytes of mapping metadata in memory, which `OpenRequest.cacheBytes` bounds; for `status`. */
  readonly metadataBytes?: number;

  /** Protocol drivers: a write past the end grows the file, and the range check allows it. */
  readonly growsOnWrite?: boolean;

  /**
   * Block status looks for holes of the host file inside `data` ranges (raw; preallocated metadata). A function where
   * that costs something to find out: it is asked when block status needs it, and remembers its answer. Where that cannot be
   * found out it is false, which never says anything wrong of the bytes.
   */
  readonly holesMeanZero?: boolean | (() => Promise<boolean>);
  /** Space is given back by holes in a data file, without a change of mapping: block status shows those as holes. */
  readonly punchesDataFile?: boolean;

  /**
   * Writes the whole buffer or throws; never half of it without an error. When it returns, the write survives
   * SIGKILL of every process of ours, but not a power cut before `flush`. Errors: ENOSPC, EIO, EROFS.
   * The buffer is the caller's again only after the promise ends; a driver never writes to it.
   */
  write?(offset: GuestOffset, buffer: Uint8Array): Promise<void>;

  /**
   * `write` in this turn of the event loop, waiting for nothing: no disk, no lock, no checkpoint. False: it is not possible, or has
   * failed; the range holds what it did or what was to be written, a part of each or of a protocol driver anything, and `write` follows. Errors: none that `write`
   * would not meet too. `cluster`, with `copiesAtOnce`: all of the cluster that the write lies in, as the node reads in this turn,
   * in memory that the driver may change.
   */
  writeAtOnce?(offset: GuestOffset, buffer: Uint8Array, cluster?: Uint8Array | null): boolean;

  /** `writeAtOnce` copies clusters, and takes what others have read of them. May change at any time: it says what is worth reading. */
  readonly copiesAtOnce?: boolean;

  /**
   * As `write`, of one whole cluster (at the image's end: what there is of it), packed where that makes it smaller.
   */
  writeCompressed?(offset: GuestOffset, buffer: Uint8Array): Promise<void>;

  /**
   * Names another backing file, or none, in the header, durably. What the guest sees is the caller's to keep as it is.
   * Drained. Errors: EINVAL for a name that does not fit.
   */
  changeBacking?(link: BackingLink | null): Promise<void>;

  /**
   * Gives up everything that this layer has, durably: all of it reads from the backing afterwards. Cut short, each cluster is
   * as it was or given up. Drained, and the backing shows the same already. Errors: EIO.
   */
  makeEmpty?(): Promise<void>;

  /** The range reads as zeros afterwards, whatever the alignment. */
  writeZeroes?(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void>;

  /**
   * Copies into this layer what is read there through it already: these bytes, or zeros for null, go where this layer has
   * nothing, and what it has stays. A guest's write at the same time wins, before or after. The range begins at a
   * cluster and ends at one, or at the image's end. Copy-on-read and stream. Errors: as `write`.
   */
  populate?(offset: GuestOffset, lengthBytes: number, bytes: Uint8Array | null): Promise<void>;

  /**
   * As `write` (or, `populate`, as that) of bytes that lie in a file of the host, which the host copies by itself. Errors: of
   * kind unsupported where it cannot; any other just as well: the caller then does it with the bytes, and meets it again.
   */
  copyIn?(offset: GuestOffset, source: HostRange, how: CopyInHow): Promise<void>;

  /** Protocol drivers: all of it is in memory (tmpfs); a request waits for a disk only where the host swaps. */
  readonly isInMemory?: boolean;

  /** Protocol drivers: so many copies at once are to follow (`copyIn`), and what those need may begin. At any moment; never fails. */
  expectCopies?(count: number): void;

  /** As `write`, for a range that is to read as zeros and should take no space (a guest's discard or punch). */
  discard?(offset: GuestOffset, lengthBytes: number): Promise<void>;

  /**
   * The content stays, and later writes of the range need no new space where the format can promise that
   * (fallocate mode 0). Without it, allocating is a promise the format cannot give, and succeeds.
   */
  allocate?(offset: GuestOffset, lengthBytes: number): Promise<void>;

  /**
   * Formats with tables: as `allocate`, of a range that reads as zeros, so that later writes change no table where that can
   * be. `space`: the host's space is taken too. Drained.
   */
  preallocate?(
    offset: GuestOffset,
    lengthBytes: number,
    options: { readonly space: boolean },
  ): Promise<void>;

  /** Everything answered before the call survives a power cut when it returns. A failed flush never succeeds later by itself. */
  flush(): Promise<void>;

  /** New length in bytes. Growing shows zeros, also where a backing is longer. Called drained. */
  resize?(lengthBytes: number): Promise<void>;

  /**
   * The data file that has every byte of the guest, at the guest's offsets, so that this image's own file and its
   * backing may be thrown away; null while there is none. Formats with such a data file alone.
   */
  standsAlone?(): Promise<Node | null>;
  /** Of formats that keep snapshots in the image. An instance that shows one of them has none itself. */
  readonly snapshots?: InternalSnapshots;

  /** Bytes that the image takes on its host, for st_blocks. Cheap. */
  allocatedBytes(): Promise<number>;

  /** Backing link as the image names it; null when none. Needed before the backing is opened. */
  readonly backingLink: BackingLink | null;

  /** Dirty bitmaps that the image keeps; without it the format has none. */
  readonly bitmapStore?: BitmapStore;

  /**
   * Protocol drivers: after it nothing changes the file any more, `close` neither, so that the image's lock may be given back although
   * what reads from the file still has it open. Called once, drained, before `close`, when the format above has closed.
   */
  settle?(): Promise<void>;

  /** Flushes what is pending, gives everything back. Called once, drained; also after errors. */
  close(): Promise<void>;
}

export type CopyInHow = 'write' | 'populate';

/** What a driver knows of a remote file. */
export interface RemoteState {
  /** Differs when the content does (ETag, Last-Modified, length); null where the server does not tell. */
  readonly version: string | null;
  /** The content has changed since the opening: every request fails with ESTALE from then on. */
  readonly isStale: boolean;
  /** The server takes writes. */
  readonly isWritable: boolean;
}

export interface OpenRequest {
  /** The protocol node below: all I/O on the image's own file goes through it. */
  readonly file: Node;
  /** Path or URL, for messages and for resolving relative names. */
  readonly path: string;
  readonly readOnly: boolean;
  /** The id of the internal snapshot to show, read-only; null for the image's active state. */
  readonly snapshot: string | null;
  /** Upper bound of the driver's cached mapping metadata, in bytes (`--l2-cache-size`). */
  readonly cacheBytes: number;
  /** Records of answered changes of mapping; null when the caller needs no survival of SIGKILL (offline tools). */
  readonly journal: RestartJournal | null;
  /** What punched ranges do (`--discard`). */
  readonly discard: 'unmap' | 'ignore';
  /**
   * For an image whose format was probed, not declared: the name of the format that these first bytes would be
   * probed as, null for none. The raw driver refuses (EPERM) a guest's write to the first sector that would make
   * it another format's header. Null when the format was declared.
   */
  readonly probeGuard: ((head: Uint8Array) => string | null) | null;
  /** Keys that may open this image, for formats that encrypt. Null: only mapping is wanted, and no key is needed. */
  readonly secrets: (() => Promise<readonly Secret[]>) | null;
  readonly log: Log;
  /** The node that this instance will belong to: its name, for messages. */
  readonly nodeName: string;
  /**
   * The backing node, set by the graph after `open` returned and before the first request; null without one.
   * A format driver reads copy-on-write data through it.
   */
  readonly backing: () => Node | null;
  /**
   * Opens a file that the header names and that holds the guest's bytes, with the chain below it: through the gate and
   * with locks, like a backing file, but for writing when this image is. While it is open for writing nobody else has
   * it. The graph closes it after this instance. Called inside `open` alone. Errors: those of a backing file; ELOOP for
   * a file that is this image or one above it; EBUSY when another image of this process has it open.
   */
  readonly openDataFile: (link: DataFileLink) => Promise<Node>;
  /**
   * Reads what the guest sees of this node now, zeros past its end: for copy-on-write. A driver does not know how its own
   * opaque and backing ranges are read together; the node does.
   */
  readonly readGuest: (offset: GuestOffset, buffer: Uint8Array) => Promise<void>;
  /** `readGuest` in this turn of the event loop; false when that would have to wait, or has failed. */
  readonly readGuestAtOnce: (offset: GuestOffset, buffer: Uint8Array) => boolean;
  /** Says that the guest range maps elsewhere now; see `MappingChange`. */
  readonly mappingChanged: (change: MappingChange) => void;
  /** The node's dirty bitmaps: a format that keeps some puts them there in `open`, and saves those that are persistent. */
  readonly dirtyBitmaps: DirtyTracking;
  /**
   * Resolves when every request that could still use an old mapping of this node has ended: the engine's own
   * that were in flight at the call, and the workers' (shootdown). Before it, no host cluster that was unmapped
   * may be freed, punched or reused. Never awaited by a request (it would wait for itself): a task of its own,
   * after the checkpoint that made the unmapping durable, awaits it and then frees.
   */
  readonly quiesce: () => Promise<void>;
}

export interface OpenPathRequest {
  /** A path of the host, or a URL of one of the driver's `schemes`. */
  readonly path: string;
  readonly readOnly: boolean;
  /** Makes the file, which must not exist yet (EEXIST), mode 0644 less the umask. */
  readonly create: boolean;
  /**
   * While it is open for writing nobody makes it longer but this instance, and workers as far as they were let (`lend`): it may
   * have space taken ahead.
   */
  readonly growsHereAlone?: boolean;
  /** Host cache mode (`--cache`): page cache with real flushes, O_DIRECT, flushes ignored. */
  readonly cache: 'writeback' | 'none' | 'unsafe';
  readonly log: Log;
  /** It is only looked at, a regular file of a file system of this machine, whose type this is. */
  readonly lookedAtOn?: number | null;
  /** Protocol drivers with `schemes`: what servers may want to see. */
  readonly credentials?: readonly RemoteCredential[];
}

/** A change of mapping that the translation table must follow before anything it freed is used again. */
export interface MappingChange {
  readonly start: GuestOffset;
  readonly lengthBytes: number;
  /**
   * The bytes are what they were, and where they lie now is known, or will be at the end of this turn: whoever reads the range
   * beside the engine need not come here first.
   */
  readonly staysReadable?: boolean;
}

/** Direct I/O has offset, length and memory in multiples of this: no disk in use has larger blocks. */
export const DIRECT_BLOCK_BYTES = 4096;

/** How many bytes of a file's start `probe` is given, fewer for a shorter file. */
export const PROBE_BYTES = 2048;

export interface DriverDescriptor {
  readonly name: string;
  readonly role: DriverRole;
  readonly capabilities: DriverCapabilities;
  /** Protocol drivers: the schemes of the URLs that they open, in lower case; without, it opens paths of the host. */
  readonly schemes?: readonly string[];
  /** Loads the modules that the first `open` would load: for processes that open many images, ahead of time. */
  load?(): Promise<void>;
  /** 0 (not mine) to 100 (surely). Pure, and safe for any bytes. */
  probe?(head: Uint8Array, fileLengthBytes: number): number;
  /** Reads the header alone. Errors: EIO kind invalid-image, EOPNOTSUPP. */
  inspect?(file: Node, path: string): Promise<ImageDescription>;
  /** Format and filter drivers. Errors: kind invalid-image, unsupported, and those of the file below. */
  open?(request: OpenRequest): Promise<DriverInstance>;
  /** Protocol drivers. Errors: those of the host. */
  openPath?(request: OpenPathRequest): Promise<DriverInstance>;
  readonly createOptions: readonly CreateOption[];
  /** Refuses (EINVAL, naming the option) what `create` cannot do, before any file is touched. */
  checkCreate?(request: CreatePlan, dataFile: Node | null): void;
  /** The header has the format of a backing file: where nobody names it, what the file is found to be when it is made. */
  readonly recordsBackingFormat?: boolean;
  /**
   * The data file that a new image will have; null for none. An image that is given no size is as large as one that
   * was there before. Errors: EINVAL naming the option.
   */
  createDataFile?(options: ReadonlyMap<string, string>): DataFilePlan | null;
  create?(request: CreateRequest): Promise<void>;
  check?(request: CheckRequest): Promise<CheckResult>;
}
