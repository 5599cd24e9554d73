/**
 * A worker of the data plane: reads requests from /dev/fuse, answers reads and writes of translated pages itself, and FSYNCs that need
 * a sync of one host file alone, and hands everything else to the control plane. Its loop allocates nothing for a request that it answers.
 *
 * It ends when the mount is gone (ENODEV), after which its thread ends by itself.
 */
import { fdatasyncSync, readSync, writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { present } from '../../src/base/assert.ts';
import { ERRNO } from '../../src/base/errno.ts';
import { DIRECT_BLOCK_BYTES } from '../../src/block/driver.ts';
import { addressOf } from '../../src/os/c-library.ts';
import { isReadable } from '../../src/os/descriptors.ts';
import { readCached } from '../../src/os/file-ranges.ts';
import { yieldCore } from '../../src/os/process.ts';
import { COUNTER, WorkerCounters } from '../../src/translation/counters.ts';
import { Lookup, ZERO_RUN } from '../../src/translation/lookup.ts';
import {
  PAGE_AT,
  SLOT_BYTES_WITH_PAGE,
  writeNoPage,
  writePageAlong,
} from '../../src/translation/pages-along.ts';
import { Patience } from '../../src/translation/patience.ts';
import { HEADER_AREA_BYTES, SlotTaker } from '../../src/translation/slots.ts';
import { Syncs } from '../../src/translation/syncs.ts';
import { DIRECT_FILE, layoutOf, READ, WRITE } from '../../src/translation/table-layout.ts';
import { OPERATIONS, recorderOf } from '../latencies.ts';
import { FSYNC_IN, IN, OPCODE, OUT, OUT_HEADER_BYTES, READ_IN, WRITE_OUT_BYTES } from './abi.ts';
import { ringDoorbell } from './doorbell.ts';
import { REPLY_AT, REPLY_BODY_AT, REQUEST_AT, REQUEST_BODY_AT } from './request.ts';
import { RequestWatch } from './request-watch.ts';
import { SPLICE_FROM_BYTES, SpliceReply } from './splice-reply.ts';
import type { WorkerSetup } from './worker-pool.ts';

const setup = workerData as WorkerSetup;
const { descriptor, slots, doorbell } = setup;
const memory = new Uint8Array(slots.memory);
const fields = new DataView(slots.memory);
const taker = new SlotTaker(slots);
const counters = new WorkerCounters(setup.counters, setup.worker);
const latencies = setup.latencies === null ? null : recorderOf(setup.latencies, setup.worker);
const [READ_LATENCY, WRITE_LATENCY] = [OPERATIONS.indexOf('read'), OPERATIONS.indexOf('write')];
const FSYNC_LATENCY = OPERATIONS.indexOf('fsync');
const layout = setup.table === null ? null : layoutOf(setup.table);
const lookup = layout === null ? null : new Lookup(layout, setup.worker);
const syncs = layout === null ? null : new Syncs(layout, setup.worker);
const patience = layout === null ? null : new Patience(layout);
const watch = new RequestWatch({
  shared: setup.watch,
  worker: setup.worker,
  workers: setup.workers,
  isPending: () => isReadable(descriptor),
  yieldCore,
});
const memoryAddress = addressOf(memory);
const splices = new SpliceReply({
  descriptor,
  offset: new DataView(setup.spliceOffset),
  offsetAddress: addressOf(new Uint8Array(setup.spliceOffset)),
  maxReadBytes: slots.slotBytes - 2 * HEADER_AREA_BYTES,
});
/** The header of each slot's reply. */
const headers = Array.from({ length: slots.slots }, (_, slot) =>
  memory
    .subarray(slots.firstByte + slot * slots.slotBytes + REPLY_AT)
    .subarray(0, OUT_HEADER_BYTES),
);

const { EAGAIN } = ERRNO;
/** Descriptors from here on are read the long way. */
const MAX_DESCRIPTORS = 1 << 16;

/** Errors after which the read is simply repeated: a signal, nothing there, a request aborted before it was read. */
const PASSING = new Set(['EINTR', 'EAGAIN', 'ENOENT']);

const PAGE_BYTES = 4096;
/** By slot: 1 when its pages are there. */
const made = new Uint8Array(slots.slots);

/**
 * Has the pages of a slot made before a request is read into them. A kernel that has to make one in the middle of a read looks for
 * SIGKILL on the way, and when it finds one, ends the request with EIO instead of keeping it for the next engine.
 */
const makePages = (base: number): void => {
  const slot = (base - slots.firstByte) / slots.slotBytes;
  if (made[slot] === 1) return;
  made[slot] = 1;
  const end = base + slots.slotBytes;
  for (let at = base; at < end; at += PAGE_BYTES) memory[at] = 0;
  memory[end - 1] = 0;
};

/** False: the mount is gone. */
const receive = (base: number): boolean => {
  makePages(base);
  for (;;) {
    try {
      return (
        readSync(descriptor, memory, base + REQUEST_AT, slots.slotBytes - REQUEST_AT, null) > 0
      );
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? '';
      if (code === 'ENODEV') return false;
      if (!PASSING.has(code)) throw error;
    }
  }
};

/** The reply's header, from the request's; returns the reply's length. */
const writeHeader = (base: number, bodyBytes: number): number => {
  const length = OUT_HEADER_BYTES + bodyBytes;
  const at = base + REPLY_AT;
  fields.setUint32(at + OUT.length, length, true);
  fields.setInt32(at + OUT.error, 0, true);
  fields.setUint32(at + OUT.unique, fields.getUint32(base + REQUEST_AT + IN.unique, true), true);
  fields.setUint32(
    at + OUT.unique + 4,
    fields.getUint32(base + REQUEST_AT + IN.unique + 4, true),
    true,
  );
  return length;
};

const reply = (base: number, bodyBytes: number): void => {
  const length = writeHeader(base, bodyBytes);
  try {
    writeSync(descriptor, memory, base + REPLY_AT, length, null);
  } catch (error) {
    // The request was interrupted, or the mount is going: nobody waits for the answer.
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== 'ENOENT' && code !== 'ENODEV') throw error;
  }
};

/** By descriptor: 1 for a file whose system cannot say what is cached. */
const untold = new Uint8Array(MAX_DESCRIPTORS);

/** What of a range is cached, read to `at`; the number of bytes. Errors are left to the read that waits. */
const readQuickly = (file: number, at: number, lengthBytes: number, from: number): number => {
  if (untold[file] !== 0) return 0;
  const got = readCached(file, memoryAddress + at, lengthBytes, from);
  if (got >= 0) return got;
  if (got !== -EAGAIN && file < MAX_DESCRIPTORS) untold[file] = 1;
  return 0;
};

/** Reads the rest of a run, waiting for the disk; inside the view, what the host file does not have reads as zeros. */
const readPatiently = (file: number, start: number, end: number, from: number): void => {
  let at = start;
  while (at < end) {
    const got = readSync(file, memory, at, end - at, from + at);
    if (got === 0) break;
    at += got;
  }
  if (at < end) memory.fill(0, at, end);
};

/** False: it would have to wait, as the other workers do already. */
const readWaiting = (file: number, at: number, end: number, from: number): boolean => {
  if (patience?.begin() !== true) return false;
  watch.disperse();
  try {
    readPatiently(file, at, end, from);
  } finally {
    patience.end();
  }
  return true;
};

/** The same past the page cache; false also for what is no whole blocks. */
const readDirect = (file: number, at: number, end: number, from: number): boolean =>
  (from + at) % DIRECT_BLOCK_BYTES === 0 &&
  (end - at) % DIRECT_BLOCK_BYTES === 0 &&
  (memoryAddress + at) % DIRECT_BLOCK_BYTES === 0 &&
  readWaiting(file, at, end, from);

/** False: the control plane has to. */
const readRuns = (runs: Lookup, to: number): boolean => {
  let at = to;
  for (let run = 0; run < runs.count; run++) {
    const file = runs.files[run] ?? ZERO_RUN;
    const end = at + (runs.lengths[run] ?? 0);
    const from = (runs.hostOffsets[run] ?? 0) - at;
    if (file === ZERO_RUN) memory.fill(0, at, end);
    else if (file >= DIRECT_FILE) {
      if (!readDirect(file - DIRECT_FILE, at, end, from)) return false;
    } else {
      at += readQuickly(file, at, end - at, from + at);
      if (at < end && untold[file] !== 0) {
        // A server may have to answer.
        watch.disperse();
        readPatiently(file, at, end, from);
      } else if (at < end && !readWaiting(file, at, end, from)) return false;
    }
    at = end;
  }
  return true;
};

const writeRuns = (runs: Lookup, payload: number): void => {
  let at = payload;
  for (let run = 0; run < runs.count; run++) {
    const end = at + (runs.lengths[run] ?? 0);
    const to = (runs.hostOffsets[run] ?? 0) - at;
    while (at < end) at += writeSync(runs.files[run] ?? ZERO_RUN, memory, at, end - at, to + at);
  }
};

const counted = (isRead: boolean, size: number): true => {
  counters.add(COUNTER.hits, 1);
  counters.add(isRead ? COUNTER.readBytes : COUNTER.writtenBytes, size);
  return true;
};

/** Reads the page that a write copies, if that is quick, or the disk can be waited for; see pages-along.ts. */
const readPage = (base: number, node: number, offset: number, size: number): void => {
  if (lookup === null || slots.slotBytes < SLOT_BYTES_WITH_PAGE) return;
  if (!lookup.beginPage(node, offset, size)) return;
  const lengthBytes = lookup.lengths[0] ?? 0;
  let isRead = false;
  try {
    const [file = ZERO_RUN] = lookup.files;
    const [from = 0] = lookup.hostOffsets;
    const at = base + PAGE_AT;
    const end = at + lengthBytes;
    isRead =
      readQuickly(file, at, lengthBytes, from) === lengthBytes ||
      (untold[file] !== 0 && readWaiting(file, at, end, from - at));
  } catch {
    return;
  } finally {
    lookup.end();
  }
  const { state, word0, word1 } = lookup;
  if (isRead) writePageAlong(fields, base, { lengthBytes, state, word0, word1 });
};

/** Whether the request was answered. An error of the host file is left to the control plane, which meets it again. */
const transfer = (base: number, slot: number, opcode: number): boolean => {
  if (lookup === null) return false;
  const isRead = opcode === OPCODE.READ;
  const body = base + REQUEST_BODY_AT;
  const high = fields.getUint32(body + READ_IN.offset + 4, true);
  const nodeHigh = fields.getUint32(base + REQUEST_AT + IN.nodeId + 4, true);
  if (high >= 0x20_0000 || nodeHigh !== 0) return false;
  const offset = high * 2 ** 32 + fields.getUint32(body + READ_IN.offset, true);
  const size = fields.getUint32(body + READ_IN.size, true);
  const node = fields.getUint32(base + REQUEST_AT + IN.nodeId, true);
  if (size === 0) return false;
  if (!lookup.begin(node, offset, size, isRead ? READ : WRITE)) {
    if (!isRead) readPage(base, node, offset, size);
    return false;
  }
  let replied = false;
  if (size >= SPLICE_FROM_BYTES) watch.disperse();
  try {
    if (isRead && size >= SPLICE_FROM_BYTES && !lookup.hasDirect) {
      writeHeader(base, size);
      replied = splices.send(lookup, headers[slot] as Uint8Array);
    }
    if (replied) return counted(isRead, size);
    if (isRead) {
      if (!readRuns(lookup, base + REPLY_BODY_AT)) return false;
    } else writeRuns(lookup, base + REPLY_BODY_AT);
  } catch {
    return false;
  } finally {
    lookup.end();
  }
  counted(isRead, size);
  if (isRead) {
    reply(base, size);
    return true;
  }
  fields.setUint32(base + REPLY_BODY_AT, size, true);
  fields.setUint32(base + REPLY_BODY_AT + 4, 0, true);
  reply(base, WRITE_OUT_BYTES);
  return true;
};

/** Syncs a descriptor; errno, 0 when it has succeeded. */
const errnoOfSync = (file: number): number => {
  try {
    fdatasyncSync(file);
    return 0;
  } catch (error) {
    return Math.abs((error as NodeJS.ErrnoException).errno ?? ERRNO.EIO);
  }
};

/** Whether the FSYNC was answered. A failure travels with the request: nobody is told of it twice by the kernel. */
const sync = (base: number): boolean => {
  if (syncs === null || fields.getUint32(base + REQUEST_AT + IN.nodeId + 4, true) !== 0)
    return false;
  const file = syncs.begin(fields.getUint32(base + REQUEST_AT + IN.nodeId, true));
  if (file < 0) return false;
  watch.disperse();
  const errno = errnoOfSync(file);
  syncs.end(errno);
  if (errno !== 0) {
    fields.setUint32(base + REQUEST_BODY_AT + FSYNC_IN.padding, errno, true);
    return false;
  }
  counters.add(COUNTER.hits, 1);
  reply(base, 0);
  return true;
};

/** Which kind of latency the answer counts to; -1: the control plane has to answer. */
const answered = (base: number, slot: number): number => {
  switch (fields.getUint32(base + REQUEST_AT + IN.opcode, true)) {
    case OPCODE.READ:
      return transfer(base, slot, OPCODE.READ) ? READ_LATENCY : -1;
    case OPCODE.WRITE:
      return transfer(base, slot, OPCODE.WRITE) ? WRITE_LATENCY : -1;
    case OPCODE.FSYNC:
      return sync(base) ? FSYNC_LATENCY : -1;
    default:
      return -1;
  }
};

const serve = (): void => {
  for (let slot = taker.take(); ; ) {
    const base = slots.firstByte + slot * slots.slotBytes;
    watch.begin();
    if (!receive(base)) {
      watch.disperse();
      taker.drop(slot);
      return;
    }
    watch.received();
    counters.add(COUNTER.requests, 1);
    writeNoPage(fields, base);
    const begunMs = latencies === null ? 0 : performance.now();
    const kind = answered(base, slot);
    if (kind >= 0) {
      if (latencies !== null) latencies.record(kind, performance.now() - begunMs);
      continue;
    }
    counters.add(COUNTER.faults, 1);
    if (taker.handOver(slot)) ringDoorbell(doorbell);
    watch.handedOver();
    slot = taker.take();
  }
};

serve();
splices.close();
present(parentPort, 'a worker has a parent').close();
