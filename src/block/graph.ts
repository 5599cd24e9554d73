/**
 * The graph: opens an image with its whole backing chain, and owns every node with its lock. Backing nodes that several
 * overlays use are opened once (`SharedLayers`).
 */
import { assert, present } from '../base/assert.ts';
import { BlockError, invalidImage, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { readForCopyAtOnce } from './at-once.ts';
import { CopyOnRead } from './copy-on-read.ts';
import { ExclusiveFiles, type ExclusiveUse } from './exclusive-files.ts';
import { type FileIdentity, identify, keyOf } from './file-identity.ts';
import type { BackingLink, DataFileLink } from './image-description.ts';
import { type ImageLock, type ImageLocks, noLocks } from './image-locks.ts';
import { Node } from './node.ts';
import type { OpenGate } from './open-gate.ts';
import { probeFormat, probeHead } from './probe.ts';
import type { DriverRegistry } from './registry.ts';
import type { RemoteCredential } from './remote-access.ts';
import { isUrl } from './remote-url.ts';
import type { JournalFactory } from './restart-journal-file.ts';
import type { Secrets } from './secrets.ts';
import { SharedLayers } from './shared-layers.ts';

/** Longer chains are taken for an attack or an accident. */
export const MAX_CHAIN_DEPTH = 200;

export type CacheMode = 'writeback' | 'none' | 'unsafe';

export interface GraphOptions {
  readonly registry: DriverRegistry;
  readonly gate: OpenGate;
  readonly locks: ImageLocks;
  readonly log: Log;
  readonly cache: CacheMode;
  /** Per image, in bytes. */
  readonly cacheBytes: number;
  readonly discard: 'unmap' | 'ignore';
  /** See `OpenPathRequest`: of every file that is opened for writing. */
  readonly growsHereAlone?: boolean;
  /** Keys of encrypted images. Null: they are opened without, to look at their mapping alone. */
  readonly secrets: Secrets | null;
  /** What is read through the backing of an image that is opened for writing becomes its own. */
  readonly copyOnRead?: boolean;
  /** The restart journal of a file that is opened for writing; null for offline tools. */
  readonly journalFor: JournalFactory | null;
  /** What servers may want to see. */
  readonly credentials?: readonly RemoteCredential[];
}

export interface OpenImageOptions {
  readonly path: string;
  /** Declared format; null probes. */
  readonly format: string | null;
  readonly readOnly: boolean;
  /** The id of an internal snapshot of it, which is shown in place of the image; read-only. */
  readonly snapshot?: string | undefined;
  /** `info -U`-like uses that look at one layer only. */
  readonly withoutBacking?: boolean;
  /** The node's name; one is made up when it is not given. */
  readonly nodeName?: string;
  /** What a job copies to: nobody else may have the file open, or open it, until `share`. */
  readonly asTarget?: boolean;
  /** Layers below it that this opening has to itself. */
  readonly ownLayers?: OwnLayers | undefined;
}

/** Layers of a chain that are changed: nobody else may have them open, or open them, until the chain is closed. */
export interface OwnLayers {
  /** Path of the lowest of them. */
  readonly downTo: string;
  /** Paths of those that are opened for writing. */
  readonly writable: readonly string[];
}

interface LayerRequest {
  readonly identity: FileIdentity;
  /** Null probes. */
  readonly format: string | null;
  readonly readOnly: boolean;
  /** See `OpenImageOptions`; of the top layer alone. */
  readonly snapshot?: string | null;
  /** Identities of the layers above it, and of their data files. */
  readonly above: readonly string[];
  /** It is taken in `#exclusive` for this opening. */
  readonly exclusive?: boolean;
  readonly nodeName?: string | undefined;
}

interface OpenedLayer {
  readonly node: Node;
  readonly link: BackingLink | null;
}

export class Graph {
  readonly #options: GraphOptions;
  /** Read-only layers, while somebody uses them. */
  readonly #shared = new SharedLayers();
  readonly #lockOf = new Map<Node, ImageLock>();
  readonly #identityOf = new WeakMap<Node, string>();
  /** Data files that are open for writing, and what they are taken as. */
  readonly #exclusive = new ExclusiveFiles();
  readonly #exclusiveOf = new Map<Node, string>();
  readonly #nodes = new Set<Node>();
  #nextName = 1;

  constructor(options: GraphOptions) {
    this.#options = options;
  }

  /** Every open format node. */
  get nodes(): ReadonlySet<Node> {
    return this.#nodes;
  }

  /**
   * Opens an image and its backing chain; `close` takes the returned root back. Errors: those of the driver, the
   * gate (EACCES), the locks (EBUSY); ELOOP for a chain that loops or is too deep. On an error nothing stays open.
   */
  async open(options: OpenImageOptions): Promise<Node> {
    const identity = await identify(options.path);
    const { format, readOnly, snapshot = null, nodeName } = options;
    assert(readOnly || snapshot === null, 'a snapshot is not written');
    const request = { identity, format, readOnly, snapshot, above: [], nodeName };
    const layer = await (options.asTarget === true
      ? this.#openExclusive(request, 'target')
      : this.#openLayer(request));
    try {
      if (options.ownLayers !== undefined) await this.#openOwn(layer, [], options.ownLayers);
      else if (options.withoutBacking !== true) await this.#openBacking(layer, []);
      this.#startCopyOnRead(layer.node);
      return layer.node;
    } catch (error) {
      await this.close(layer.node);
      throw error;
    }
  }

  #startCopyOnRead(node: Node): void {
    const { copyOnRead, log } = this.#options;
    if (copyOnRead !== true || node.readOnly || node.driver.populate === undefined) return;
    let hasFailed = false;
    node.copyOnRead = new CopyOnRead({
      node,
      failed: (error) => {
        const reason = toBlockError(error).describe();
        if (!hasFailed) log.warning(node.path, `what was read is not kept: ${reason}`);
        hasFailed = true;
      },
    });
  }

  /** Closes a root and what only it used, top first. Every node is closed even when one fails; then the first error is thrown. */
  async close(root: Node): Promise<void> {
    const errors: unknown[] = [];
    await this.#closeChain(root, errors);
    if (errors.length > 0) throw toBlockError(errors[0], { op: 'close', path: root.path });
  }

  /**
   * Puts an overlay directly on a layer further down its chain, or on nothing, and closes what only it used in between.
   * Drained. The header is the caller's to change, before.
   */
  async replaceBacking(overlay: Node, base: Node | null): Promise<void> {
    const old = overlay.backing;
    if (old === base) return;
    if (base !== null) this.#shared.useToo(base);
    overlay.backing = base;
    if (old !== null) await this.close(old);
  }

  /** Errors: EBUSY for a file that a node has open: what a job writes has to be its own. */
  async refuseOpen(path: string): Promise<void> {
    const key = keyOf(await identify(path));
    this.#exclusive.take(key, path, 'target', this.#isOpen(key));
    this.#exclusive.giveBack(key);
  }

  /** Errors: ENOENT, ESTALE when another file lies where a node's file was opened: it would be found there later. */
  async refuseReplaced(node: Node): Promise<void> {
    const { path } = node;
    const key = keyOf(await identify(path));
    if (key === this.#identityOf.get(node)) return;
    const message = 'another file lies there now';
    throw new BlockError({ kind: 'io', errno: 'ESTALE', message, path, op: 'pivot' });
  }

  /** What was opened as a target is an image like others from now on. */
  share(target: Node): void {
    const key = this.#exclusiveOf.get(target);
    if (key === undefined) return;
    this.#exclusive.giveBack(key);
    this.#exclusiveOf.delete(target);
  }

  /** Errors: EINVAL for a node name that is taken. */
  refuseName(name: string): void {
    if (![...this.#nodes].some((node) => node.name === name)) return;
    throw new BlockError({
      kind: 'bad-request',
      message: `Duplicate nodes with node-name='${name}'`,
    });
  }

  /** As `#openBacking`, of layers that nobody else has. */
  async #openOwn(top: OpenedLayer, above: readonly string[], own: OwnLayers): Promise<void> {
    const { link } = top;
    if (link === null)
      throw chainError(top.node.path, `'${own.downTo}' is not in its backing chain`);
    const chain = [...above, ...this.#identitiesOf(top.node)];
    const { identity, format } = await this.#resolve(link, top.node.path, chain);
    const readOnly = !own.writable.includes(identity.path);
    const request = { identity, format, readOnly, above: chain };
    const layer = await this.#openExclusive(request, 'layer');
    // From here on it is closed with what lies above it.
    top.node.backing = layer.node;
    if (identity.path === own.downTo) await this.#openBacking(layer, chain);
    else await this.#openOwn(layer, chain, own);
  }

  async #openBacking(top: OpenedLayer, above: readonly string[]): Promise<void> {
    const link = top.link;
    if (link === null || top.node.backing !== null) return;
    // A data file is written, and a backing file must not change: it counts as above what lies below.
    const chain = [...above, ...this.#identitiesOf(top.node)];
    const { identity, format } = await this.#resolve(link, top.node.path, chain);
    top.node.backing = await this.#shareLayer(identity, format, chain);
  }

  /** The file that a header names, and its format as far as it is declared. Errors: those of the gate; ELOOP for one of `above`, the referrer among them. */
  async #resolve(
    link: BackingLink | DataFileLink,
    referrer: string,
    above: readonly string[],
  ): Promise<{ readonly identity: FileIdentity; readonly format: string | null }> {
    const { path, format } = await this.#options.gate.resolveLink(link, referrer);
    const identity = await identify(path);
    if (above.includes(keyOf(identity))) {
      throw chainError(referrer, `its backing chain loops: '${path}' is above itself`);
    }
    if (above.length >= MAX_CHAIN_DEPTH) {
      throw chainError(referrer, `its backing chain is deeper than ${MAX_CHAIN_DEPTH}`);
    }
    return { identity, format };
  }

  /** Of a layer and of the files that hold its guest's bytes. */
  #identitiesOf(node: Node): string[] {
    const own = present(this.#identityOf.get(node), 'an opened layer has an identity');
    return [own, ...node.dataFiles.flatMap((file) => this.#identitiesOf(file))];
  }

  // Of a read-only image it is read-only too, and may be shared like a backing file.
  async #openDataFile(link: DataFileLink, owner: Node, above: readonly string[]): Promise<Node> {
    const { identity, format } = await this.#resolve(link, owner.path, above);
    if (owner.readOnly) return this.#shareLayer(identity, format, above);
    const request = { identity, format, readOnly: false, above };
    const layer = await this.#openExclusive(request, 'data file');
    try {
      await this.#openBacking(layer, above);
    } catch (error) {
      await this.#closeLayer(layer.node, []);
      throw error;
    }
    return layer.node;
  }

  async #openExclusive(request: LayerRequest, use: ExclusiveUse): Promise<OpenedLayer> {
    const key = keyOf(request.identity);
    this.#exclusive.take(key, request.identity.path, use, this.#isOpen(key));
    try {
      const layer = await this.#openLayer({ ...request, exclusive: true });
      this.#exclusiveOf.set(layer.node, key);
      return layer;
    } catch (error) {
      this.#exclusive.giveBack(key);
      throw error;
    }
  }

  #isOpen(key: string): boolean {
    return [...this.#nodes].some((node) => this.#identityOf.get(node) === key);
  }

  async #shareLayer(
    identity: FileIdentity,
    format: string | null,
    above: readonly string[],
  ): Promise<Node> {
    this.#exclusive.refuse(keyOf(identity), identity.path);
    return this.#shared.use(keyOf(identity), format, () =>
      this.#openShared(identity, format, above),
    );
  }

  async #openShared(
    identity: FileIdentity,
    format: string | null,
    above: readonly string[],
  ): Promise<Node> {
    const layer = await this.#openLayer({ identity, format, readOnly: true, above });
    try {
      await this.#openBacking(layer, above);
    } catch (error) {
      await this.#closeLayer(layer.node, []);
      throw error;
    }
    return layer.node;
  }

  async #openLayer(request: LayerRequest): Promise<OpenedLayer> {
    const { identity, format, readOnly, exclusive = false } = request;
    const { registry, locks } = this.#options;
    if (!exclusive) this.#exclusive.refuse(keyOf(identity), identity.path);
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
      if (!exclusive) this.#exclusive.refuse(keyOf(identity), identity.path);
      this.#nodes.add(node);
      this.#lockOf.set(node, lock);
      return { node, link: node.driver.backingLink };
    } catch (error) {
      await (node ?? file)?.close().catch(() => undefined);
      for (const dataFile of node?.dataFiles ?? []) await this.#closeChain(dataFile, []);
      await lock.release();
      throw toBlockError(error, { op: 'open', path: identity.path });
    }
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
      const { node } = await this.#openLayer({ ...request, readOnly: false, snapshot: null });
      await this.#closeLayer(node, []);
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
        const dataFile = await this.#openDataFile(link, node, above);
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

  /** A node and what only it used, top first. */
  async #closeChain(top: Node, errors: unknown[]): Promise<void> {
    for (let node: Node | null = top; node !== null; ) {
      const below: Node | null = node.backing;
      const last = await this.#closeLayer(node, errors);
      node = last ? below : null;
    }
  }

  /** Whether this was the layer's last user, so that the layer below loses one too. */
  async #closeLayer(node: Node, errors: unknown[]): Promise<boolean> {
    if (!this.#shared.letGo(node)) return false;
    this.#nodes.delete(node);
    await node.close().catch((error: unknown) => errors.push(error));
    for (const file of node.dataFiles) await this.#closeChain(file, errors);
    const exclusive = this.#exclusiveOf.get(node);
    if (exclusive !== undefined) this.#exclusive.giveBack(exclusive);
    this.#exclusiveOf.delete(node);
    const lock = this.#lockOf.get(node);
    this.#lockOf.delete(node);
    await lock?.release().catch((error: unknown) => errors.push(error));
    return true;
  }

  #name(): string {
    return `#block${String(this.#nextName++).padStart(3, '0')}`;
  }
}

const chainError = (path: string, message: string): BlockError =>
  new BlockError({ kind: 'invalid-image', errno: 'ELOOP', message, path, op: 'open' });
