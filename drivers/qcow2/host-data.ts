/**
 * Guest data in the image file: as it is, or encrypted by sectors (specification: "Data encryption").
 *
 * A sector's number, which its encryption depends on, is that of its place in the image file with LUKS, and that of its
 * place on the guest's disk with the old AES encryption (both as QEMU has it).
 *
 * An encrypted sector that is read while it is written would come out as noise, and part of a sector can only be written
 * after the rest was read. So each access holds its sectors, by guest offset: readers together, a writer alone. That
 * orders it with a cluster that is filled anew, too: what is read of it and written back is never older. Lock order: the
 * clusters of `ImageState.locks` first, then these; whoever holds these waits for nothing but the file and the cipher.
 */
import { alignUp, isAligned } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import { type Content, HostRange, notCopied } from '../../src/block/host-range.ts';
import type { Node } from '../../src/block/node.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import type { PooledCipher } from './encryption/cipher-pool.ts';
import { CRYPT_SECTOR_BYTES } from './encryption/sector-cipher.ts';

/** Bytes of the guest and where they are. */
export interface DataPlace {
  readonly guest: number;
  readonly host: number;
}

export interface HostData {
  readonly isEncrypted: boolean;
  read(at: DataPlace, buffer: Uint8Array): Promise<void>;
  /** The buffer is not changed. Errors: of kind unsupported for what is not in memory and has to be. */
  write(at: DataPlace, bytes: Content): Promise<void>;
  /** Nothing may be under way. */
  close(): void;
}

/** Data that lies there as the guest sees it. */
export class PlainData implements HostData {
  readonly isEncrypted = false;
  readonly #file: Node;

  constructor(file: Node) {
    this.#file = file;
  }

  async read({ host }: DataPlace, buffer: Uint8Array): Promise<void> {
    await this.#file.readClipped(guestOffset(host), buffer);
  }

  async write({ host }: DataPlace, bytes: Content): Promise<void> {
    if (!(bytes instanceof HostRange)) await this.#file.write(guestOffset(host), bytes);
    else if (!(await this.#file.copyIn(guestOffset(host), bytes, 'write'))) throw notCopied();
  }

  close(): void {}
}

/** Longer accesses go through memory in pieces. */
const PIECE_BYTES = 2 << 20;

export class EncryptedData implements HostData {
  readonly isEncrypted = true;
  readonly #file: Node;
  readonly #cipher: PooledCipher;
  readonly #numberedBy: keyof DataPlace;
  /** By guest offset. */
  readonly #sectors = new RangeLocks();

  constructor(file: Node, cipher: PooledCipher, numberedBy: keyof DataPlace) {
    this.#file = file;
    this.#cipher = cipher;
    this.#numberedBy = numberedBy;
  }

  async read(at: DataPlace, buffer: Uint8Array): Promise<void> {
    for (let done = 0; done < buffer.length; done += PIECE_BYTES) {
      const piece = buffer.subarray(done, done + PIECE_BYTES);
      const { place, lengthBytes, before } = sectorsOf(moved(at, done), piece.length);
      const sectors = await this.#locked(place, lengthBytes, 'shared', () =>
        this.#readSectors(place, lengthBytes),
      );
      const plain = await this.#cipher.run('decrypt', this.#number(place), sectors);
      piece.set(plain.subarray(before, before + piece.length));
    }
  }

  async write(at: DataPlace, bytes: Content): Promise<void> {
    if (bytes instanceof HostRange) throw notCopied();
    for (let done = 0; done < bytes.length; done += PIECE_BYTES) {
      const piece = bytes.subarray(done, done + PIECE_BYTES);
      const from = moved(at, done);
      if (areSectors(from.guest, piece.length)) await this.#writeWhole(from, piece);
      else await this.#writePart(from, piece);
    }
  }

  close(): void {
    this.#cipher.close();
  }

  async #writeWhole(at: DataPlace, bytes: Uint8Array): Promise<void> {
    const sectors = await this.#cipher.run('encrypt', this.#number(at), new Uint8Array(bytes));
    await this.#locked(at, bytes.length, 'alone', () =>
      this.#file.write(guestOffset(at.host), sectors),
    );
  }

  async #writePart(at: DataPlace, bytes: Uint8Array): Promise<void> {
    const { place, lengthBytes, before } = sectorsOf(at, bytes.length);
    await this.#locked(place, lengthBytes, 'alone', async () => {
      const number = this.#number(place);
      const old = await this.#readSectors(place, lengthBytes);
      const plain = await this.#cipher.run('decrypt', number, old);
      plain.set(bytes, before);
      const sectors = await this.#cipher.run('encrypt', number, plain);
      await this.#file.write(guestOffset(place.host), sectors);
    });
  }

  async #readSectors(place: DataPlace, lengthBytes: number): Promise<Uint8Array<ArrayBuffer>> {
    const sectors = new Uint8Array(lengthBytes);
    await this.#file.readClipped(guestOffset(place.host), sectors);
    return sectors;
  }

  #number(place: DataPlace): number {
    return place[this.#numberedBy] / CRYPT_SECTOR_BYTES;
  }

  async #locked<T>(
    { guest }: DataPlace,
    lengthBytes: number,
    mode: 'shared' | 'alone',
    work: () => Promise<T>,
  ): Promise<T> {
    const range = { start: guest, end: guest + lengthBytes };
    using _lock = await this.#sectors.acquire(range, { shared: mode === 'shared' });
    return await work();
  }
}

const areSectors = (start: number, lengthBytes: number): boolean =>
  isAligned(start, CRYPT_SECTOR_BYTES) && isAligned(lengthBytes, CRYPT_SECTOR_BYTES);

const moved = ({ guest, host }: DataPlace, bytes: number): DataPlace => ({
  guest: guest + bytes,
  host: host + bytes,
});

/** Guest and host offset are the same within a sector: clusters are whole sectors. */
const sectorsOf = (at: DataPlace, lengthBytes: number) => {
  const before = at.guest % CRYPT_SECTOR_BYTES;
  return {
    place: moved(at, -before),
    lengthBytes: alignUp(before + lengthBytes, CRYPT_SECTOR_BYTES),
    before,
  };
};
