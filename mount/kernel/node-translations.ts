/**
 * What the workers may do alone: keeps the translation table in step with the node graph, for every view that is used.
 *
 * A view is in the table from its first fault until its next drained section (close, resize, pivot), which takes
 * it out, waits for the workers, and lets the next fault bring it back with what is true then.
 */
import { assert, present } from '../../src/base/assert.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { errnoName } from '../../src/base/errno.ts';
import { isPowerOfTwo } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { MappingChange } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import type { Translation } from '../../src/translation/entry-writer.ts';
import type { PageAlong } from '../../src/translation/pages-along.ts';
import {
  COPY,
  DIRECT_FILE,
  ENTRIES_PER_SLICE,
  ONE_PAGE,
  pageBytesOf,
} from '../../src/translation/table-layout.ts';
import type { TranslationTable } from '../../src/translation/translation-table.ts';
import type { Entry } from '../directory.ts';
import { walkPages } from './page-walk.ts';

/** Page size of a view without clusters that is not one page (a raw image whose first sector is guarded). */
const UNCLUSTERED_PAGE_BITS = 16;

/** Slices behind one that is new to the table that are filled too: a guest that jumps about would fault once for each. */
const AHEAD_SLICES = 4;
/** Slices that wait for that, of all views: further ones are left to their faults. */
const MAX_AHEAD = 64;
/** The first look at a slice may only begin to load what tells of it. */
const AHEAD_LOOKS = 3;

interface HostFile {
  readonly index: number;
  users: number;
}

interface TranslatedView {
  readonly number: number;
  readonly root: Node;
  readonly pageBits: number;
  /** What the page size was taken from. */
  readonly clusterBytes: number;
  readonly writable: boolean;
  /** File nodes that its entries may name. */
  readonly files: Set<Node>;
  readonly chain: readonly Node[];
  readonly isDraining: () => boolean;
  readonly onChange: (change: MappingChange) => void;
  readonly onFlush: () => void;
  /** Takes it out of the table; the next fault brings it back. */
  readonly close: () => Promise<void>;
}

export class NodeTranslations {
  readonly #table: TranslationTable;
  readonly #workersSync: boolean;
  readonly #views = new Map<number, TranslatedView>();
  /** Views that workers may still use, though they are out of the table. */
  readonly #closing = new Map<number, Promise<void>>();
  readonly #hostFiles = new Map<Node, HostFile>();
  /** Ranges of pages that were taken away in this turn and may be read on. */
  #refills: { readonly view: TranslatedView; readonly first: number; readonly last: number }[] = [];
  /** Slices that are still to be filled ahead, one in a turn. */
  #ahead: { readonly view: TranslatedView; readonly firstPage: number; looks: number }[] = [];
  /** Views whose every request is to come to the control plane. */
  readonly #barred = new Set<number>();

  /** `workersSync`: false with passthrough, where a kernel makes files longer by itself, which images take up at an FSYNC. */
  constructor(table: TranslationTable, options: { readonly workersSync: boolean }) {
    this.#table = table;
    this.#workersSync = options.workersSync;
  }

  /** Memory of the translations that are kept now. */
  get bytes(): number {
    return this.#table.residentBytes;
  }

  /**
   * A fault of a range has been served: gives the workers what is known of it now, so that the next request does not
   * fault. Where the slice is new to the table, all of the slice, if it is worth its place there.
   */
  filled(entry: Entry, offset: number, lengthBytes: number): void {
    const { view } = entry;
    // The request has ended: a drained section may have begun in the meantime.
    if (view.root === null || view.isDraining || lengthBytes === 0) return;
    if (this.#barred.has(entry.nodeId)) return;
    const known = this.#views.get(entry.nodeId) ?? this.#openView(entry, view.root);
    if (known === null) return;
    assert(known.root === view.root, 'a view changes its root only in a drained section');
    if (known.clusterBytes !== known.root.driver.clusterBytes) {
      // It comes back with other pages when no worker counts in these any more.
      void known.close();
      return;
    }
    if (known.pageBits === ONE_PAGE) {
      this.#fill(known, 0, 1);
      return;
    }
    const pageBytes = pageBytesOf(known.pageBits);
    const first = Math.floor(offset / pageBytes);
    const last = Math.floor((offset + lengthBytes - 1) / pageBytes);
    for (let page = first; page <= last; ) {
      const slice = page - (page % ENTRIES_PER_SLICE);
      const next = slice + ENTRIES_PER_SLICE;
      if (this.#table.isResident(known.number, page)) {
        this.#fill(known, page, Math.min(last + 1, next) - page);
      } else if (this.#table.admits(known.number, page)) {
        const pages = Math.ceil(known.root.lengthBytes / pageBytes);
        this.#fill(known, slice, Math.min(next, pages) - slice);
        this.#fillAhead(known, next);
      }
      page = next;
    }
  }

  #fillAhead(view: TranslatedView, firstPage: number): void {
    if (!this.#table.hasRoom) return;
    const isIdle = this.#ahead.length === 0;
    for (let i = 0; i < AHEAD_SLICES && this.#ahead.length < MAX_AHEAD; i++) {
      this.#ahead.push({ view, firstPage: firstPage + i * ENTRIES_PER_SLICE, looks: 0 });
    }
    if (isIdle) setImmediate(() => this.#nextAhead());
  }

  #nextAhead(): void {
    const next = this.#ahead[0];
    if (next === undefined) return;
    if (!this.#isFilledAhead(next.view, next.firstPage) && ++next.looks < AHEAD_LOOKS) {
      this.#ahead.push(next);
    }
    this.#ahead.shift();
    if (this.#ahead.length > 0) setImmediate(() => this.#nextAhead());
  }

  /** False: not yet. */
  #isFilledAhead(view: TranslatedView, firstPage: number): boolean {
    const left = Math.ceil(
      view.root.isOpen ? view.root.lengthBytes / pageBytesOf(view.pageBits) : 0,
    );
    const pages = Math.min(ENTRIES_PER_SLICE, left - firstPage);
    if (pages <= 0 || !this.#isServed(view) || !this.#table.hasRoom) return true;
    if (this.#table.isResident(view.number, firstPage)) return true;
    const found = this.#walk(view, firstPage, pages);
    // A slice that is there is filled page by page: one of which little is known is better not there.
    if (found[0]?.permissions === 0 || found.at(-1)?.permissions === 0) return false;
    this.#table.fill(view.number, firstPage, found);
    return true;
  }

  #fill(view: TranslatedView, firstPage: number, pages: number): void {
    this.#table.fill(view.number, firstPage, this.#walk(view, firstPage, pages));
  }

  #walk(view: TranslatedView, firstPage: number, pages: number): Translation[] {
    const onePage = view.pageBits === ONE_PAGE;
    return walkPages({
      root: view.root,
      writable: view.writable,
      copies: view.writable && copiesPages(view) ? COPY : 0,
      pageBytes: onePage ? Math.max(1, view.root.lengthBytes) : pageBytesOf(view.pageBits),
      firstPage,
      pages,
      fileOf: (file) => this.#fileOf(view, file),
    });
  }

  /** Whether the bytes of a page that has come along are what its view reads there. Ask in the turn in which they are used. */
  isInForce(entry: Entry, offset: number, page: PageAlong): boolean {
    const { nodeId } = entry;
    return this.#table.isInForce(nodeId, Math.floor(offset / page.lengthBytes), page);
  }

  /** Takes a view out of the table and keeps it out until `allow`; no worker uses it when this resolves. */
  async bar(nodeId: number): Promise<void> {
    this.#barred.add(nodeId);
    await (this.#views.get(nodeId)?.close() ?? this.#closing.get(nodeId));
  }

  allow(nodeId: number): void {
    this.#barred.delete(nodeId);
  }

  #openView(entry: Entry, root: Node): TranslatedView | null {
    if (this.#closing.has(entry.nodeId)) return null;
    const pageBits = pageBitsOf(root);
    if (pageBits === null) return null;
    if (!this.#table.openView(entry.nodeId, pageBits, root.lengthBytes)) return null;
    const chain: Node[] = [];
    for (let node: Node | null = root; node !== null; node = node.backing) chain.push(node);
    const onChange = (change: MappingChange): void => this.#revoke(entry.nodeId, change);
    const close = async (): Promise<void> => {
      await this.#closeView(entry.nodeId);
      entry.view.drainListeners.delete(close);
    };
    const view: TranslatedView = {
      number: entry.nodeId,
      root,
      pageBits,
      clusterBytes: root.driver.clusterBytes,
      writable: !entry.view.readOnly && !entry.view.detectsZeroes,
      files: new Set(),
      chain,
      isDraining: () => entry.view.isDraining,
      onChange,
      onFlush: () => this.#syncWith(view),
      close,
    };
    for (const node of chain) {
      node.mappingListeners.add(onChange);
      node.shootdown ??= () => this.#table.quiesce(null);
    }
    this.#views.set(entry.nodeId, view);
    entry.view.drainListeners.add(close);
    // A dirty bitmap that begins to record may ask for smaller pages.
    root.dirtyBitmaps.listeners.add(close);
    for (const mark of marksOf(root)) mark.listeners.add(view.onFlush);
    view.onFlush();
    return view;
  }

  #closeView(number: number): Promise<void> {
    const known = this.#closing.get(number);
    if (known !== undefined) return known;
    const closing = this.#takeOut(number).finally(() => this.#closing.delete(number));
    this.#closing.set(number, closing);
    return closing;
  }

  async #takeOut(number: number): Promise<void> {
    const view = this.#views.get(number);
    if (view === undefined) return;
    this.#views.delete(number);
    this.#ahead = this.#ahead.filter((ahead) => ahead.view !== view);
    for (const node of view.chain) node.mappingListeners.delete(view.onChange);
    view.root.dirtyBitmaps.listeners.delete(view.close);
    for (const mark of marksOf(view.root)) mark.listeners.delete(view.onFlush);
    await this.#table.closeView(number);
    this.#noteSyncFailure(view);
    for (const file of view.files) this.#forgetFile(file);
  }

  // While it is true that an FSYNC of the view has nothing left to do but to sync the file. Called before a change begins.
  #syncWith(view: TranslatedView): void {
    this.#table.syncWith(view.number, this.#workersSync ? syncFdOf(view.root) : null);
  }

  /** A worker's sync for an FSYNC of the view has failed: no later flush succeeds. */
  syncHasFailed(entry: Entry): void {
    const view = this.#views.get(entry.nodeId);
    // Of one that is out of the table it was noticed then.
    if (view !== undefined) this.#noteSyncFailure(view);
  }

  #noteSyncFailure({ number, root }: TranslatedView): void {
    const errno = this.#table.syncFailure(number);
    if (errno !== 0 && root.file?.isOpen === true)
      root.file.driver.syncHasFailed?.(syncFailure(errno));
  }

  #revoke(number: number, change: MappingChange): void {
    const view = this.#views.get(number);
    if (view === undefined || change.lengthBytes === 0) return;
    const pageBytes =
      view.pageBits === ONE_PAGE ? Number.POSITIVE_INFINITY : pageBytesOf(view.pageBits);
    const firstPage = Math.floor(change.start / pageBytes);
    const lastPage = Math.floor((change.start + change.lengthBytes - 1) / pageBytes);
    this.#table.revoke({ view: number, firstPage, lastPage });
    if (change.staysReadable === true) this.#refillLater(view, firstPage, lastPage);
  }

  // Not here: the change is journaled first, before anybody writes where it has led to.
  #refillLater(view: TranslatedView, first: number, last: number): void {
    if (view.pageBits !== ONE_PAGE && last - first >= ENTRIES_PER_SLICE) return;
    // Who reads in advance for a reader has to see how far that one is.
    if (view.root.copyOnRead !== null) return;
    this.#refills.push({ view, first, last });
    if (this.#refills.length > 1) return;
    queueMicrotask(() => {
      const refills = this.#refills;
      this.#refills = [];
      for (const refill of refills) this.#refill(refill.view, refill.first, refill.last);
    });
  }

  /** Not taken out, nor about to be: in a drained section the graph may be on the way to another one. */
  #isServed(view: TranslatedView): boolean {
    const { number, root } = view;
    if (this.#views.get(number) !== view || view.isDraining() || this.#barred.has(number))
      return false;
    return root.isOpen && view.clusterBytes === root.driver.clusterBytes;
  }

  #refill(view: TranslatedView, first: number, last: number): void {
    const { number } = view;
    if (!this.#isServed(view)) return;
    for (let page = first; page <= last; ) {
      const next = page - (page % ENTRIES_PER_SLICE) + ENTRIES_PER_SLICE;
      const end = Math.min(last + 1, next);
      if (this.#table.isResident(number, page)) this.#fill(view, page, end - page);
      page = end;
    }
  }

  #fileOf(view: TranslatedView, file: Node): number | null {
    const { hostFd, directFd } = file.driver;
    const descriptor = hostFd ?? (directFd === undefined ? null : directFd + DIRECT_FILE);
    if (descriptor === null) return null;
    const known = this.#hostFiles.get(file);
    if (known !== undefined) {
      if (!view.files.has(file)) known.users++;
      view.files.add(file);
      return known.index;
    }
    const index = this.#table.addFile(descriptor);
    if (index === null) return null;
    this.#hostFiles.set(file, { index, users: 1 });
    view.files.add(file);
    return index;
  }

  #forgetFile(file: Node): void {
    const known = present(this.#hostFiles.get(file), 'a file that a view used is known');
    if (--known.users > 0) return;
    this.#hostFiles.delete(file);
    this.#table.removeFile(known.index);
  }
}

const marksOf = (root: Node) => [
  root.flushMark,
  ...(root.file === null ? [] : [root.file.flushMark]),
];

/** What syncing is all that a flush would do now; null: it has more to do, or is the engine's. */
const syncFdOf = (root: Node): number | null => {
  const { file } = root;
  if (!root.flushMark.isSet || root.readOnly || file === null || file.flushMark.hasFailed)
    return null;
  if (!root.isOpen || root.driver.flushesFileAlone !== true) return null;
  return file.driver.syncFd ?? null;
};

/** What fdatasync(2) has failed with. */
export const syncFailure = (errno: number): BlockError => {
  const name = errnoName(errno);
  const kind = name === 'ENOSPC' || name === 'EDQUOT' ? 'no-space' : 'io';
  return new BlockError({ kind, errno: name, op: 'flush', message: `fdatasync failed: ${name}` });
};

/** log2 of the page size, not larger than a granule of a dirty bitmap; null for a view that the table cannot hold. */
const pageBitsOf = (root: Node): number | null => {
  const unit = mappingBitsOf(root);
  const { granularityBytes } = root.dirtyBitmaps;
  if (unit === null || granularityBytes === null) return unit;
  const granuleBits = Math.log2(granularityBytes);
  return unit === ONE_PAGE ? granuleBits : Math.min(unit, granuleBits);
};

/** log2 of the unit in which its layers are mapped. */
const mappingBitsOf = (root: Node): number | null => {
  const { clusterBytes, subclusterBytes = clusterBytes, lengthBytes } = root.driver;
  if (lengthBytes === 0) return null;
  if (subclusterBytes > 1) {
    const isPage = isPowerOfTwo(subclusterBytes) && subclusterBytes >= 512;
    return isPage ? Math.log2(subclusterBytes) : null;
  }
  const whole = root.driver.mapping(guestOffset(0), lengthBytes);
  const isOnePage = !(whole instanceof Promise) && whole.lengthBytes === lengthBytes;
  return isOnePage ? ONE_PAGE : UNCLUSTERED_PAGE_BITS;
};

/** Not where pages are finer than clusters, for the sake of a dirty bitmap. */
const copiesPages = ({ root: { driver }, pageBits }: TranslatedView): boolean =>
  driver.copiesAtOnce === true && driver.clusterBytes === pageBytesOf(pageBits);
