/**
 * The directory of views: which images the sources of a mount hold, under which names, and what has become of them.
 *
 * It owns the table of entries. When it is brought up to date says scan-schedule.ts; entries look after themselves
 * (image-entry.ts).
 */
import { BlockError, toBlockError } from '../src/base/block-error.ts';
import type { OwnLayers } from '../src/block/graph.ts';
import type { Node } from '../src/block/node.ts';
import type { View } from '../src/block/view.ts';
import type { KernelPages, ViewHolding } from './backend.ts';
import { type Activity, alwaysActive } from './catalog/activity.ts';
import { BackgroundWork } from './catalog/background.ts';
import {
  blockedError,
  type CatalogOptions,
  type CatalogStatus,
} from './catalog/catalog-options.ts';
import type { EntryContext } from './catalog/entry-context.ts';
import { type CatalogEntry, EntryTable } from './catalog/entry-table.ts';
import type { HandOverScene } from './catalog/hand-over.ts';
import { idleTooLong } from './catalog/idle-views.ts';
import type { ImageEntry } from './catalog/image-entry.ts';
import { type Inspection, Inspector } from './catalog/inspection.ts';
import type { LayerClaim } from './catalog/layer-claim.ts';
import {
  type IgnoredFile,
  listSources,
  mapBounded,
  PARALLEL_LOOKS,
  resolveSource,
  type Source,
} from './catalog/listing.ts';
import type { SnapshotScene } from './catalog/live-snapshots.ts';
import { pivotOver, pivotTo, reopen } from './catalog/pivot.ts';
import { type ScanResult, scan } from './catalog/scan.ts';
import { ScanSchedule } from './catalog/scan-schedule.ts';
import { SnapshotEntry } from './catalog/snapshot-entry.ts';
import { attributesOfPlace, type Space, spaceOfPlace } from './catalog/source-place.ts';
import { SourceWatch } from './catalog/source-watch.ts';
import { noStandIns, withStandIns } from './catalog/stand-ins.ts';
import { statusOf } from './catalog/view-status.ts';
import { WithdrawnViews } from './catalog/withdrawn-views.ts';
import type { Directory, Entry, FileAttributes } from './directory.ts';

/** Their locks are asked for together. */
const PARALLEL_SETTLINGS = 4 * PARALLEL_LOOKS;

/** How often idle views are looked for. */
const IDLE_SWEEP_MS = 1000;

/**
 * Scans the sources for the first time. Errors: a source that is not there or cannot be read; with a single file as the
 * only source also that image's own error, and the chain is opened to see it; `nodeIds`' errors. Images in directories
 * that cannot be opened are in `status`, not thrown.
 */
export const openCatalog = async (options: CatalogOptions): Promise<Catalog> => {
  const sources = await Promise.all(
    options.sources.map((source) => resolveSource(source, options.mountpoint)),
  );
  const catalog = new Catalog(options, sources);
  try {
    await catalog.rescan();
    await catalog.requireSingleSource();
    return catalog;
  } catch (error) {
    await catalog.close().catch(() => undefined);
    throw error;
  }
};

export class Catalog implements Directory {
  readonly #options: CatalogOptions;
  readonly #sources: readonly Source[];
  readonly #inspector: Inspector;
  readonly #context: EntryContext;
  readonly #watch: SourceWatch;
  readonly #table = new EntryTable();
  readonly #nameListeners = new Set<(name: string) => void>();
  readonly #lostListeners = new Set<(nodeId: number) => void>();
  readonly #activity: Activity;
  readonly #scans: ScanSchedule;
  readonly #withdrawn: WithdrawnViews;
  /** Closings that a release or a scan began; `close` waits for them. */
  readonly #background: BackgroundWork;
  readonly #idleTimer: NodeJS.Timeout;
  #ignored: readonly IgnoredFile[] = [];
  #knownIgnored: ReadonlyMap<string, string> = new Map();

  /** Use `openCatalog`. */
  constructor(options: CatalogOptions, sources: readonly Source[]) {
    this.#options = options;
    this.#sources = sources;
    this.#background = new BackgroundWork(options.log);
    this.#inspector = new Inspector({ ...options, answered: () => this.#scans.rescanSoon() });
    this.#activity = options.activity ?? alwaysActive();
    this.#context = this.#createContext();
    this.#watch = new SourceWatch({
      sources,
      isImage: (path) => this.#inspector.isImage(path),
      changed: () => this.#background.add('scan', this.rescan()),
    });
    this.#scans = new ScanSchedule({
      watch: this.#watch,
      background: this.#background,
      log: options.log,
      scan: () => this.#scan(),
      forgetRemote: () => this.#inspector.forgetRemote(),
    });
    this.#withdrawn = new WithdrawnViews(this.#table, this.#scans);
    this.#idleTimer = setInterval(() => this.#closeIdle(), IDLE_SWEEP_MS).unref();
  }

  async rootAttributes(): Promise<FileAttributes> {
    return attributesOfPlace(this.#sources);
  }

  async rootExtendedAttributes(): Promise<ReadonlyMap<string, string>> {
    const { socketPath, pid } = this.#options;
    return new Map([
      ['user.vdiskfs.socket', socketPath],
      ['user.vdiskfs.pid', String(pid)],
    ]);
  }

  async lookup(name: string): Promise<Entry | null> {
    await this.#scans.refresh();
    const broken = this.#table.byName(name);
    if (this.#noticesChange()) await this.#scans.changedRemotely();
    // One that has been mended gets another node, and this is where a kernel hears of it.
    if (broken !== null && broken.error !== null && (await broken.isMended())) {
      this.#watch.markDirty();
      await this.#scans.refresh();
    }
    const entry = this.#table.byName(name);
    if (entry !== null) entry.known = true;
    return entry;
  }

  async entries(): Promise<readonly Entry[]> {
    await this.#scans.refresh();
    const { listed } = this.#table;
    for (const entry of listed) entry.known = true;
    return listed;
  }

  byNodeId(nodeId: number): Entry | null {
    return this.#table.byNodeId(nodeId);
  }

  forgotten(nodeId: number): void {
    const entry = this.#table.byNodeId(nodeId);
    if (entry === null) return;
    entry.known = false;
    if (entry.gone && entry.handles === 0) this.#table.drop(entry);
  }

  opened(entry: Entry): void {
    const image = this.#table.byNodeId(entry.nodeId);
    if (image !== null) image.handles++;
  }

  released(entry: Entry): void {
    const image = this.#table.byNodeId(entry.nodeId);
    if (image === null) return;
    image.handles = Math.max(0, image.handles - 1);
    image.idleSinceMs = performance.now();
    if (image.handles > 0) return;
    if (image.gone) void this.#background.add(image.name, this.#retire(image));
    else void this.#background.add(image.name, image.settle());
  }

  async space(): Promise<Space> {
    const space = await spaceOfPlace(this.#sources);
    if (space !== null) return space;
    // What is there is all there is.
    const { views } = await this.status();
    const totalBytes = views.reduce((sum, view) => sum + view.allocatedBytes, 0);
    return { totalBytes, freeBytes: 0, availableBytes: 0 };
  }

  onNameChanged(listener: (name: string) => void): void {
    this.#nameListeners.add(listener);
  }

  onLost(listener: (nodeId: number) => void): void {
    this.#lostListeners.add(listener);
  }

  /** Why images that are shown cannot be opened, as far as is known. */
  get failures(): readonly BlockError[] {
    return this.#table.listed.flatMap((entry) => {
      const failure = ('refusal' in entry ? entry.refusal : null) ?? entry.error;
      return failure === null ? [] : [failure];
    });
  }

  async status(): Promise<CatalogStatus> {
    const views = await mapBounded(this.#table.listed, PARALLEL_LOOKS, statusOf);
    return { views, ignored: this.#ignored };
  }

  /** Of the view of an image, for operations on its snapshots; null for another view. */
  snapshotScene(view: View, pages: KernelPages): SnapshotScene | null {
    const image = this.#table.images.find((entry) => entry.view === view);
    if (image === undefined) return null;
    return {
      image,
      pages,
      views: () =>
        this.#table.listed.flatMap((e) =>
          e instanceof SnapshotEntry && e.image === image ? [e] : [],
        ),
      rescan: () => this.#scans.rescanNow(),
    };
  }

  /** Of the view of an image, for handing it over; null for another view. */
  handOverScene(
    view: View,
    backend: { readonly pages: KernelPages; readonly holding: ViewHolding },
  ): HandOverScene | null {
    const scene = this.snapshotScene(view, backend.pages);
    if (scene === null) return null;
    const { image, pages, views: snapshots, rescan } = scene;
    return { image, pages, holding: backend.holding, activity: this.#activity, snapshots, rescan };
  }

  /** What is shown. */
  async images(): Promise<readonly ImageEntry[]> {
    await this.#scans.refresh();
    return this.#table.images;
  }

  /** The image of a view; null for another one. */
  imageOf(view: View): ImageEntry | null {
    return this.#table.images.find((entry) => entry.view === view) ?? null;
  }

  /** See `WithdrawnViews`. */
  reserve(path: string, reason: string): Promise<() => Promise<void>> {
    return this.#withdrawn.reserve(path, reason);
  }

  /** See `WithdrawnViews`. */
  claimLayers(claim: LayerClaim, reason: string): Promise<() => Promise<void>> {
    return this.#withdrawn.claimLayers(claim, reason);
  }

  /**
   * Opens the chain of a view that is open anew, in a drained section: with layers of its own, or as others have it. Errors:
   * those of the graph; the chain is as others have it then.
   */
  async reopen(view: View, ownLayers: OwnLayers | null): Promise<Node> {
    const image = this.imageOf(view);
    if (image === null) throw new BlockError({ kind: 'not-found', message: 'the view is gone' });
    return reopen(image, this.#options.graph, ownLayers);
  }

  /** See `pivotTo`, and `pivotOver`, which leaves nothing to be closed. */
  async pivot(
    view: View,
    target: Node,
    options: { readonly reopens: boolean },
  ): Promise<Node | null> {
    const image = this.imageOf(view);
    if (image === null) throw new BlockError({ kind: 'not-found', message: 'the view is gone' });
    const { graph, log, standIns = noStandIns } = this.#options;
    const scene = { image, graph, log, standIns };
    if (!options.reopens) return pivotTo(scene, target);
    await pivotOver(scene, target);
    return null;
  }

  /** A job has changed what lies below an open view: which images are used as backing is looked at again. */
  async chainChanged(view: View): Promise<void> {
    const image = this.#table.images.find((entry) => entry.view === view);
    if (image === undefined) return;
    await image.lookAtChain();
    await this.#scans.rescanNow();
  }

  /** See `ScanSchedule.rescan`. Errors: those of `openCatalog`. */
  rescan(): Promise<void> {
    return this.#scans.rescan();
  }

  /** With a single file as the only source: throws why it cannot be opened. */
  async requireSingleSource(): Promise<void> {
    const [source, second] = this.#sources;
    if (source === undefined || second !== undefined || source.isDirectory) return;
    const [entry] = this.#table.listed;
    if (entry !== undefined) {
      if (!entry.view.isHeld) await entry.view.open();
      return;
    }
    const message = this.#ignored[0]?.reason ?? 'it is not there';
    throw new BlockError({ kind: 'invalid-image', message, path: source.path, op: 'open' });
  }

  async close(): Promise<void> {
    clearInterval(this.#idleTimer);
    this.#watch.close();
    await this.#scans.close();
    await this.#background.settled();
    const errors: BlockError[] = [];
    await mapBounded(this.#table.all, PARALLEL_LOOKS, async (entry) => {
      await entry.dispose().catch((error: unknown) => {
        const failure = toBlockError(error, { op: 'close', path: entry.host.path });
        this.#options.log.error(entry.name, failure.describe());
        errors.push(failure);
      });
    });
    if (errors[0] !== undefined) throw errors[0];
  }

  async #scan(): Promise<void> {
    const { gate, mountpoint, nodeIds, format, standIns = noStandIns } = this.#options;
    const sinceMs = performance.now();
    const found = await listSources(this.#sources, gate, mountpoint);
    const listing = this.#withdrawn.apply(await withStandIns(found, standIns, this.#sources));
    const result = await scan(listing.candidates, {
      sinceMs,
      table: this.#table,
      inspector: this.#inspector,
      context: this.#context,
      format,
      nodeIds: async (keys) => (keys.length === 0 ? [] : nodeIds(keys)),
      directories: new Set(this.#sources.filter((s) => s.isDirectory).map((s) => s.path)),
      knownIgnored: this.#knownIgnored,
      originals: listing.originals ?? [],
    });
    this.#ignored = [...listing.ignored, ...result.ignored];
    await this.#adopt(result);
  }

  async #adopt(result: ScanResult): Promise<void> {
    this.#knownIgnored = new Map(result.ignoredHosts.map((i) => [i.host.stamp, i.reason]));
    const lost = this.#table.replace(result.entries);
    for (const { view, nodeId } of lost) {
      if (!view.isHeld) continue;
      view.letGo();
      for (const listener of this.#lostListeners) listener(nodeId);
    }
    const surplus = this.#table.surplus();
    for (const entry of surplus) entry.known = false;
    for (const entry of [...lost, ...surplus]) {
      if (entry.handles === 0) void this.#background.add(entry.name, this.#retire(entry));
    }
    // Readers of a base first give up writing it, then its overlays may be opened.
    await mapBounded(result.entries, PARALLEL_SETTLINGS, (entry) => entry.settle());
    for (const entry of result.entries) entry.report();
    this.#watch.follow(result.ignoredHosts.map((i) => i.host));
    for (const name of result.changedNames) {
      for (const listener of this.#nameListeners) listener(name);
    }
  }

  /** Closes an entry that is gone and not in use, and forgets it unless a kernel may still ask for it. */
  async #retire(entry: CatalogEntry): Promise<void> {
    await entry.dispose();
    if (!entry.known) this.#table.drop(entry);
  }

  #closeIdle(): void {
    if (this.#noticesChange()) void this.#background.add('scan', this.#scans.changedRemotely());
    for (const { name, view } of idleTooLong(this.#table.listed, performance.now()))
      void this.#background.add(name, view.close());
  }

  /** All of them are asked. */
  #noticesChange(): boolean {
    return this.#table.images.filter((entry) => entry.noticesChange()).length > 0;
  }

  #createContext(): EntryContext {
    const { graph, locks, log, readOnly, allowShrink, detectZeroes, format } = this.#options;
    const { blocked, begin } = this.#options;
    return {
      graph,
      locks,
      log,
      readOnly,
      allowShrink,
      detectZeroes,
      refusal: (nodeId, path) =>
        blocked.nodeIds.has(nodeId) || blocked.paths.has(path) ? blockedError(path) : null,
      begin,
      activity: this.#activity,
      inspect: async (candidate, patient) => {
        const inspection = await this.#inspector.inspect(candidate, { format, patient });
        return 'ignored' in inspection ? null : inspection;
      },
      writerBelow: (inspection, name) => this.#writerBelow(inspection, name),
      opened: (root) => this.#options.opened?.(root),
      noteRead: (name, offset, length) => this.#options.noteRead?.(name, offset, length),
      jobsOf: (view) => this.#options.jobsOf?.(view) ?? [],
      outdated: () => {
        this.#inspector.forgetRemote();
        this.#scans.rescanSoon();
      },
    };
  }

  async #writerBelow({ chain }: Inspection, name: string): Promise<ImageEntry | null> {
    for (const layer of chain.slice(1)) {
      const below = this.#table.byIdentity(layer.identity);
      if (below === null || below.readOnlyReason !== null) continue;
      // The last scan may not have been able to see it.
      below.usedBy ??= name;
      await below.settle();
      if (below.readOnlyReason === null) return below;
    }
    return null;
  }
}
