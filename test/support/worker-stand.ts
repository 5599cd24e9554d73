/**
 * The data plane's real workers without a kernel: each worker's descriptor is one end of a socket pair that keeps messages
 * apart, as /dev/fuse does; what holds the other end plays the kernel, one request at a time.
 */
import { readSync, writeSync } from 'node:fs';
import koffi from 'koffi';
import {
  FSYNC_IN,
  IN,
  IN_HEADER_BYTES,
  OPCODE,
  OUT,
  OUT_HEADER_BYTES,
  READ_IN,
  WRITE_IN,
} from '../../mount/kernel/abi.ts';
import { Doorbell } from '../../mount/kernel/doorbell.ts';
import { FuseRequest, REPLY_AT, type Region, regionOf } from '../../mount/kernel/request.ts';
import { createSharedWatch } from '../../mount/kernel/request-watch.ts';
import { runWorkers } from '../../mount/kernel/worker-pool.ts';
import { addressOf } from '../../src/os/c-library.ts';
import { createSharedCounters } from '../../src/translation/counters.ts';
import { createSharedSlots, SlotReceiver } from '../../src/translation/slots.ts';
import type { SharedTable } from '../../src/translation/table-layout.ts';

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const libc = koffi.load('libc.so.6');
const socketPair = libc.func('int socketpair(int domain, int type, int protocol, _Out_ int *ends)');
/** Node warns of its own `closeSync` for descriptors that it did not open. */
const closeDescriptor = libc.func('int close(int descriptor)');

/** Longest payload of one request here: it has to fit the socket's buffer. */
export const STAND_PAYLOAD_BYTES = 64 << 10;
const OK = 0;

/** The kernel's side of one worker: sends a request, waits for the answer. Blocks its thread. */
export class StandIn {
  readonly #descriptor: number;
  readonly #worker: number;
  readonly #request = new Uint8Array(IN_HEADER_BYTES + WRITE_IN.bytes + STAND_PAYLOAD_BYTES);
  readonly #fields = new DataView(this.#request.buffer);
  readonly #reply = new Uint8Array(OUT_HEADER_BYTES + STAND_PAYLOAD_BYTES);
  readonly #replyFields = new DataView(this.#reply.buffer);
  #unique = 0;

  constructor(descriptor: number, worker: number) {
    this.#descriptor = descriptor;
    this.#worker = worker;
  }

  /** Where the payload of the next WRITE goes, and where that of the last READ lies. */
  readonly outgoing = this.#request.subarray(IN_HEADER_BYTES + WRITE_IN.bytes);
  readonly incoming = this.#reply.subarray(OUT_HEADER_BYTES);

  /** Sends an FSYNC; `answered` takes the answer. */
  fsync(node: number): void {
    const length = IN_HEADER_BYTES + FSYNC_IN.bytes;
    this.#request.fill(0, IN_HEADER_BYTES, length);
    this.#header('FSYNC', node, length);
    writeSync(this.#descriptor, this.#request, 0, length);
  }

  /** Takes one answer; its error, 0 for none. Blocks until there is one. */
  answered(): number {
    readSync(this.#descriptor, this.#reply, 0, this.#reply.length, null);
    return this.#replyFields.getInt32(OUT.error, true);
  }

  /** Returns the request's number. */
  #header(opcode: 'READ' | 'WRITE' | 'FSYNC', node: number, length: number): number {
    const fields = this.#fields;
    const unique = ++this.#unique;
    fields.setUint32(IN.length, length, true);
    fields.setUint32(IN.opcode, OPCODE[opcode], true);
    fields.setUint32(IN.unique, unique, true);
    fields.setUint32(IN.unique + 4, this.#worker, true);
    fields.setUint32(IN.nodeId, node, true);
    return unique;
  }

  /** Throws for an answer to another request, of another length, or an error. */
  transfer(opcode: 'READ' | 'WRITE', node: number, offset: number, lengthBytes: number): void {
    const fields = this.#fields;
    const isWrite = opcode === 'WRITE';
    const length = IN_HEADER_BYTES + WRITE_IN.bytes + (isWrite ? lengthBytes : 0);
    const unique = this.#header(opcode, node, length);
    fields.setUint32(IN_HEADER_BYTES + READ_IN.offset, offset % 2 ** 32, true);
    fields.setUint32(IN_HEADER_BYTES + READ_IN.offset + 4, Math.floor(offset / 2 ** 32), true);
    fields.setUint32(IN_HEADER_BYTES + READ_IN.size, lengthBytes, true);
    writeSync(this.#descriptor, this.#request, 0, length);
    const got = readSync(this.#descriptor, this.#reply, 0, this.#reply.length, null);
    const reply = this.#replyFields;
    const error = reply.getInt32(OUT.error, true);
    if (error !== OK) throw new Error(`${opcode} at ${offset} was answered with ${error}`);
    const answered = reply.getUint32(OUT.unique, true);
    if (answered !== unique) throw new Error(`request ${unique} got the answer of ${answered}`);
    if (isWrite || got === OUT_HEADER_BYTES + lengthBytes) return;
    throw new Error(`${opcode} of ${lengthBytes} bytes was answered with ${got}`);
  }
}

export interface WorkerStandOptions {
  readonly workers: number;
  readonly table: SharedTable;
  /** A request that no worker could answer; the region is its own until it is answered. */
  readonly faulted: (request: FuseRequest, answer: (bodyBytes: number) => void) => void;
}

export interface WorkerStand {
  /** The kernel's end of each worker, for a `StandIn` on a thread of its own. */
  readonly ends: readonly number[];
  readonly counters: SharedArrayBuffer;
  /** Ends the workers; nobody may send any more. */
  close(): Promise<void>;
}

/** Starts real workers; the calling thread is their control plane. */
export const startWorkers = (options: WorkerStandOptions): WorkerStand => {
  const { workers, table, faulted } = options;
  const pairs = Array.from({ length: workers }, () => {
    const ends = [0, 0];
    if (socketPair(AF_UNIX, SOCK_SEQPACKET, 0, ends) !== 0) throw new Error('socketpair failed');
    return { ours: ends[0] ?? 0, kernel: ends[1] ?? 0 };
  });
  const slots = createSharedSlots({ slots: 16, payloadBytes: STAND_PAYLOAD_BYTES, addressOf });
  const receiver = new SlotReceiver(slots);
  const regions: readonly Region[] = Array.from({ length: slots.slots }, (_, slot) => {
    const at = slots.firstByte + slot * slots.slotBytes;
    return regionOf(new Uint8Array(slots.memory, at, slots.slotBytes));
  });
  const serve = (slot: number): void => {
    const request = new FuseRequest(regions[slot] as Region, slot);
    const descriptor = pairs[request.uniqueHigh]?.ours ?? -1;
    faulted(request, (bodyBytes) => {
      const length = request.finish(OK, bodyBytes);
      writeSync(descriptor, request.bytes, REPLY_AT, length);
      receiver.release(slot);
    });
  };
  const doorbell = new Doorbell(() => {
    receiver.wake();
    for (let slot = receiver.next(); slot >= 0; slot = receiver.next()) serve(slot);
    receiver.sleep();
    // One that was handed over before `sleep` did not ring.
    for (let slot = receiver.next(); slot >= 0; slot = receiver.next()) serve(slot);
  });
  const counters = createSharedCounters(workers);
  const ended = runWorkers(
    pairs.map(({ ours }, worker) => ({
      worker,
      descriptor: ours,
      doorbell: doorbell.writeEnd,
      slots,
      spliceOffset: new SharedArrayBuffer(8),
      // Each has a descriptor of its own, and nobody else to look for it.
      workers: 1,
      watch: createSharedWatch(),
      counters,
      latencies: null,
      table,
    })),
  );
  const close = async (): Promise<void> => {
    for (const { kernel } of pairs) closeDescriptor(kernel);
    await ended;
    for (const { ours } of pairs) closeDescriptor(ours);
    doorbell.close();
  };
  return { ends: pairs.map(({ kernel }) => kernel), counters, close };
};
