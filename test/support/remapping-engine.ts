/**
 * A control plane that never leaves its pages where they are: moves them to other clusters, freezes clusters as a
 * snapshot does, frees what was discarded, and poisons each cluster that it frees. It uses the real table and its rules;
 * with `waits` false it frees without waiting for the workers, which a stress must notice.
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { OPCODE, READ_IN } from '../../mount/kernel/abi.ts';
import { type FuseRequest, REPLY_BODY_AT } from '../../mount/kernel/request.ts';
import { present } from '../../src/base/assert.ts';
import { RangeLocks } from '../../src/block/range-locks.ts';
import { READ, type SharedTable, WRITE, ZERO } from '../../src/translation/table-layout.ts';
import { TranslationTable } from '../../src/translation/translation-table.ts';
import { POISON_BYTE, STRESS_PAGE_BYTES } from './stress-pages.ts';

export interface RemappingOptions {
  readonly path: string;
  readonly pages: number;
  readonly table: SharedTable;
  readonly view: number;
  readonly waits: boolean;
}

interface Place {
  /** Null: reads as zeros. */
  readonly cluster: number | null;
  /** What a snapshot saw; such a cluster is never written. */
  readonly frozen: Uint8Array | null;
}

const NOWHERE: Place = { cluster: null, frozen: null };
const POISON = new Uint8Array(STRESS_PAGE_BYTES).fill(POISON_BYTE);

export class RemappingEngine {
  readonly #options: RemappingOptions;
  readonly #table: TranslationTable;
  readonly #file: number;
  readonly #index: number;
  readonly #places: Place[];
  readonly #free: number[];
  readonly #locks = new RangeLocks();
  /** What was found wrong: a frozen cluster that was written. */
  readonly findings: string[] = [];
  remapped = 0;

  constructor(options: RemappingOptions) {
    const { pages } = options;
    this.#options = options;
    this.#table = new TranslationTable(options.table, { reportAfterMs: 10_000, stuck: () => {} });
    this.#file = openSync(options.path, 'w+');
    this.#index = present(this.#table.addFile(this.#file), 'a table has room for one file');
    this.#places = Array.from({ length: pages }, () => NOWHERE);
    this.#free = Array.from({ length: pages + 16 }, (_, cluster) => cluster);
    const bits = Math.log2(STRESS_PAGE_BYTES);
    this.#table.openView(options.view, bits, pages * STRESS_PAGE_BYTES);
    for (let page = 0; page < pages; page++) this.#fill(page);
  }

  close(): void {
    closeSync(this.#file);
  }

  /** Serves a request that no worker could. */
  async serve(request: FuseRequest, answer: (bodyBytes: number) => void): Promise<void> {
    const offset = request.u64(READ_IN.offset);
    const size = request.u32(READ_IN.size);
    const first = offset / STRESS_PAGE_BYTES;
    const last = first + size / STRESS_PAGE_BYTES;
    const lock = await this.#locks.acquire({ start: first, end: last });
    try {
      if (request.opcode === OPCODE.READ) {
        const bytes = request.payload(size);
        for (let page = first; page < last; page++) {
          const at = (page - first) * STRESS_PAGE_BYTES;
          this.#read(page, bytes.subarray(at, at + STRESS_PAGE_BYTES));
        }
        answer(size);
        return;
      }
      if (request.nodeId === this.#options.view) await this.#write(first, request.payload(size));
      else await this.#discard(first);
      request.reply.setUint32(REPLY_BODY_AT, size, true);
      answer(8);
    } finally {
      lock.release();
    }
  }

  /** Moves a page, or freezes the cluster where it is. */
  async remap(page: number, how: 'move' | 'freeze'): Promise<void> {
    const lock = await this.#locks.acquire({ start: page, end: page + 1 });
    try {
      const old = this.#place(page);
      if (old.cluster === null || old.frozen !== null) return;
      this.remapped++;
      this.#revoke(page);
      await this.#quiesce(page);
      const content = new Uint8Array(STRESS_PAGE_BYTES);
      this.#read(page, content);
      if (how === 'freeze') {
        this.#places[page] = { cluster: old.cluster, frozen: content };
        this.#fill(page);
        return;
      }
      const cluster = this.#take();
      this.#writeCluster(cluster, content);
      this.#places[page] = { cluster, frozen: null };
      this.#fill(page);
      this.#release(old);
    } finally {
      lock.release();
    }
  }

  async #write(page: number, bytes: Uint8Array): Promise<void> {
    const old = this.#place(page);
    if (old.cluster !== null && old.frozen === null) {
      this.#writeCluster(old.cluster, bytes);
      this.#fill(page);
      return;
    }
    const cluster = this.#take();
    this.#writeCluster(cluster, bytes);
    await this.#replace(page, { cluster, frozen: null });
  }

  async #discard(page: number): Promise<void> {
    await this.#replace(page, NOWHERE);
  }

  /** The workers may use the new place before the last of them has left the old one. */
  async #replace(page: number, place: Place): Promise<void> {
    const old = this.#place(page);
    this.#revoke(page);
    this.#places[page] = place;
    this.#fill(page);
    await this.#quiesce(page);
    this.#release(old);
  }

  #place(page: number): Place {
    return this.#places[page] ?? NOWHERE;
  }

  #read(page: number, bytes: Uint8Array): void {
    const { cluster } = this.#place(page);
    if (cluster === null) bytes.fill(0);
    else readSync(this.#file, bytes, 0, bytes.length, cluster * STRESS_PAGE_BYTES);
  }

  #fill(page: number): void {
    const { cluster, frozen } = this.#place(page);
    const translation =
      cluster === null
        ? { permissions: READ | ZERO, file: 0, hostOffset: 0 }
        : {
            permissions: frozen === null ? READ | WRITE : READ,
            file: this.#index,
            hostOffset: cluster * STRESS_PAGE_BYTES,
          };
    this.#table.fill(this.#options.view, page, [translation]);
  }

  #revoke(page: number): void {
    this.#table.revoke({ view: this.#options.view, firstPage: page, lastPage: page });
  }

  async #quiesce(page: number): Promise<void> {
    if (!this.#options.waits) return;
    await this.#table.quiesce({ view: this.#options.view, firstPage: page, lastPage: page });
  }

  #take(): number {
    return present(this.#free.shift(), 'there are more clusters than pages');
  }

  #writeCluster(cluster: number, bytes: Uint8Array): void {
    writeSync(this.#file, bytes, 0, bytes.length, cluster * STRESS_PAGE_BYTES);
  }

  #release({ cluster, frozen }: Place): void {
    if (cluster === null) return;
    if (frozen !== null) {
      const now = new Uint8Array(STRESS_PAGE_BYTES);
      readSync(this.#file, now, 0, now.length, cluster * STRESS_PAGE_BYTES);
      if (Buffer.compare(now, frozen) !== 0) this.findings.push(`cluster ${cluster} was frozen`);
    }
    this.#writeCluster(cluster, POISON);
    this.#free.push(cluster);
  }
}
