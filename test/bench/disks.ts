/** The images that the benchmark runs on, made by qemu-img; each row gives both servers copies of the same one. */
import { copyFile, rm, truncate, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { writeAddCow } from '../support/add-cow-file.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { tool } from './programs.ts';

export const MIB = 2 ** 20;
export const GIB = 2 ** 30;
export const DISK_BYTES = GIB;
/** Of the image `part`: all that lies below is allocated, nothing above. */
export const PART_ALLOCATED_BYTES = 512 * MIB;

export type DiskKind =
  /** 1 GiB, fully allocated. */
  | 'full'
  /** The same bytes in a raw file. */
  | 'full-raw'
  /** 1 GiB, nothing allocated. */
  | 'fresh'
  /** An empty overlay of `full`. */
  | 'overlay'
  /** 32 GiB, of which the first 512 MiB are allocated. */
  | 'part'
  /** 1 TiB with all its mapping metadata, in a sparse file. */
  | 'tebibyte'
  /** 1 GiB, all of it in the image file, NAME.data. */
  | 'add-cow-full'
  /** An empty add-cow overlay of `full`, and its image file. */
  | 'add-cow-overlay';

const ADD_COW_CLUSTER_BYTES = 65_536;

const writeRandom = async (path: string, bytes: number): Promise<void> => {
  await tool('dd', ['if=/dev/urandom', `of=${path}`, 'bs=1M', `count=${bytes / MIB}`]);
};

/** Makes disks below a directory; what they are copied from is made once and removed by `remove`. */
export class Disks {
  readonly #directory: string;
  readonly #made = new Map<'raw' | 'full', Promise<string>>();
  #count = 0;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** A new image, its bytes in the host's page cache. The caller removes it. */
  async make(kind: DiskKind): Promise<string> {
    const image = join(this.#directory, `${kind}-${this.#count++}`);
    switch (kind) {
      case 'full':
        await copyFile(await this.#full(), image);
        break;
      case 'full-raw':
        await copyFile(await this.#raw(), image);
        break;
      case 'fresh':
        await qemuImg(['create', '-q', '-f', 'qcow2', image, String(DISK_BYTES)]);
        break;
      case 'overlay':
        await qemuImg([
          ...['create', '-q', '-f', 'qcow2', '-F', 'qcow2'],
          ...['-b', await this.#full(), image],
        ]);
        break;
      case 'part': {
        await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', await this.#raw(), image]);
        await qemuImg(['resize', '-q', '--shrink', image, String(PART_ALLOCATED_BYTES)]);
        await qemuImg(['resize', '-q', image, String(32 * GIB)]);
        break;
      }
      case 'add-cow-full':
        await copyFile(await this.#raw(), `${image}.data`);
        await this.#writeAddCow(image, null);
        break;
      case 'add-cow-overlay':
        await writeFile(`${image}.data`, '');
        await truncate(`${image}.data`, DISK_BYTES);
        await this.#writeAddCow(image, await this.#full());
        break;
      case 'tebibyte':
        await qemuImg([
          ...['create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata'],
          ...[image, String(2 ** 40)],
        ]);
        break;
    }
    // Else its writeback runs beside what is measured.
    await tool('sync', [image]);
    return image;
  }

  /** Removes an image and what was made with it. */
  async discard(image: string): Promise<void> {
    for (const path of [image, `${image}.data`]) await rm(path, { force: true });
  }

  async remove(): Promise<void> {
    for (const path of this.#made.values()) await rm(await path);
    this.#made.clear();
  }

  async #writeAddCow(image: string, backing: string | null): Promise<void> {
    const isAllAllocated = backing === null;
    await writeAddCow(image, {
      clusterBytes: ADD_COW_CLUSTER_BYTES,
      backing: backing === null ? null : { name: basename(backing), format: 'qcow2' },
      image: { name: `${basename(image)}.data`, format: 'raw' },
      isAllAllocated,
      bits: new Array<boolean>(DISK_BYTES / ADD_COW_CLUSTER_BYTES).fill(isAllAllocated),
    });
    await tool('sync', [`${image}.data`]);
  }

  #raw(): Promise<string> {
    return this.#once('raw', (path) => writeRandom(path, DISK_BYTES));
  }

  #full(): Promise<string> {
    return this.#once('full', async (path) => {
      await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', await this.#raw(), path]);
    });
  }

  #once(name: 'raw' | 'full', make: (path: string) => Promise<void>): Promise<string> {
    const known = this.#made.get(name);
    if (known !== undefined) return known;
    const path = join(this.#directory, `master-${name}`);
    const made = make(path).then(() => path);
    this.#made.set(name, made);
    return made;
  }
}

/** Writes back and drops the host's page cache. */
export const dropHostCache = async (): Promise<void> => {
  await tool('sync', []);
  await tool('sh', ['-c', 'echo 3 > /proc/sys/vm/drop_caches']);
};
