/** The raw format: guest offsets are host offsets. */
import { BlockError } from '../../src/base/block-error.ts';
import { type GuestOffset, guestOffset, hostOffset } from '../../src/base/units.ts';
import type {
  DriverDescriptor,
  DriverInstance,
  Mapping,
  OpenRequest,
  WriteZeroesOptions,
} from '../../src/block/driver.ts';
import { type HostRange, notCopied } from '../../src/block/host-range.ts';
import type { Node } from '../../src/block/node.ts';

/** The part of the start that decides what an image is probed as. */
const FIRST_SECTOR_BYTES = 512;

class RawImage implements DriverInstance {
  readonly clusterBytes = 1;
  readonly backingLink = null;
  readonly holesMeanZero = true;
  readonly flushesFileAlone = true;
  readonly #file: Node;
  readonly #request: OpenRequest;
  #lengthBytes: number;

  constructor(request: OpenRequest) {
    this.#request = request;
    this.#file = request.file;
    this.#lengthBytes = request.file.lengthBytes;
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  async reloadLength(): Promise<void> {
    await this.#file.driver.reloadLength?.();
    this.#lengthBytes = this.#file.lengthBytes;
  }

  // A guarded first sector is looked at before each write, so it may not be written behind our back: it is a run of its
  // own.
  mapping(offset: GuestOffset, lengthBytes: number): Mapping {
    const guarded = this.#request.probeGuard !== null && offset < FIRST_SECTOR_BYTES;
    return {
      kind: 'data',
      lengthBytes: guarded ? Math.min(lengthBytes, FIRST_SECTOR_BYTES - offset) : lengthBytes,
      file: this.#file,
      hostOffset: hostOffset(offset),
      inPlace: !this.#request.readOnly && !guarded,
    };
  }

  async write(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    await this.#guardFirstSector(offset, buffer);
    await this.#file.write(offset, buffer);
  }

  async writeZeroes(
    offset: GuestOffset,
    lengthBytes: number,
    options: WriteZeroesOptions,
  ): Promise<void> {
    await this.#file.writeZeroes(offset, lengthBytes, options);
  }

  async copyIn(offset: GuestOffset, source: HostRange): Promise<void> {
    // The guard of the first sector wants to see it.
    if (this.#request.probeGuard !== null && offset < FIRST_SECTOR_BYTES) throw notCopied();
    if (!(await this.#file.copyIn(offset, source, 'write'))) throw notCopied();
  }

  async discard(offset: GuestOffset, lengthBytes: number): Promise<void> {
    if (this.#request.discard === 'unmap') await this.#file.discard(offset, lengthBytes);
    else await this.#file.writeZeroes(offset, lengthBytes, { unmap: false });
  }

  async allocate(offset: GuestOffset, lengthBytes: number): Promise<void> {
    await this.#file.allocate(offset, lengthBytes);
  }

  async flush(): Promise<void> {
    await this.#file.flush();
  }

  async resize(lengthBytes: number): Promise<void> {
    await this.#file.resize(lengthBytes);
    this.#lengthBytes = lengthBytes;
  }

  async allocatedBytes(): Promise<number> {
    return this.#file.driver.allocatedBytes();
  }

  async close(): Promise<void> {
    if (!this.#request.readOnly) await this.#file.flush();
  }

  // A guest that writes a qcow2 header into a probed raw image would have any host file opened as its backing
  // at the next start.
  async #guardFirstSector(offset: GuestOffset, buffer: Uint8Array): Promise<void> {
    const guard = this.#request.probeGuard;
    if (guard === null || offset >= FIRST_SECTOR_BYTES) return;
    const head = new Uint8Array(FIRST_SECTOR_BYTES);
    await this.#file.readClipped(guestOffset(0), head);
    head.set(buffer.subarray(0, FIRST_SECTOR_BYTES - offset), offset);
    const format = guard(head);
    if (format === null) return;
    throw new BlockError({
      kind: 'not-permitted',
      errno: 'EPERM',
      message: `the write would turn a probed raw image into ${format}`,
      hint: 'declare its format: name it .raw, or mount it with --format raw',
      op: 'write',
      offset,
    });
  }
}

export const raw: DriverDescriptor = {
  name: 'raw',
  role: 'format',
  capabilities: {
    write: true,
    backing: false,
    zeroWithoutSpace: true,
    discard: true,
    grow: true,
    shrink: true,
    create: true,
    check: false,
    repair: false,
    internalSnapshots: false,
    compressedWrite: false,
  },
  inspect: async (file) => ({
    format: 'raw',
    virtualSizeBytes: file.lengthBytes,
    clusterBytes: null,
    backing: null,
    dataFiles: [],
    dirty: false,
    corrupt: false,
    encrypted: false,
    compressed: false,
    snapshots: [],
    formatSpecific: null,
  }),
  open: async (request) => new RawImage(request),
  createOptions: [
    {
      name: 'preallocation',
      type: 'choice',
      choices: ['off', 'falloc', 'full'],
      help: 'Take the space now; full: write it [off]',
    },
  ],
  create: async ({ file, virtualSizeBytes, options }) => {
    await file.resize(virtualSizeBytes);
    const preallocation = options.get('preallocation');
    if (preallocation === 'falloc' && virtualSizeBytes > 0)
      await file.allocate(guestOffset(0), virtualSizeBytes);
    if (preallocation === 'full') await writeZeros(file, virtualSizeBytes);
    await file.flush();
  },
};

const WRITE_BYTES = 2 << 20;

const writeZeros = async (file: Node, lengthBytes: number): Promise<void> => {
  const zeros = new Uint8Array(WRITE_BYTES);
  for (let at = 0; at < lengthBytes; at += WRITE_BYTES)
    await file.write(guestOffset(at), zeros.subarray(0, Math.min(WRITE_BYTES, lengthBytes - at)));
};
