/**
 * Whether an add-cow file keeps its rules, and mending it. Leaks are what no reader minds: bits past the last cluster,
 * bytes of the header that belong to nothing, a bitmap that ALL_ALLOCATED makes superfluous and that says otherwise. A
 * bitmap that ends early is a corruption: clusters are missing that may have been written.
 */
import { toBlockError } from '../../src/base/block-error.ts';
import { divideUp } from '../../src/base/range.ts';
import { guestOffset } from '../../src/base/units.ts';
import {
  type CheckRequest,
  type CheckResult,
  MAX_CHECK_FINDINGS,
} from '../../src/block/image-check.ts';
import { Bitmap, bitmapBytesOf } from './bitmap.ts';
import { type AddCowHeader, readHeader } from './header.ts';
import { compatibleFeatures } from './header-write.ts';
import { FIELD, FIELDS_BYTES, FORMAT_BYTES } from './layout.ts';

const CACHE_BYTES = 1 << 20;
/** Bits that are changed between two writes of the tables. */
const CLUSTERS_PER_STEP = 2 ** 22;

/** Errors: kind invalid-image, unsupported for a header that cannot be read; EIO. */
export const check = async (request: CheckRequest): Promise<CheckResult> => {
  const header = await readHeader(request.file, request.path);
  return new AddCowCheck(request, header).run();
};

class AddCowCheck {
  readonly #request: CheckRequest;
  readonly #header: AddCowHeader;
  readonly #bitmap: Bitmap;
  readonly #findings: string[] = [];
  #corruptions = 0;
  #leaks = 0;
  #corruptionsFixed = 0;
  #leaksFixed = 0;

  constructor(request: CheckRequest, header: AddCowHeader) {
    const { file } = request;
    const { clusterBytes, headerBytes } = header;
    this.#request = request;
    this.#header = header;
    this.#bitmap = new Bitmap({
      file,
      startBytes: headerBytes,
      clusterBytes,
      cacheBytes: CACHE_BYTES,
    });
  }

  async run(): Promise<CheckResult> {
    const { clusterBytes, headerBytes } = this.#header;
    await this.#checkPadding();
    const lengthBytes = await this.#guestLength();
    let clusters = 0;
    let set = 0;
    if (lengthBytes !== null) {
      clusters = divideUp(lengthBytes, clusterBytes);
      await this.#checkLength(clusters);
      await this.#checkStrayBits(clusters);
      set = await this.#checkAllAllocated(clusters);
    }
    return {
      corruptions: this.#corruptions - this.#corruptionsFixed,
      leaks: this.#leaks - this.#leaksFixed,
      corruptionsFixed: this.#corruptionsFixed,
      leaksFixed: this.#leaksFixed,
      checkErrors: lengthBytes === null ? 1 : 0,
      totalClusters: clusters,
      allocatedClusters: set,
      fragmentedClusters: 0,
      compressedClusters: 0,
      imageEndOffset: headerBytes + bitmapBytesOf(clusters, clusterBytes),
      findings: this.#findings,
    };
  }

  get #mendsLeaks(): boolean {
    return this.#request.repair !== 'none';
  }

  /** Opens everything that the header names. Null when that cannot be. */
  async #guestLength(): Promise<number | null> {
    try {
      return (await this.#request.openImage()).lengthBytes;
    } catch (error) {
      const { path } = this.#request;
      this.#note(
        `cannot be opened with what it names: ${toBlockError(error, { path }).describe()}`,
      );
      return null;
    }
  }

  /** Bytes of the header that belong to no field and no name are zero. */
  async #checkPadding(): Promise<void> {
    const { file } = this.#request;
    const { headerBytes, fields, names } = this.#header;
    const bytes = new Uint8Array(headerBytes);
    await file.readClipped(guestOffset(0), bytes);
    const clean = new Uint8Array(headerBytes);
    clean.set(fields);
    for (const field of [FIELD.backingFormat, FIELD.imageFormat]) {
      const end = fields.indexOf(0, field);
      if (end >= 0 && end < field + FORMAT_BYTES) clean.fill(0, end, field + FORMAT_BYTES);
    }
    for (const { start, end } of names) clean.set(bytes.subarray(start, end), start);
    let wrong = 0;
    for (let i = 0; i < headerBytes; i++) if (bytes[i] !== clean[i]) wrong++;
    if (wrong === 0) return;
    this.#leaks += wrong;
    this.#note(`${wrong} bytes of the header that belong to no name are not zero`);
    if (!this.#mendsLeaks) return;
    // The fields in one sector; the rest names nothing.
    await file.write(guestOffset(FIELDS_BYTES), clean.subarray(FIELDS_BYTES));
    await file.write(guestOffset(0), clean.subarray(0, FIELDS_BYTES));
    await file.flush();
    this.#leaksFixed += wrong;
  }

  async #checkLength(clusters: number): Promise<void> {
    const { file, repair } = this.#request;
    const { clusterBytes, headerBytes } = this.#header;
    const bytes = headerBytes + bitmapBytesOf(clusters, clusterBytes);
    const needed = headerBytes + divideUp(clusters, 8);
    if (file.lengthBytes < needed) {
      this.#corruptions++;
      const lost = needed - file.lengthBytes;
      this.#note(
        `the last ${lost} bytes of the bitmap are missing: their clusters read from the backing file`,
      );
      if (repair !== 'all') return;
      await file.resize(bytes);
      await file.flush();
      this.#corruptionsFixed++;
    } else if (file.lengthBytes > bytes) {
      this.#leaks++;
      this.#note(`${file.lengthBytes - bytes} bytes lie behind the bitmap`);
      if (!this.#mendsLeaks) return;
      await file.resize(bytes);
      await file.flush();
      this.#leaksFixed++;
    }
  }

  async #checkStrayBits(clusters: number): Promise<void> {
    const room = bitmapBytesOf(clusters, this.#header.clusterBytes) * 8;
    const stray = await this.#count(clusters, room);
    if (stray === 0) return;
    this.#leaks += stray;
    this.#note(`${stray} bits are set past the last cluster`);
    if (!this.#mendsLeaks) return;
    await this.#change(clusters, room, false, clusters);
    this.#leaksFixed += stray;
  }

  /** Returns how many clusters are in the image file by their bits. */
  async #checkAllAllocated(clusters: number): Promise<number> {
    const set = await this.#count(0, clusters);
    const { isAllAllocated } = this.#header;
    const { file, repair } = this.#request;
    if (isAllAllocated && set < clusters) {
      this.#leaks++;
      this.#note(
        `${clusters - set} bits are not set, and ALL_ALLOCATED says that all clusters are there`,
      );
      if (!this.#mendsLeaks) return clusters;
      await this.#change(0, clusters, true, clusters);
      this.#leaksFixed++;
      return clusters;
    }
    if (!isAllAllocated && set === clusters && clusters > 0) {
      this.#note('all clusters are in the image file, and ALL_ALLOCATED does not say so');
      if (repair === 'all') {
        await file.write(guestOffset(FIELD.compatible), compatibleFeatures(this.#header, true));
        await file.flush();
      }
    }
    return set;
  }

  async #count(from: number, end: number): Promise<number> {
    let set = 0;
    for (let at = from; at < end; ) {
      const run = await this.#bitmap.run(at, end - at);
      if (run.isSet) set += run.clusters;
      at += run.clusters;
    }
    return set;
  }

  async #change(from: number, end: number, isSet: boolean, clusters: number): Promise<void> {
    for (let at = from; at < end; at += CLUSTERS_PER_STEP) {
      await this.#bitmap.change(at, Math.min(CLUSTERS_PER_STEP, end - at), isSet);
      const snapshots = this.#bitmap.snapshotDirty();
      for (const snapshot of snapshots) await this.#bitmap.write(snapshot, clusters);
      this.#bitmap.written(snapshots);
    }
    await this.#request.file.flush();
  }

  #note(text: string): void {
    if (this.#findings.length < MAX_CHECK_FINDINGS) this.#findings.push(text);
  }
}
