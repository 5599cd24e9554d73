/**
 * Copies that the host makes from file to file, without the bytes in memory of ours: where source and target lie as they are in
 * files of this host. What it cannot copy, and what may be zeros, is left to whoever reads and writes.
 */
import { isAllZero } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { CopyInHow } from '../block/driver.ts';
import { type HostRange, withPlace } from '../block/host-range.ts';
import type { Node } from '../block/node.ts';
import { orAborted } from './abort.ts';

/** They take no memory of ours, so they are longer than others; a guest's write to the range waits for one. */
const STRETCH_BYTES = 4 << 20;
/** In memory two copies at once take a millisecond for 4 MiB, and what is to be done around each is a part of that. */
const STRETCH_IN_MEMORY_BYTES = 16 << 20;
/** With fewer copies, a mirror fell behind where other programs wanted the cores too; of longer ones there need not be as many. */
const MAX_IN_FLIGHT_BYTES = 48 << 20;
const MAX_COPIES = 6;

/** A host that has refused so many ranges one after the other is not asked again: one may be special, or its disk full. */
const MAX_REFUSALS = 4;

/** Zeros in front are a sign of zeros behind them: then all is looked at. */
const LOOK_BYTES = 4096;

export class DirectCopy {
  /** How many copies at once keep the host at work, for those who want to be done soon. */
  readonly copiesAtOnce: number;
  readonly #how: CopyInHow;
  readonly #stretchBytes: number;
  /** Some of it lies nowhere on this host, or the target cannot copy. */
  readonly #isImpossible: boolean;
  /** Ranges that the host has refused since it copied one. */
  #refusals = 0;
  /** Stretches, by number, in which something has to go through memory. */
  readonly #others = new Set<number>();

  /** Of what is read at `source` to `target`, as they are when it begins. */
  constructor(how: CopyInHow, source: Node | null, target: Node) {
    this.#how = how;
    // A stream holds what it copies against its guest, and copies one stretch at a time.
    const isMany = how === 'write' && isInMemory(target);
    this.#stretchBytes = isMany ? STRETCH_IN_MEMORY_BYTES : STRETCH_BYTES;
    this.copiesAtOnce = Math.min(MAX_COPIES, MAX_IN_FLIGHT_BYTES / this.#stretchBytes);
    this.#isImpossible =
      target.driver.copyIn === undefined || !isLocal(target) || !isAllLocal(source);
    if (!this.#isImpossible && source !== null && isInMemory(source)) {
      const count = how === 'write' ? this.copiesAtOnce : 1;
      for (const file of filesOf(target)) file?.driver.expectCopies?.(count);
    }
  }

  get #isRefused(): boolean {
    return this.#isImpossible || this.#refusals >= MAX_REFUSALS;
  }

  #stretchOf(offset: number): number {
    return Math.floor(offset / this.#stretchBytes);
  }

  /** How far a copy from an offset on may reach; 0: through memory, as far as that allows. */
  reachBytes(start: number): number {
    if (this.#isRefused || this.#others.has(this.#stretchOf(start))) return 0;
    return this.#stretchBytes - (start % this.#stretchBytes);
  }

  /**
   * False: nothing is copied, or not all of it. The range is the same in both. Nobody changes what the source's mapping stands
   * for before this resolves. With a `signal` that is aborted the host may still copy then, anything that is there, and the source
   * waits for it no more. Errors: none; who reads and writes meets them again.
   */
  async copy(
    source: Node,
    target: Node,
    { start, lengthBytes, signal }: DirectRange,
  ): Promise<boolean> {
    if (this.#isRefused) return false;
    const copy = async (place: HostRange | null): Promise<boolean> => {
      if (place === null || !(await hasData(place))) return false;
      const isCopied = await this.#copyFrom(place, target, start, signal);
      if (isCopied) this.#refusals = 0;
      else if (signal?.aborted !== true) this.#refusals++;
      return isCopied;
    };
    const isDone = await withPlace(source, guestOffset(start), lengthBytes, copy).catch(
      () => false,
    );
    if (!isDone) this.#others.add(this.#stretchOf(start));
    return isDone;
  }

  async #copyFrom(
    place: HostRange,
    target: Node,
    start: number,
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    const release = place.file.lateClose.hold();
    const copied = target.copyIn(guestOffset(start), place, this.#how).finally(release);
    if (signal === undefined) return copied;
    await orAborted(copied, signal);
    return !signal.aborted && copied;
  }
}

interface DirectRange {
  readonly start: number;
  readonly lengthBytes: number;
  readonly signal?: AbortSignal;
}

/** Those with a guest's bytes. */
const filesOf = ({ file, dataFiles }: Node): readonly (Node | null)[] =>
  dataFiles.length === 0 ? [file] : dataFiles;

const isInMemory = (node: Node): boolean =>
  filesOf(node).every((file) => file?.driver.isInMemory === true);

/** It lies in a file of this host. */
const isLocal = ({ file }: Node): boolean => file?.driver.hostFd !== undefined;

const isAllLocal = (top: Node | null): boolean => {
  for (let node = top; node !== null; node = node.backing) if (!isLocal(node)) return false;
  return true;
};

const hasData = async ({ file, offset, length }: HostRange): Promise<boolean> => {
  const look = new Uint8Array(Math.min(LOOK_BYTES, length));
  await file.read(guestOffset(offset), look);
  return !isAllZero(look);
};
