/**
 * The graph: opens an image with its whole backing chain, layer by layer (`OpenLayers`). Backing nodes that several overlays use are opened
 * once (`SharedLayers`).
 */
import { assert } from '../base/assert.ts';
import { BlockError, toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { ClosingChains } from './closing-chains.ts';
import { CopyOnRead } from './copy-on-read.ts';
import { type FileIdentity, identify, keyOf } from './file-identity.ts';
import type { BackingLink, DataFileLink } from './image-description.ts';
import type { ImageLocks } from './image-locks.ts';
import type { Node } from './node.ts';
import type { OpenGate } from './open-gate.ts';
import { type OpenedLayer, OpenLayers } from './open-layers.ts';
import type { DriverRegistry } from './registry.ts';
import type { RemoteCredential } from './remote-access.ts';
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

export class Graph {
  readonly #options: GraphOptions;
  /** Read-only layers, while somebody uses them. */
  readonly #shared = new SharedLayers();
  readonly #closing = new ClosingChains((node) => this.#layers.identityOf(node));
  readonly #layers: OpenLayers;

  constructor(options: GraphOptions) {
    this.#options = options;
    this.#layers = new OpenLayers(options, {
      openDataFile: (link, owner, above) => this.#openDataFile(link, owner, above),
      closeDataFile: (file, errors) => this.#closeChain(file, errors),
    });
  }

  /** Every open format node. */
  get nodes(): ReadonlySet<Node> {
    return this.#layers.nodes;
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
      ? this.#layers.openExclusive(request, 'target')
      : this.#layers.open(request));
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

  /**
   * Waits for chains that are being closed and still use one of these files: who is to have it to himself comes behind them.
   * Not in a drained section. Errors: EBUSY for one that is not closed in time, because its host does not answer.
   */
  async whenLetGo(paths: readonly string[]): Promise<void> {
    const keys = await Promise.all(paths.map((path) => identify(path).then(keyOf, () => path)));
    await this.#closing.whenLetGo(keys);
  }

  /** Errors: EBUSY for a file that a node has open: what a job writes has to be its own. */
  async refuseOpen(path: string): Promise<void> {
    this.#layers.refuseOpen(await identify(path));
  }

  /** Errors: ENOENT, ESTALE when another file lies where a node's file was opened: it would be found there later. */
  async refuseReplaced(node: Node): Promise<void> {
    const { path } = node;
    if (keyOf(await identify(path)) === this.#layers.identityOf(node)) return;
    const message = 'another file lies there now';
    throw new BlockError({ kind: 'io', errno: 'ESTALE', message, path, op: 'pivot' });
  }

  /** What was opened as a target is an image like others from now on. */
  share(target: Node): void {
    this.#layers.share(target);
  }

  /** Errors: EINVAL for a node name that is taken. */
  refuseName(name: string): void {
    if (![...this.nodes].some((node) => node.name === name)) return;
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
    const chain = [...above, ...this.#layers.identitiesOf(top.node)];
    const { identity, format } = await this.#resolve(link, top.node.path, chain);
    const readOnly = !own.writable.includes(identity.path);
    const request = { identity, format, readOnly, above: chain };
    const layer = await this.#layers.openExclusive(request, 'layer');
    // From here on it is closed with what lies above it.
    top.node.backing = layer.node;
    if (identity.path === own.downTo) await this.#openBacking(layer, chain);
    else await this.#openOwn(layer, chain, own);
  }

  async #openBacking(top: OpenedLayer, above: readonly string[]): Promise<void> {
    const link = top.link;
    if (link === null || top.node.backing !== null) return;
    // A data file is written, and a backing file must not change: it counts as above what lies below.
    const chain = [...above, ...this.#layers.identitiesOf(top.node)];
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

  // Of a read-only image it is read-only too, and may be shared like a backing file.
  async #openDataFile(link: DataFileLink, owner: Node, above: readonly string[]): Promise<Node> {
    const { identity, format } = await this.#resolve(link, owner.path, above);
    if (owner.readOnly) return this.#shareLayer(identity, format, above);
    const request = { identity, format, readOnly: false, above };
    const layer = await this.#layers.openExclusive(request, 'data file');
    try {
      await this.#openBacking(layer, above);
    } catch (error) {
      await this.#closeChain(layer.node, []);
      throw error;
    }
    return layer.node;
  }

  async #shareLayer(
    identity: FileIdentity,
    format: string | null,
    above: readonly string[],
  ): Promise<Node> {
    this.#layers.refuseExclusive(identity);
    return this.#shared.use(keyOf(identity), format, () =>
      this.#openShared(identity, format, above),
    );
  }

  async #openShared(
    identity: FileIdentity,
    format: string | null,
    above: readonly string[],
  ): Promise<Node> {
    const layer = await this.#layers.open({ identity, format, readOnly: true, above });
    try {
      await this.#openBacking(layer, above);
    } catch (error) {
      await this.#closeChain(layer.node, []);
      throw error;
    }
    return layer.node;
  }

  /** A node and what only it used, top first. */
  async #closeChain(top: Node, errors: unknown[]): Promise<void> {
    const closing = this.#closing.begin(top);
    try {
      for (let node: Node | null = top; node !== null; ) {
        closing.reached(node);
        const below: Node | null = node.backing;
        const last = await this.#closeLayer(node, errors);
        node = last ? below : null;
      }
    } finally {
      closing.ended();
    }
  }

  /** Whether this was the layer's last user, so that the layer below loses one too. */
  async #closeLayer(node: Node, errors: unknown[]): Promise<boolean> {
    if (!this.#shared.letGo(node)) return false;
    await this.#layers.close(node, errors);
    return true;
  }
}

const chainError = (path: string, message: string): BlockError =>
  new BlockError({ kind: 'invalid-image', errno: 'ELOOP', message, path, op: 'open' });
