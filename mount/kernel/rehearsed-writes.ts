/**
 * Takes the place of a worker in a rehearsal (src/daemon/rehearsal.ts): hands over writes that no kernel has sent, laid out as a kernel
 * and a worker leave them in a slot, with the page that they copy where there is one. Of the control plane's own thread.
 */
import { readSync } from 'node:fs';
import { writeU64LE } from '../../src/base/byte-order.ts';
import { Lookup } from '../../src/translation/lookup.ts';
import { PAGE_AT, writeNoPage, writePageAlong } from '../../src/translation/pages-along.ts';
import { HEADER_AREA_BYTES, SlotTaker } from '../../src/translation/slots.ts';
import { layoutOf } from '../../src/translation/table-layout.ts';
import { IN, IN_HEADER_BYTES, OPCODE, WRITE_IN } from './abi.ts';
import { ringDoorbell } from './doorbell.ts';
import { REQUEST_AT, REQUEST_BODY_AT } from './request.ts';
import type { WorkerSetup } from './worker-pool.ts';

export interface RehearsedWrite {
  readonly nodeId: number;
  readonly offset: number;
  /** No more than a slot has room for. */
  readonly lengthBytes: number;
}

/** A kernel numbers its requests by two. */
const UNIQUE_STEP = 2;

export class RehearsedWrites {
  /** What every byte of them is. */
  static readonly BYTE = 0x52;

  readonly #setup: WorkerSetup;
  readonly #taker: SlotTaker;
  readonly #fields: DataView;
  readonly #memory: Uint8Array;
  readonly #lookup: Lookup | null;
  /** Slots of writes that were not answered when it was last asked. */
  #lent: number[] = [];
  #pagesRead = 0;
  #unique = UNIQUE_STEP;

  constructor(setup: WorkerSetup) {
    this.#setup = setup;
    const { slots, table, worker } = setup;
    this.#taker = new SlotTaker(slots);
    this.#fields = new DataView(slots.memory);
    this.#memory = new Uint8Array(slots.memory);
    this.#lookup = table === null ? null : new Lookup(layoutOf(table), worker);
  }

  /** Hands one over. False: no slot is free now. */
  send(write: RehearsedWrite): boolean {
    const { slots, doorbell } = this.#setup;
    const slot = this.#taker.takeNow();
    if (slot < 0) return false;
    const base = slots.firstByte + slot * slots.slotBytes;
    this.#layOut(base, write);
    writeNoPage(this.#fields, base);
    this.#readPage(base, write);
    this.#lent.push(slot);
    if (this.#taker.handOver(slot)) ringDoorbell(doorbell);
    return true;
  }

  /** All that were handed over are answered, well or not. Of a few at a time: many would be moved out of their slots, to wait. */
  get areAnswered(): boolean {
    this.#lent = this.#lent.filter((slot) => !this.#taker.isFree(slot));
    return this.#lent.length === 0;
  }

  /** Writes with which the page came along that they copy. */
  get pagesRead(): number {
    return this.#pagesRead;
  }

  #layOut(base: number, { nodeId, offset, lengthBytes }: RehearsedWrite): void {
    const fields = this.#fields;
    const header = base + REQUEST_AT;
    const body = base + REQUEST_BODY_AT;
    fields.setUint32(header + IN.length, IN_HEADER_BYTES + WRITE_IN.bytes + lengthBytes, true);
    fields.setUint32(header + IN.opcode, OPCODE.WRITE, true);
    writeU64LE(fields, header + IN.unique, this.#unique);
    this.#unique += UNIQUE_STEP;
    writeU64LE(fields, header + IN.nodeId, nodeId);
    writeU64LE(fields, body + WRITE_IN.offset, offset);
    fields.setUint32(body + WRITE_IN.size, lengthBytes, true);
    fields.setUint32(body + WRITE_IN.writeFlags, 0, true);
    const payload = base + HEADER_AREA_BYTES;
    this.#memory.fill(RehearsedWrites.BYTE, payload, payload + lengthBytes);
  }

  #readPage(base: number, { nodeId, offset, lengthBytes }: RehearsedWrite): void {
    const lookup = this.#lookup;
    if (lookup?.beginPage(nodeId, offset, lengthBytes) !== true) return;
    const pageBytes = lookup.lengths[0] ?? 0;
    const [file = -1] = lookup.files;
    const [from = 0] = lookup.hostOffsets;
    let got = 0;
    try {
      got = readSync(file, this.#memory, base + PAGE_AT, pageBytes, from);
    } finally {
      lookup.end();
    }
    const { state, word0, word1 } = lookup;
    const page = { lengthBytes: pageBytes, state, word0, word1 };
    if (got !== pageBytes) return;
    writePageAlong(this.#fields, base, page);
    this.#pagesRead++;
  }
}
