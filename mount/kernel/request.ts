/**
 * One FUSE request in a region of memory: a slot, or a buffer of its own once it was detached.
 *
 * The region has the layout of a slot (src/translation/slots.ts): the request was read to REQUEST_AT, so that the
 * payload of a WRITE begins at HEADER_AREA_BYTES; the reply's header lies right before that, so that the data of a READ
 * does too. Writing a reply overwrites the request: a handler reads all of its fields first.
 */
import { readU64LE } from '../../src/base/byte-order.ts';
import { PAGE_AT, type PageAlong, readPageAlong } from '../../src/translation/pages-along.ts';
import { HEADER_AREA_BYTES } from '../../src/translation/slots.ts';
import { IN, IN_HEADER_BYTES, OPCODE, OUT, OUT_HEADER_BYTES, WRITE_IN } from './abi.ts';

/** Where a request's header begins: a WRITE has 80 bytes before its payload. */
export const REQUEST_AT = HEADER_AREA_BYTES - IN_HEADER_BYTES - WRITE_IN.bytes;
export const REQUEST_BODY_AT = REQUEST_AT + IN_HEADER_BYTES;
export const REPLY_AT = HEADER_AREA_BYTES - OUT_HEADER_BYTES;
export const REPLY_BODY_AT = HEADER_AREA_BYTES;
/** Longest body of a reply that is no data: a directory listing has its size in the request. */
const SMALL_REPLY_BYTES = 4096;

/** A region with the views that a request needs; made once for each slot. */
export interface Region {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

export const regionOf = (bytes: Uint8Array): Region => ({
  bytes,
  view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
});

export class FuseRequest {
  readonly opcode: number;
  readonly nodeId: number;
  /** The two halves of `unique`: it has 64 bits, and the top one marks a resent request. */
  readonly uniqueLow: number;
  readonly uniqueHigh: number;
  readonly lengthBytes: number;
  /** When the control plane has got it; `performance.now()`. */
  readonly arrivedMs = performance.now();
  #region: Region;
  #slot: number;

  constructor(region: Region, slot: number) {
    const { view } = region;
    this.#region = region;
    this.#slot = slot;
    this.opcode = view.getUint32(REQUEST_AT + IN.opcode, true);
    this.nodeId = readU64LE(view, REQUEST_AT + IN.nodeId);
    this.uniqueLow = view.getUint32(REQUEST_AT + IN.unique, true);
    this.uniqueHigh = view.getUint32(REQUEST_AT + IN.unique + 4, true);
    this.lengthBytes = view.getUint32(REQUEST_AT + IN.length, true);
  }

  /** -1 once the request lies in a buffer of its own. */
  get slot(): number {
    return this.#slot;
  }

  get bodyBytes(): number {
    return this.lengthBytes - IN_HEADER_BYTES;
  }

  /** Fields of the request's body, by their offset in it. */
  u32(field: number): number {
    return this.#region.view.getUint32(REQUEST_BODY_AT + field, true);
  }

  /** NaN past 2^53 - 1. */
  u64(field: number): number {
    return readU64LE(this.#region.view, REQUEST_BODY_AT + field);
  }

  /** A string of the body that ends with a NUL byte. */
  text(field: number): string {
    const from = REQUEST_BODY_AT + field;
    const end = this.#region.bytes.indexOf(0, from);
    const limit = REQUEST_AT + this.lengthBytes;
    const to = end < 0 || end > limit ? limit : end;
    // Copied: a decoder does not take memory that is shared.
    return Buffer.from(this.#region.bytes.slice(from, to)).toString('utf8');
  }

  /** The payload of a WRITE, or the place of a reply's data. */
  payload(lengthBytes: number): Uint8Array {
    return this.#region.bytes.subarray(REPLY_BODY_AT, REPLY_BODY_AT + lengthBytes);
  }

  /** What the worker says of the page that has come along with a WRITE; null when none has. */
  pageAlong(): PageAlong | null {
    return this.#slot < 0 ? null : readPageAlong(this.#region.view);
  }

  /** Its bytes, in memory that is this request's. */
  pageBytes({ lengthBytes }: PageAlong): Uint8Array {
    return this.#region.bytes.subarray(PAGE_AT, PAGE_AT + lengthBytes);
  }

  /** For writing a reply's body. */
  get reply(): DataView {
    return this.#region.view;
  }

  get bytes(): Uint8Array {
    return this.#region.bytes;
  }

  /** Fills the reply's header; returns its whole length. `errno` positive, 0 for success. */
  finish(errno: number, bodyBytes: number): number {
    const { view } = this.#region;
    const length = OUT_HEADER_BYTES + bodyBytes;
    view.setUint32(REPLY_AT + OUT.length, length, true);
    view.setInt32(REPLY_AT + OUT.error, -errno, true);
    view.setUint32(REPLY_AT + OUT.unique, this.uniqueLow, true);
    view.setUint32(REPLY_AT + OUT.unique + 4, this.uniqueHigh, true);
    return length;
  }

  /**
   * A whole reply that says no more than an error, in memory of its own: for a request whose region something still
   * reads or writes. `errno` positive.
   */
  errorReply(errno: number): Uint8Array {
    const bytes = new Uint8Array(OUT_HEADER_BYTES);
    const view = new DataView(bytes.buffer);
    view.setUint32(OUT.length, OUT_HEADER_BYTES, true);
    view.setInt32(OUT.error, -errno, true);
    view.setUint32(OUT.unique, this.uniqueLow, true);
    view.setUint32(OUT.unique + 4, this.uniqueHigh, true);
    return bytes;
  }

  /** Moves the request to a buffer of its own, so that its slot can be given back: returns that slot. */
  detach(): number {
    const slot = this.#slot;
    const end = Math.max(REQUEST_AT + this.lengthBytes, REPLY_BODY_AT + SMALL_REPLY_BYTES);
    this.#region = regionOf(Uint8Array.from(this.#region.bytes.subarray(0, end)));
    this.#slot = -1;
    return slot;
  }

  /** Bytes of a detached request that count against the view's bound. */
  get heldBytes(): number {
    return this.opcode === OPCODE.WRITE ? this.lengthBytes : 0;
  }

  /** Makes room for a reply's data in a detached request. */
  makeRoom(lengthBytes: number): void {
    if (this.#slot >= 0 || this.#region.bytes.length >= REPLY_BODY_AT + lengthBytes) return;
    const bytes = new Uint8Array(REPLY_BODY_AT + lengthBytes);
    bytes.set(this.#region.bytes);
    this.#region = regionOf(bytes);
  }
}
