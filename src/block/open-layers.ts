/**
 * One layer of a chain at a time: its lock, its file, its format, and what a killed engine has left of it. Owns every open
 * format node with its lock and identity, and which files somebody has to himself. What lies below a layer, and who else uses it, is the
 * graph's (graph.ts).
 */
import { present } from '../base/assert.ts';
import { invalidImage, toBlockError } from '../base/block-error.ts';
import { readForCopyAtOnce } from './at-once.ts';
import { ExclusiveFiles, type ExclusiveUse } from './exclusive-files.ts';
import { type FileIdentity, keyOf } from './file-identity.ts';
import type { GraphOptions } from './graph.ts';
import type { BackingLink, DataFileLink } from './image-description.ts';
import { type ImageLock, noLocks } from './image-locks.ts';
import { Node } from './node.ts';
import { probeFormat, probeHead } from './probe.ts';
import { isUrl } from './remote-url.ts';

export interface LayerRequest {
  readonly identity: FileIdentity;
  /** Null probes. */
  readonly format: string | null;
  readonly readOnly: boolean;
  /** See `OpenImageOptions`; of the top layer alone. */
  readonly snapshot?: string | null;
  /** Identities of the layers above it, and of their data files. */
  readonly above: readonly string[];
  /** It was taken for this opening. */
  readonly exclusive?: boolean;
  readonly nodeName?: string | undefined;
}

export interface OpenedLayer {
  readonly node: Node;
  readonly link: BackingLink | null;
}

/** What the graph does for a layer. */
export interface LayerSurroundings {
  /** Errors: those of opening an image. */
  readonly openDataFile: (
    link: DataFileLink,
    owner: Node,
    above: readonly string[],
  ) => Promise<Node>;
  /** Never rejects: what fails is added to `errors`. */
  readonly closeDataFile: (file: Node, errors: unknown[]) => Promise<void>;
}

export class OpenLayers {
  readonly #options: GraphOptions;
  readonly #surroundings: LayerSurroundings;
  readonly #nodes = new Set<Node>();
  readonly #lockOf = new Map<Node, ImageLock>();
  readonly #identityOf = new WeakMap<Node, string>();
  readonly #exclusive = new ExclusiveFiles();
  /** What a node's file is taken as. */
  readonly #exclusiveOf = new Map<Node, string>();
  #nextName = 1;

  constructor(options: GraphOptions, surroundings: LayerSurroundings) {
    this.#options = options;
    this.#surroundings = surroundings;
  }

  /** Every open format node. */
  get nodes(): ReadonlySet<Node> {
    return this.#nodes;
  }

  /** See `keyOf`. */
  identityOf(node: Node): string {
    return present(this.#identityOf.get(node), 'an opened layer has an identity');
  }

  /** Of a layer and of the files that hold its guest's bytes. */
  identitiesOf(node: Node): string[] {
    return [this.identityOf(node), ...node.dataFiles.flatMap((file) => this.identitiesOf(file))];
  }

  /** Errors: EBUSY for a file that somebody has to himself. */
  refuseExclusive(identity: FileIdentity): void {
    this.#exclusive.refuse(keyOf(identity), identity.path);
  }

  /** Errors: EBUSY for a file that a node has open, or that somebody has to himself. */
  refuseOpen(identity: FileIdentity): void {
    const key = keyOf(identity);
    this.#exclusive.take(key, identity.path, 'target', this.#isOpen(key));
    this.#exclusive.giveBack(key);
  }

  /** A file that was opened exclusively is one like others from now on. */
  share(node: Node): void {
    const key = this.#exclusiveOf.get(node);
    if (key === undefined) return;
    this.#exclusive.giveBack(key);
    this.#exclusiveOf.delete(node);
  }

  /** As `open`, of a file that nobody else has, or gets, until it is closed or shared. Errors: EBUSY, too. */
  async openExclusive(request: LayerRequest, use: ExclusiveUse): Promise<OpenedLayer> {
    const key = keyOf(request.identity);
    this.#exclusive.take(key, request.identity.path, use, this.#isOpen(key));
    try {
      const layer = await this.open({ ...request, exclusive: true });
      this.#exclusiveOf.set(layer.node, key);
      return layer;
    } catch (error) {
      this.#exclusive.giveBack(key);
      throw error;
    }
  }

  /** Errors: those of locks (EBUSY), of the file, and of the driver; nothing stays open then. */
  async open(request: LayerRequest): Promise<OpenedLayer> {
    const { identity, format, readOnly, exclusive = false } = request;
    const { registry, locks } = this.#options;
    if (!exclusive) this.refuseExclusive(identity);
    if (readOnly) await this.#takeUpLeftover(request);
    const lockable = isUrl(identity.path) ? noLocks : locks;
    const lock = await lockable.acquire(identity.path, readOnly ? 'read' : 'write');
    let file: Node | null = null;
    let node: Node | null = null;
    try {
      file = await this.#openFile(identity, readOnly);
      const probed = format === null ? await probeFormat(registry, file, identity.path) : null;
      const descriptor =
        format === null ? (probed ?? registry.format('raw')) : registry.format(format);
      const { path } = identity;
      const name = request.nodeName ?? this.#name();
      node = new Node({ name, path, descriptor, readOnly, file });
      this.#identityOf.set(node, keyOf(identity));
      const guarded = format === null && probed === null;
      await this.#openFormat(node, file, { ...request, lock }, guarded);
      // It may have become somebody's data file while it was being opened.
      if (!exclusive) this.refuseExclusive(identity);
      this.#nodes.add(node);
      this.#lockOf.set(node, lock);
      return { node, link: node.driver.backingLink };
    } catch (error) {
      await (node ?? file)?.close().catch(() => undefined);
      for (const dataFile of node?.dataFiles ?? [])
        await this.#surroundings.closeDataFile(dataFile, []);
      await lock.release();
      throw toBlockError(error, { op: 'open', path: identity.path });
    }
  }

  /** With its data files, and the lock last. Never rejects: what fails is added to `errors`. */
  async close(node: Node, errors: unknown[]): Promise<void> {
    this.#nodes.delete(node);
    await node.close().catch((error: unknown) => errors.push(error));
    for (const file of node.dataFiles) await this.#surroundings.closeDataFile(file, errors);
    this.share(node);
    const lock = this.#lockOf.get(node);
    this.#lockOf.delete(node);
    await lock?.release().catch((error: unknown) => errors.push(error));
  }

  // What a killed engine had answered lies in the restart journal, and only who opens for writing takes it up: an image
  // that is now a backing image, or shown read-only, is opened so once.
  async #takeUpLeftover(request: LayerRequest): Promise<void> {
    const { journalFor, log } = this.#options;
    const { identity } = request;
    if (journalFor === null || this.#isOpenForWriting(identity)) return;
    const { leftover } = await journalFor(identity, { tenure: null });
    if (leftover.length === 0) return;
    try {
      const { node } = await this.open({ ...request, readOnly: false, snapshot: null });
      await this.close(node, []);
    } catch (error) {
      const reason = toBlockError(error, { path: identity.path }).describe();
      log.error(
        identity.path,
        `writes that were answered and never synced are not shown: ${reason}`,
      );
    }
  }

  #isOpenForWriting(identity: FileIdentity): boolean {
    const key = keyOf(identity);
    return [...this.#nodes].some((n) => !n.readOnly && this.#identityOf.get(n) === key);
  }

  #isOpen(key: string): boolean {
    return [...this.#nodes].some((node) => this.#identityOf.get(node) === key);
  }

  async #openFile(identity: FileIdentity, readOnly: boolean): Promise<Node> {
    const { cache, log, registry, credentials = [], growsHereAlone = false } = this.#options;
    const { path } = identity;
    const descriptor = registry.protocolFor(path);
    const request = { path, readOnly, create: false, cache, log, credentials, growsHereAlone };
    const driver = await descriptor.openPath?.(request);
    if (driver === undefined) throw invalidImage('no driver opens it', { path });
    const node = new Node({ name: this.#name(), path, descriptor, readOnly, file: null });
    node.attach(driver);
    return node;
  }

  async #openFormat(
    node: Node,
    file: Node,
    layer: LayerRequest & { readonly lock: ImageLock },
    guarded: boolean,
  ): Promise<void> {
    const { registry, log, cacheBytes, discard, journalFor, secrets } = this.#options;
    const { path, readOnly, descriptor } = node;
    const journal =
      readOnly || journalFor === null ? null : await journalFor(layer.identity, layer.lock);
    const above = [...layer.above, keyOf(layer.identity)];
    const driver = await descriptor.open?.({
      file,
      path,
      readOnly,
      snapshot: layer.snapshot ?? null,
      cacheBytes,
      journal,
      discard,
      secrets: secrets === null ? null : () => secrets.forImage(path),
      log,
      nodeName: node.name,
      probeGuard: guarded
        ? (head) => probeHead(registry, head, head.length)[0]?.name ?? null
        : null,
      backing: () => node.backing,
      openDataFile: async (link) => {
        const dataFile = await this.#surroundings.openDataFile(link, node, above);
        node.dataFiles.push(dataFile);
        return dataFile;
      },
      readGuest: (offset, buffer) => node.readForCopy(offset, buffer),
      readGuestAtOnce: (offset, buffer) => readForCopyAtOnce(node, offset, buffer),
      mappingChanged: (change) => node.notifyMappingChanged(change),
      dirtyBitmaps: node.dirtyBitmaps,
      quiesce: () => node.quiesce(),
    });
    if (driver === undefined) throw invalidImage('no driver opens it', { path });
    node.attach(driver);
  }

  #name(): string {
    return `#block${String(this.#nextName++).padStart(3, '0')}`;
  }
}
