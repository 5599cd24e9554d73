/**
 * What can be told about an image without opening it for use: its format, its header, and the files of its backing
 * chain. Every file is opened, read and closed again, so that a directory of thousands costs no descriptors. Files on
 * servers are looked at through remote-looks.ts, so that none of them is waited for long.
 */
import { basename, extname } from 'node:path';
import { present } from '../../src/base/assert.ts';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import { type Log, silentLog } from '../../src/base/log.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { ImageDescription } from '../../src/block/image-description.ts';
import { Node } from '../../src/block/node.ts';
import type { OpenGate } from '../../src/block/open-gate.ts';
import { probeFormat } from '../../src/block/probe.ts';
import type { DriverRegistry } from '../../src/block/registry.ts';
import type { RemoteCredential } from '../../src/block/remote-access.ts';
import { fileNameOfUrl, isUrl } from '../../src/block/remote-url.ts';
import { blockedError, type CatalogOptions } from './catalog-options.ts';
import {
  type ChainLayer,
  ChainWalk,
  type DataFile,
  fileOf,
  type Layer,
  type RemoteFacts,
} from './chain-walk.ts';
import type { HostFile } from './host-file.ts';
import type { Candidate } from './listing.ts';
import { RemoteLooks } from './remote-looks.ts';
import { SharedFinds } from './shared-finds.ts';

/** Extensions of files that count as raw images when no format claims their content. */
const RAW_EXTENSIONS: ReadonlySet<string> = new Set(['.raw', '.img', '.iso', '.dd']);

/** A file under this name is raw by declaration: a guest that writes another format's header changes nothing. */
const NEVER_PROBED_EXTENSION = '.raw';

export interface Inspection {
  /** Null when not even the format is known. */
  readonly driver: DriverDescriptor | null;
  /** The format to open it with; null: probed again, and guarded when it is raw. */
  readonly declaredFormat: string | null;
  /** Null when the header cannot be read. */
  readonly description: ImageDescription | null;
  /** The image and what is read below it, as far down as it could be followed. */
  readonly chain: readonly ChainLayer[];
  /** What is written with it. */
  readonly dataFiles: readonly DataFile[];
  /** Why the image cannot be opened, as far as that shows without opening it. */
  readonly error: BlockError | null;
}

/** A file that is no image. */
export interface NoImage {
  readonly ignored: string;
}

export interface InspectorOptions extends Pick<CatalogOptions, 'blocked' | 'begin'> {
  readonly registry: DriverRegistry;
  readonly gate: OpenGate;
  readonly credentials?: readonly RemoteCredential[];
  readonly log: Log;
  /** A server that was not waited for has answered. */
  readonly answered: () => void;
}

export interface InspectOptions {
  /** `--format`; see `inspect`. */
  readonly format: string | null;
  /** Servers are waited for. */
  readonly patient: boolean;
}

const MAX_KNOWN_LAYERS = 1024;

/** Of an image that is not even looked at. */
const blockedInspection = (path: string): Inspection => ({
  driver: null,
  declaredFormat: null,
  description: null,
  chain: [],
  dataFiles: [],
  error: blockedError(path),
});

export class Inspector {
  readonly #options: InspectorOptions;
  /** Backing layers by stamp, declared format and path; promises, so that two who ask at once share one look. */
  readonly #layers = new Map<string, Promise<Layer>>();
  readonly #remoteLooks: RemoteLooks;
  readonly #finds: SharedFinds;

  constructor(options: InspectorOptions) {
    this.#options = options;
    this.#remoteLooks = new RemoteLooks({ answered: options.answered });
    this.#finds = new SharedFinds(options.gate);
  }

  /** What servers have said lately may not be true any more. */
  forgetRemote(): void {
    this.#remoteLooks.forget();
  }

  /**
   * Looks at one file of a source. `format`: what the command line declares files to be that it names; null for the
   * rules of content and extension, which hold for files of a directory anyhow. Never throws for what the file holds.
   */
  async inspect(candidate: Candidate, options: InspectOptions): Promise<Inspection | NoImage> {
    const { path } = candidate.host;
    const { blocked, begin } = this.#options;
    if (blocked.paths.has(path)) return blockedInspection(path);
    const end = begin({ id: `look ${path}`, nodeId: null, path, name: path });
    try {
      return await this.#inspect(candidate, options);
    } finally {
      end();
    }
  }

  async #inspect(candidate: Candidate, options: InspectOptions): Promise<Inspection | NoImage> {
    const { host } = candidate;
    const { patient } = options;
    const { standIn } = candidate;
    // A symlink counts by its own name and by its target's.
    const extensions = [extensionOf(host.path), extensionOf(candidate.fileName)];
    const declaredFormat =
      (standIn?.missing === null ? standIn.record.format : null) ??
      (candidate.named ? options.format : null) ??
      (extensions.includes(NEVER_PROBED_EXTENSION) ? 'raw' : null);
    // A file named on the command line is an image whatever it is called.
    const asRaw =
      candidate.named || standIn !== undefined || extensions.some((e) => RAW_EXTENSIONS.has(e));
    let driver: DriverDescriptor | null = null;
    const found = (descriptor: DriverDescriptor): void => {
      driver = descriptor;
    };
    try {
      const look = (): Promise<Layer | null> =>
        this.#layer(host, { format: declaredFormat, asRaw, found });
      const layer =
        host.kind === 'remote'
          ? await this.#remoteLooks.look(`image ${host.path}`, look, { patient })
          : await look();
      if (layer === null) return { ignored: noImageReason() };
      const { remote } = layer;
      const first = { ...fileOf(host), format: layer.driver.name, remote };
      const walk = new ChainWalk(
        first,
        (link, referrer) => this.#finds.find(link, referrer),
        (h, f) => this.#sharedLayer(h, f, patient),
      );
      const error = await walk.follow(layer.description);
      const { chain, dataFiles, virtualSizeBytes } = walk;
      const description = { ...layer.description, virtualSizeBytes };
      return { driver: layer.driver, description, declaredFormat, chain, dataFiles, error };
    } catch (error) {
      const failure = toBlockError(error, { op: 'open', path: host.path });
      if (driver === null && !asRaw && !this.#isKnownExtension(host.path)) {
        return { ignored: `cannot be looked at: ${failure.message}` };
      }
      return {
        driver,
        declaredFormat,
        description: null,
        chain: [],
        dataFiles: [],
        error: failure,
      };
    }
  }

  /** Whether a file's content is that of an image format; false when it cannot be read. */
  async isImage(path: string): Promise<boolean> {
    const { registry } = this.#options;
    return this.#withFile({ path }, (file) => probeFormat(registry, file, path)).then(
      (driver) => driver !== null,
      () => false,
    );
  }

  /** A base that a thousand overlays share is looked at once, until its file changes. */
  #sharedLayer(host: HostFile, format: string | null, patient: boolean): Promise<Layer> {
    const key = `${host.stamp}:${format ?? ''}:${host.path}`;
    // Without a declared format, what no format claims is raw: there always is one.
    const look = async (): Promise<Layer> =>
      present(await this.#layer(host, { format, asRaw: true }), 'a layer has a format');
    if (host.kind === 'remote') return this.#remoteLooks.look(`base ${key}`, look, { patient });
    const known = this.#layers.get(key);
    if (known !== undefined) return known;
    if (this.#layers.size >= MAX_KNOWN_LAYERS) this.#layers.clear();
    const layer = look();
    this.#layers.set(key, layer);
    layer.catch(() => this.#layers.delete(key));
    return layer;
  }

  /** By the graph's rule: as declared, else probed, else raw where it may be; null for what is no image. */
  async #layer(
    host: HostFile,
    options: {
      readonly format: string | null;
      readonly asRaw: boolean;
      /** Told the format before the header is read. */
      readonly found?: (driver: DriverDescriptor) => void;
    },
  ): Promise<Layer | null> {
    const { registry } = this.#options;
    const { format, asRaw, found } = options;
    const { path } = host;
    return this.#withFile(host, async (file) => {
      const driver =
        format !== null
          ? registry.format(format)
          : ((await probeFormat(registry, file, path)) ?? (asRaw ? registry.format('raw') : null));
      if (driver === null) return null;
      found?.(driver);
      return this.#describe(driver, file, path);
    });
  }

  async #describe(driver: DriverDescriptor, file: Node, path: string): Promise<Layer> {
    const description = await driver.inspect?.(file, path);
    if (description !== undefined) return { driver, description, remote: factsOf(file) };
    const message = `the format ${driver.name} cannot be inspected`;
    throw new BlockError({ kind: 'unsupported', message, path, op: 'open' });
  }

  async #withFile<T>(
    { path, fileSystem = null }: Pick<HostFile, 'path' | 'fileSystem'>,
    use: (file: Node) => Promise<T>,
  ): Promise<T> {
    const descriptor = this.#options.registry.protocolFor(path);
    const { credentials = [] } = this.#options;
    // What a server lacks is said when the image is opened for use.
    const log = isUrl(path) ? silentLog : this.#options.log;
    const look = { readOnly: true, create: false, lookedAtOn: fileSystem } as const;
    const request = { path, ...look, log, credentials };
    const instance = await descriptor.openPath?.({ ...request, cache: 'writeback' });
    if (instance === undefined) {
      throw new BlockError({
        kind: 'unsupported',
        message: 'no driver opens it',
        path,
        op: 'open',
      });
    }
    const file = new Node({ name: '#inspection', path, descriptor, readOnly: true, file: null });
    file.attach(instance);
    try {
      return await use(file);
    } finally {
      await file.close();
    }
  }

  #isKnownExtension(path: string): boolean {
    const extension = extensionOf(path).slice(1);
    return this.#options.registry.formats.some((driver) => driver.name === extension);
  }
}

const factsOf = ({ driver }: Node): RemoteFacts | null => {
  if (driver.remote === undefined) return null;
  const { version, isWritable } = driver.remote;
  return { version, isWritable, lengthBytes: driver.lengthBytes };
};

const extensionOf = (path: string): string =>
  extname(isUrl(path) ? fileNameOfUrl(path) : basename(path)).toLowerCase();

const noImageReason = (): string =>
  `its content is no known image format, and its name ends in none of ${[...RAW_EXTENSIONS].join(', ')}`;
