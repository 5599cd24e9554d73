/**
 * A set of whole numbers from 0 to 2^45, kept as a tree: leaves are runs of bits, made only where a part of them is set;
 * a part that is wholly set or wholly not takes two bits in the node above.
 *
 *     level 3   1024 children of 2^35 numbers each
 *     level 2   1024 children of 2^25
 *     level 1   1024 leaves of 2^15
 *     leaf      32768 bits, 4 KiB: number n is bit n % 8 of byte n / 8, as qcow2 stores bitmaps
 *
 * Costs: looking for the next number that is in the set, or is not, walks down the tree at most twice, over at most 32
 * words of each node and 1024 of a leaf: 2 * (3 * 32 + 1024) words, however large the set and however far away the
 * answer. Adding or removing a range is as much for its two ends, and one bit of a node for each whole child between.
 */
import { assert } from '../base/assert.ts';

const FAN_OUT = 1024;
/** Numbers of a leaf. */
export const LEAF_BITS = 32_768;
const LEAF_BYTES = LEAF_BITS / 8;
const LEVELS = 3;
/** Numbers are below it. */
export const TREE_LIMIT = LEAF_BITS * FAN_OUT ** LEVELS;
/** What a node costs beside its bits, about: objects and map entries. */
const NODE_BYTES = 256;

/** A run of the set: `bits` of `count` numbers from `first` on; null: all of them are in. */
export interface BitRun {
  readonly first: number;
  readonly count: number;
  readonly bits: Uint8Array | null;
}

export class BitTree {
  readonly #root = new Inner(LEVELS);

  /** How many numbers are in the set. */
  get size(): number {
    return this.#root.size;
  }

  /** Memory that it takes, about: 4 KiB for each leaf that is partly set. */
  get bytes(): number {
    return this.#root.bytes;
  }

  /** Puts the numbers from `start` to `end - 1` into the set, or takes them out. */
  change(start: number, end: number, isIn: boolean): void {
    assert(start >= 0 && end <= TREE_LIMIT, 'a range lies inside the tree');
    if (start < end) this.#root.change(start, end, isIn);
  }

  /** The first number from `from` on that is in the set, or is not; TREE_LIMIT when there is none. */
  next(from: number, isIn: boolean): number {
    if (from >= TREE_LIMIT) return TREE_LIMIT;
    const found = this.#root.next(from, isIn);
    return found < 0 ? TREE_LIMIT : found;
  }

  /** Adds the numbers whose bits are set: bit `i` of `bits` stands for `first + i`. `first` is a multiple of 8. */
  add(first: number, bits: Uint8Array): void {
    assert(first % 8 === 0 && first + bits.length * 8 <= TREE_LIMIT, 'bits lie inside the tree');
    for (let done = 0; done < bits.length; ) {
      const at = first + done * 8;
      const leaf = Math.floor(at / LEAF_BITS);
      const inLeaf = (at - leaf * LEAF_BITS) / 8;
      const part = bits.subarray(done, done + Math.min(bits.length - done, LEAF_BYTES - inLeaf));
      if (part.some((byte) => byte !== 0)) this.#root.addBits(at, part);
      done += part.length;
    }
  }

  /** What is in the set from `start` to `end - 1`, in order; leaves are whole and may reach past both. */
  *runs(start: number, end: number): Generator<BitRun> {
    yield* this.#root.runs(0, start, end);
  }
}

class Leaf {
  readonly bits = new Uint8Array(LEAF_BYTES);
  readonly #words = new Uint32Array(this.bits.buffer);
  size = 0;

  get bytes(): number {
    return LEAF_BYTES + NODE_BYTES;
  }

  change(start: number, end: number, isIn: boolean): void {
    const first = start >>> 3;
    const last = (end - 1) >>> 3;
    const headMask = (0xff << (start & 7)) & 0xff;
    const tailMask = 0xff >>> (7 - ((end - 1) & 7));
    if (first === last) {
      this.#changeByte(first, headMask & tailMask, isIn);
      return;
    }
    this.#changeByte(first, headMask, isIn);
    for (let at = first + 1; at < last; at++) this.#changeByte(at, 0xff, isIn);
    this.#changeByte(last, tailMask, isIn);
  }

  addBits(at: number, bits: Uint8Array): void {
    const from = at >>> 3;
    for (let i = 0; i < bits.length; i++) this.#changeByte(from + i, bits[i] ?? 0, true);
  }

  next(from: number, isIn: boolean): number {
    const skipped = isIn ? 0 : 0xff;
    const mask = (0xff << (from & 7)) & 0xff;
    let at = from >>> 3;
    if (((this.#byte(at) ^ skipped) & mask) !== 0) {
      return at * 8 + lowestBit((this.#byte(at) ^ skipped) & mask);
    }
    at++;
    while (at < LEAF_BYTES && (at & 3) !== 0 && this.#byte(at) === skipped) at++;
    if ((at & 3) === 0) {
      const skippedWord = isIn ? 0 : 0xffff_ffff;
      while (at < LEAF_BYTES && this.#words[at >>> 2] === skippedWord) at += 4;
      while (at < LEAF_BYTES && this.#byte(at) === skipped) at++;
    }
    return at < LEAF_BYTES ? at * 8 + lowestBit(this.#byte(at) ^ skipped) : -1;
  }

  *runs(base: number): Generator<BitRun> {
    yield { first: base, count: LEAF_BITS, bits: this.bits };
  }

  #byte(at: number): number {
    return this.bits[at] ?? 0;
  }

  #changeByte(at: number, mask: number, isIn: boolean): void {
    const old = this.#byte(at);
    const now = isIn ? old | mask : old & ~mask;
    if (now === old) return;
    this.bits[at] = now;
    this.size += bitCount(now) - bitCount(old);
  }
}

class Inner {
  /** Numbers of one child. */
  readonly #span: number;
  readonly #level: number;
  /** Children that hold some numbers and not all. */
  readonly #parts = new Map<number, Inner | Leaf>();
  /** A bit for each child that holds some number, and for each that holds all. */
  readonly #some = new Uint32Array(FAN_OUT / 32);
  readonly #all = new Uint32Array(FAN_OUT / 32);
  size = 0;

  constructor(level: number) {
    this.#level = level;
    this.#span = LEAF_BITS * FAN_OUT ** (level - 1);
  }

  get bytes(): number {
    let sum = NODE_BYTES + (2 * FAN_OUT) / 8;
    for (const part of this.#parts.values()) sum += part.bytes;
    return sum;
  }

  change(start: number, end: number, isIn: boolean): void {
    const span = this.#span;
    for (let at = start; at < end; ) {
      const child = Math.floor(at / span);
      const base = child * span;
      const to = Math.min(end, base + span);
      if (to - at === span) this.#makeUniform(child, isIn);
      else if (!this.#isUniform(child, isIn)) {
        const part = this.#part(child);
        const before = part.size;
        part.change(at - base, to - base, isIn);
        this.#settle(child, part, before);
      }
      at = to;
    }
  }

  /** Inside one leaf. */
  addBits(at: number, bits: Uint8Array): void {
    const child = Math.floor(at / this.#span);
    if (this.#isUniform(child, true)) return;
    const part = this.#part(child);
    const before = part.size;
    part.addBits(at - child * this.#span, bits);
    this.#settle(child, part, before);
  }

  next(from: number, isIn: boolean): number {
    const span = this.#span;
    const first = Math.floor(from / span);
    const here = this.#nextIn(first, from - first * span, isIn);
    if (here >= 0) return first * span + here;
    const child = isIn ? nextBit(this.#some, first + 1, 0) : nextBit(this.#all, first + 1, ALL);
    if (child < 0) return -1;
    return child * span + this.#nextIn(child, 0, isIn);
  }

  *runs(base: number, start: number, end: number): Generator<BitRun> {
    const span = this.#span;
    const from = Math.max(0, Math.floor((start - base) / span));
    for (let child = nextBit(this.#some, from, 0); child >= 0; ) {
      const first = base + child * span;
      if (first >= end) return;
      const part = this.#parts.get(child);
      if (part === undefined) yield { first, count: span, bits: null };
      else yield* part.runs(first, start, end);
      child = nextBit(this.#some, child + 1, 0);
    }
  }

  #nextIn(child: number, from: number, isIn: boolean): number {
    const part = this.#parts.get(child);
    if (part !== undefined) return part.next(from, isIn);
    return hasBit(this.#some, child) === isIn ? from : -1;
  }

  #isUniform(child: number, isIn: boolean): boolean {
    return !this.#parts.has(child) && hasBit(this.#some, child) === isIn;
  }

  #makeUniform(child: number, isIn: boolean): void {
    const before = this.#sizeOf(child);
    this.#parts.delete(child);
    setBit(this.#some, child, isIn);
    setBit(this.#all, child, isIn);
    this.size += (isIn ? this.#span : 0) - before;
  }

  #sizeOf(child: number): number {
    return this.#parts.get(child)?.size ?? (hasBit(this.#all, child) ? this.#span : 0);
  }

  /** A child that can be changed in part; what it holds already is in it. */
  #part(child: number): Inner | Leaf {
    const known = this.#parts.get(child);
    if (known !== undefined) return known;
    const part = this.#level === 1 ? new Leaf() : new Inner(this.#level - 1);
    if (hasBit(this.#all, child)) part.change(0, this.#span, true);
    this.#parts.set(child, part);
    return part;
  }

  #settle(child: number, part: Inner | Leaf, before: number): void {
    this.size += part.size - before;
    if (part.size === 0 || part.size === this.#span) this.#parts.delete(child);
    setBit(this.#some, child, part.size > 0);
    setBit(this.#all, child, part.size === this.#span);
  }
}

const ALL = 0xffff_ffff;

const hasBit = (words: Uint32Array, bit: number): boolean =>
  (((words[bit >>> 5] ?? 0) >>> (bit & 31)) & 1) === 1;

const setBit = (words: Uint32Array, bit: number, isSet: boolean): void => {
  const mask = 1 << (bit & 31);
  const word = words[bit >>> 5] ?? 0;
  words[bit >>> 5] = isSet ? word | mask : word & ~mask;
};

/** The first bit from `from` on that differs from those of the word `skipped` (0 or ALL); -1 for none. */
const nextBit = (words: Uint32Array, from: number, skipped: number): number => {
  let mask = ALL << (from & 31);
  for (let at = from >>> 5; at < words.length; at++, mask = ALL) {
    const word = ((words[at] ?? 0) ^ skipped) & mask;
    if (word !== 0) return at * 32 + lowestBit(word);
  }
  return -1;
};

/** Of a word that is not 0. */
const lowestBit = (word: number): number => 31 - Math.clz32(word & -word);

const bitCount = (byte: number): number => {
  const pairs = byte - ((byte >>> 1) & 0x55);
  const fours = (pairs & 0x33) + ((pairs >>> 2) & 0x33);
  return (fours + (fours >>> 4)) & 0x0f;
};
