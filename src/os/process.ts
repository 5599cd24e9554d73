/** What this process asks of the kernel for itself, its threads and its memory. */
import { addressOf, check, libc } from './c-library.ts';

const prctlCall = libc.func('int prctl(int option, ulong a, ulong b, ulong c, ulong d)');

const PR_SET_PDEATHSIG = 1;
const PR_SET_IO_FLUSHER = 57;
const SIGKILL = 9;

/** The kernel kills this process when the thread that started it has ended. The caller checks its parent afterwards. */
export const dieWithParent = (): void =>
  check('prctl', Number(prctlCall(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)));

/**
 * This process and its children write what others must flush: the kernel does not make their writes wait for the dirty
 * limit, nor their allocations for that writing. False without the privilege (CAP_SYS_RESOURCE).
 */
export const becomeIoFlusher = (): boolean =>
  Number(prctlCall(PR_SET_IO_FLUSHER, 1, 0, 0, 0)) === 0;

const exitCall = libc.func('void _exit(int status)');

/** _exit(2): also while a thread is in a call that does not return. Nothing is flushed, nobody is told. */
export const exitAtOnce = (status: number): void => {
  exitCall(status);
};

const rusageCall = libc.func('int getrusage(int who, uintptr_t usage)');
const RUSAGE_THREAD = 1;
const RUSAGE_BYTES = 144;
const VOLUNTARY_SWITCHES_AT = 128;
/** struct rusage, in memory that does not move. */
const rusage = new DataView(new SharedArrayBuffer(RUSAGE_BYTES));
const rusageAddress = addressOf(new Uint8Array(rusage.buffer));

/** getrusage(2): how often the calling thread has given its core away because it had to wait, modulo 2^32. Not counted: when it was taken away. */
export const timesWaited = (): number => {
  rusageCall(RUSAGE_THREAD, rusageAddress);
  return rusage.getUint32(VOLUNTARY_SWITCHES_AT, true);
};

const yieldCall = libc.func('int sched_yield()');

/** Lets another thread that waits for this core have it. */
export const yieldCore = (): void => {
  yieldCall();
};

const madviseCall = libc.func('int madvise(uintptr_t address, size_t length, int advice)');
const MADV_HUGEPAGE = 14;

/** Asks for huge pages under a buffer's memory: fewer translations to look up when it is copied. A wish: never fails. */
export const preferHugePages = (bytes: Uint8Array): void => {
  const pageBytes = 4096;
  const start = Math.ceil(addressOf(bytes) / pageBytes) * pageBytes;
  const end = Math.floor((addressOf(bytes) + bytes.length) / pageBytes) * pageBytes;
  madviseCall(start, end - start, MADV_HUGEPAGE);
};
