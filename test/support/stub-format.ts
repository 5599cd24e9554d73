/**
 * A format for tests of what lies above the drivers: 512 bytes of header (`STUB` and a JSON object), then the guest's
 * bytes; a guest length of more than the file reads from the backing.
 */
import { writeFile } from 'node:fs/promises';
import { invalidImage } from '../../src/base/block-error.ts';
import { type GuestOffset, guestOffset, hostOffset } from '../../src/base/units.ts';
import type { DriverDescriptor, DriverInstance, Mapping } from '../../src/block/driver.ts';
import type { BackingLink, ImageDescription } from '../../src/block/image-description.ts';
import type { Node } from '../../src/block/node.ts';

const HEADER_BYTES = 512;
const MAGIC = 'STUB';

export interface StubHeader {
  readonly backing?: string;
  /** Holds the guest's bytes, raw, in place of the file's own. */
  readonly dataFile?: string;
  readonly dirty?: boolean;
  readonly corrupt?: boolean;
  /** The header is fine, and the opening fails. */
  readonly unopenable?: boolean;
}

/** Writes a stub image with these guest bytes. */
export const writeStub = async (
  path: string,
  header: StubHeader = {},
  content: Uint8Array = new Uint8Array(1024),
): Promise<void> => {
  const head = Buffer.alloc(HEADER_BYTES);
  head.write(MAGIC + JSON.stringify(header));
  await writeFile(path, Buffer.concat([head, content]));
};

const readHeader = async (file: Node, path: string): Promise<StubHeader> => {
  if (file.lengthBytes < HEADER_BYTES) throw invalidImage('the header is cut short', { path });
  const head = Buffer.alloc(HEADER_BYTES);
  await file.read(guestOffset(0), head);
  const end = head.indexOf(0);
  try {
    return JSON.parse(head.toString('utf8', MAGIC.length, end)) as StubHeader;
  } catch (error) {
    throw invalidImage(`the header is no JSON: ${String(error)}`, { path });
  }
};

const linkOf = (header: StubHeader): BackingLink | null =>
  header.backing === undefined ? null : { filename: header.backing, format: null };

class StubImage implements DriverInstance {
  readonly clusterBytes = 1;
  readonly backingLink: BackingLink | null;
  readonly #file: Node;
  readonly #headerBytes: number;

  constructor(file: Node, header: StubHeader) {
    this.#file = file;
    this.#headerBytes = header.dataFile === undefined ? HEADER_BYTES : 0;
    this.backingLink = linkOf(header);
  }

  get lengthBytes(): number {
    return this.#file.lengthBytes - this.#headerBytes;
  }

  mapping(offset: GuestOffset, lengthBytes: number): Mapping {
    const at = hostOffset(offset + this.#headerBytes);
    return { kind: 'data', lengthBytes, file: this.#file, hostOffset: at, inPlace: true };
  }

  write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    return this.#file.write(guestOffset(offset + this.#headerBytes), buffer);
  }

  flush(): Promise<void> {
    return this.#file.flush();
  }

  resize(lengthBytes: number): Promise<void> {
    return this.#file.resize(lengthBytes + this.#headerBytes);
  }

  allocatedBytes(): Promise<number> {
    return this.#file.driver.allocatedBytes();
  }

  async close(): Promise<void> {}
}

const inspect = async (file: Node, path: string): Promise<ImageDescription> => {
  const header = await readHeader(file, path);
  return {
    format: 'stub',
    virtualSizeBytes: file.lengthBytes - HEADER_BYTES,
    clusterBytes: null,
    backing: linkOf(header),
    dataFiles: header.dataFile === undefined ? [] : [{ filename: header.dataFile, format: 'raw' }],
    dirty: header.dirty === true,
    corrupt: header.corrupt === true,
    encrypted: false,
    compressed: false,
    snapshots: [],
    formatSpecific: null,
  };
};

export const stub: DriverDescriptor = {
  name: 'stub',
  role: 'format',
  capabilities: {
    write: true,
    backing: true,
    zeroWithoutSpace: false,
    discard: false,
    grow: true,
    shrink: true,
    create: false,
    check: false,
    repair: false,
    internalSnapshots: false,
    compressedWrite: false,
  },
  probe: (head) => (Buffer.from(head.subarray(0, MAGIC.length)).toString() === MAGIC ? 100 : 0),
  inspect,
  open: async ({ file, path, openDataFile }) => {
    const header = await readHeader(file, path);
    const { dataFile } = header;
    const data =
      dataFile === undefined ? file : await openDataFile({ filename: dataFile, format: null });
    if (header.unopenable === true) throw invalidImage('its table is broken', { path });
    return new StubImage(data, header);
  },
  createOptions: [],
};
