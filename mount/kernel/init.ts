/**
 * INIT, the first request of a mount: the supervisor answers it once, and every engine of the mount lives with what
 * was settled then.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { readU64LE, viewOf } from '../../src/base/byte-order.ts';
import {
  IN,
  IN_HEADER_BYTES,
  INIT,
  INIT_IN,
  INIT_OUT_BYTES,
  INIT2,
  OPCODE,
  OUT_HEADER_BYTES,
} from './abi.ts';

/** The outcome of INIT. */
export interface InitOutcome {
  readonly minor: number;
  readonly flags: number;
  readonly flags2: number;
  readonly maxWriteBytes: number;
}

export interface InitWishes {
  /** As in `VDISKFS_WITHHOLD_INIT`. */
  readonly withhold?: string;
  /** Passthrough takes the place of the writeback cache, which the kernel does not have together with it. */
  readonly passthrough?: boolean;
}

/** What is asked for; what the kernel does not offer, or `withheld` names, is left out. */
const WANTED =
  INIT.ASYNC_READ |
  INIT.BIG_WRITES |
  INIT.DO_READDIRPLUS |
  INIT.READDIRPLUS_AUTO |
  INIT.ASYNC_DIO |
  INIT.WRITEBACK_CACHE |
  INIT.PARALLEL_DIROPS |
  INIT.MAX_PAGES |
  // Views have no set-id bits to clear: without it the kernel asks for security.capability before each write.
  INIT.HANDLE_KILLPRIV_V2 |
  INIT.INIT_EXT;
const WANTED2 = INIT2.HAS_RESEND | INIT2.DIRECT_IO_ALLOW_MMAP;

const OUR_MINOR = 40;
/** 7.31 brought MAX_PAGES and what else is taken for granted here; Linux 4.20 has 7.28. */
const LEAST_MINOR = 28;
const MAX_PAGES = 256;
const PAGE_BYTES = 4096;
/** One stuck view must not slow the others, so the kernel may have this many background requests under way. */
const MAX_BACKGROUND = 65_535;

/** Flags that the comma-separated names of `VDISKFS_WITHHOLD_INIT` take away, for tests of older kernels. */
const withheldFlags = (flags: Readonly<Record<string, number>>, names: string): number =>
  names.split(',').reduce((sum, name) => sum | (flags[name] ?? 0), 0);

export interface InitReply {
  readonly outcome: InitOutcome;
  /** The bytes to write to the descriptor. */
  readonly bytes: Uint8Array;
}

/**
 * The reply to an INIT request. Errors: EPROTO for a request that is no INIT, or a kernel too old.
 */
export const answerInit = (request: Uint8Array, wishes: InitWishes = {}): InitReply => {
  const { withhold = '', passthrough = false } = wishes;
  const view = viewOf(request);
  if (request.length < IN_HEADER_BYTES + 16 || view.getUint32(IN.opcode, true) !== OPCODE.INIT) {
    throw protocolError('the first request of the mount is no INIT');
  }
  const body = IN_HEADER_BYTES;
  const major = view.getUint32(body + INIT_IN.major, true);
  const kernelMinor = view.getUint32(body + INIT_IN.minor, true);
  if (major !== 7 || kernelMinor < LEAST_MINOR) {
    throw protocolError(
      `the kernel speaks FUSE ${major}.${kernelMinor}, 7.${LEAST_MINOR} is needed`,
    );
  }
  const offered = view.getUint32(body + INIT_IN.flags, true);
  const extended = (offered & INIT.INIT_EXT) !== 0 && request.length >= body + INIT_IN.flags2 + 4;
  const offered2 = extended ? view.getUint32(body + INIT_IN.flags2, true) : 0;
  let flags = (offered & WANTED & ~withheldFlags(INIT, withhold)) >>> 0;
  const wanted2 =
    (WANTED2 | (passthrough ? INIT2.PASSTHROUGH : 0)) & ~withheldFlags(INIT2, withhold);
  const flags2 = (flags & INIT.INIT_EXT) === 0 ? 0 : offered2 & wanted2;
  if ((flags2 & INIT2.PASSTHROUGH) !== 0) flags = (flags & ~INIT.WRITEBACK_CACHE) >>> 0;
  const pages = (flags & INIT.MAX_PAGES) === 0 ? 32 : MAX_PAGES;
  const minor = Math.min(OUR_MINOR, kernelMinor);
  const outcome = { minor, flags, flags2, maxWriteBytes: pages * PAGE_BYTES };
  const readahead = view.getUint32(body + INIT_IN.maxReadahead, true);
  return { outcome, bytes: encodeReply(readU64LE(view, IN.unique), readahead, outcome) };
};

const encodeReply = (unique: number, maxReadahead: number, outcome: InitOutcome): Uint8Array => {
  const bytes = new Uint8Array(OUT_HEADER_BYTES + INIT_OUT_BYTES);
  const view = viewOf(bytes);
  view.setUint32(0, bytes.length, true);
  view.setUint32(8, unique, true);
  const body = OUT_HEADER_BYTES;
  view.setUint32(body, 7, true);
  view.setUint32(body + 4, outcome.minor, true);
  view.setUint32(body + 8, maxReadahead, true);
  view.setUint32(body + 12, outcome.flags, true);
  view.setUint16(body + 16, MAX_BACKGROUND, true);
  view.setUint16(body + 18, Math.floor((MAX_BACKGROUND * 3) / 4), true);
  view.setUint32(body + 20, outcome.maxWriteBytes, true);
  view.setUint32(body + 24, 1, true);
  view.setUint16(body + 28, outcome.maxWriteBytes / PAGE_BYTES, true);
  view.setUint32(body + 32, outcome.flags2, true);
  // Of file systems below the views: a file of an ordinary one.
  view.setUint32(body + 36, (outcome.flags2 & INIT2.PASSTHROUGH) === 0 ? 0 : 1, true);
  return bytes;
};

const protocolError = (message: string): BlockError =>
  new BlockError({ kind: 'unsupported', errno: 'EPROTO', op: 'mount', message });
