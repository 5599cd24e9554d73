/** Alignment and half-open byte ranges [start, end). `alignment` is any positive number, in bytes. */

export const alignDown = (offset: number, alignment: number): number =>
  offset - (offset % alignment);

export const alignUp = (offset: number, alignment: number): number => {
  const over = offset % alignment;
  return over === 0 ? offset : offset + (alignment - over);
};

export const isAligned = (offset: number, alignment: number): boolean => offset % alignment === 0;

/** True for 1, 2, 4, … up to 2^52. */
export const isPowerOfTwo = (value: number): boolean =>
  Number.isSafeInteger(value) && value > 0 && Number.isInteger(Math.log2(value));

/** ceil(a / b) for non-negative safe integers. */
export const divideUp = (a: number, b: number): number => Math.ceil(a / b);

export interface ByteRange {
  readonly start: number;
  readonly end: number;
}

export const overlaps = (a: ByteRange, b: ByteRange): boolean => a.start < b.end && b.start < a.end;

/** True when every byte of the buffer is 0. Compares 8 KiB at a time, so it runs at memory speed. */
export const isAllZero = (bytes: Uint8Array): boolean => {
  for (let at = 0; at < bytes.length; at += ZEROES.length) {
    const length = Math.min(ZEROES.length, bytes.length - at);
    const part = Buffer.from(bytes.buffer, bytes.byteOffset + at, length);
    if (part.compare(ZEROES, 0, length) !== 0) return false;
  }
  return true;
};

const ZEROES = Buffer.alloc(8192);
