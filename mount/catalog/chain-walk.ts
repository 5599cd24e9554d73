/**
 * Following what a header names, by looking at files alone: the backing chain, and the files that hold an image's bytes.
 */
import { present } from '../../src/base/assert.ts';
import { BlockError, toBlockError } from '../../src/base/block-error.ts';
import type { DriverDescriptor, RemoteState } from '../../src/block/driver.ts';
import { MAX_CHAIN_DEPTH } from '../../src/block/graph.ts';
import type {
  BackingLink,
  DataFileLink,
  ImageDescription,
} from '../../src/block/image-description.ts';
import type { HostFile } from './host-file.ts';

/** A file of a chain, the image itself first. */
export interface ChainLayer {
  readonly path: string;
  readonly identity: string;
  /** See `HostFile.stamp`. */
  readonly stamp: string;
  readonly format: string;
  /** Of a remote file; null for one of this machine. */
  readonly remote: RemoteFacts | null;
}

/** What a server has said of a file. */
export interface RemoteFacts extends Pick<RemoteState, 'version' | 'isWritable'> {
  readonly lengthBytes: number;
}

/** A file that holds the guest's bytes of an image. */
export interface DataFile extends ChainLayer {
  readonly allocatedBytes: number;
}

/** A file that was looked at. */
export interface Layer {
  readonly driver: DriverDescriptor;
  readonly description: ImageDescription;
  readonly remote: RemoteFacts | null;
}

type Look = (host: HostFile, format: string | null) => Promise<Layer>;

/** The file that a link of `referrer` names, and its declared format. Errors: those of the gate and the host. */
type Find = (link: BackingLink | DataFileLink, referrer: string) => Promise<FoundFile>;

export interface FoundFile {
  readonly host: HostFile;
  readonly format: string | null;
}

const BLOCK_BYTES = 512;

export class ChainWalk {
  /** The image and everything that is only read below it. */
  readonly chain: ChainLayer[];
  /** Everything that is written with it. */
  readonly dataFiles: DataFile[] = [];
  /** Of the image; 0 where that cannot be told. */
  virtualSizeBytes = 0;
  readonly #find: Find;
  readonly #look: Look;

  constructor(first: ChainLayer, find: Find, look: Look) {
    this.chain = [first];
    this.#find = find;
    this.#look = look;
  }

  /** Follows what the image's header names. Returns what was in the way, null for nothing. */
  async follow(top: ImageDescription): Promise<BlockError | null> {
    const [first] = this.chain;
    const place = { layer: present(first, 'a walk begins at the image'), above: [] };
    this.virtualSizeBytes = top.virtualSizeBytes ?? 0;
    try {
      this.virtualSizeBytes = await this.#followLayer(place, top, true);
      return null;
    } catch (error) {
      return toBlockError(error, { op: 'open', path: place.layer.path });
    }
  }

  /** Returns the bytes that the layer's guest sees. */
  async #followLayer(
    place: { readonly layer: ChainLayer; readonly above: readonly string[] },
    description: ImageDescription,
    isWritten: boolean,
  ): Promise<number> {
    const { layer } = place;
    const above = [...place.above, layer.identity];
    let lengthBytes = description.virtualSizeBytes;
    for (const link of description.dataFiles) {
      const found = await this.#resolve(link, layer.path, above);
      const { host, file } = found;
      const allocatedBytes = file.remote?.lengthBytes ?? host.blocks * BLOCK_BYTES;
      if (isWritten) this.dataFiles.push({ ...file, allocatedBytes });
      else this.chain.push(file);
      const length = await this.#followLayer({ layer: file, above }, found.description, isWritten);
      lengthBytes ??= length;
      // A backing file must not change, and a data file is written.
      above.push(file.identity);
    }
    if (description.backing !== null) {
      const { file, description: below } = await this.#resolve(
        description.backing,
        layer.path,
        above,
      );
      this.chain.push(file);
      await this.#followLayer({ layer: file, above }, below, false);
    }
    return lengthBytes ?? 0;
  }

  async #resolve(
    link: BackingLink | DataFileLink,
    referrer: string,
    above: readonly string[],
  ): Promise<{ host: HostFile; file: ChainLayer; description: ImageDescription }> {
    try {
      const { host, format } = await this.#find(link, referrer);
      if (above.includes(host.identity))
        throw chainError(referrer, `its backing chain loops: '${host.path}' is above itself`);
      if (above.length > MAX_CHAIN_DEPTH)
        throw chainError(referrer, `its backing chain is deeper than ${MAX_CHAIN_DEPTH}`);
      const { driver, description, remote } = await this.#look(host, format);
      return { host, file: { ...fileOf(host), format: driver.name, remote }, description };
    } catch (error) {
      throw toBlockError(error, { op: 'open', path: referrer });
    }
  }
}

export const fileOf = (host: HostFile): Omit<ChainLayer, 'format' | 'remote'> => ({
  path: host.path,
  identity: host.identity,
  stamp: host.stamp,
});

const chainError = (path: string, message: string): BlockError =>
  new BlockError({ kind: 'invalid-image', errno: 'ELOOP', message, path, op: 'open' });
