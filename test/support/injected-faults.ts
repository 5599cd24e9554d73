/** A `file` protocol for models: each operation ends after another time, and some of one file fail. */
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../src/base/block-error.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import { delayedFile, type FileOperation } from './delayed-file.ts';

const MESSAGE = 'the fault of this test';
const MOST_DELAY_MS = 2;

export interface Fault {
  readonly path: string;
  /** Zeroing and discarding are writes. */
  readonly kind: 'write' | 'flush' | 'read';
  /** The how-manieth of them fails first, from 1, and how many from there on. */
  readonly at: number;
  readonly count: number;
  /** No space, in place of an I/O error. */
  readonly isFull: boolean;
  /** Before it fails: the offset in the file. */
  readonly torn?: (offset: number) => Promise<void>;
}

/** Whether it, or what has caused it, is a fault of ours. */
export const isInjected = (error: unknown): boolean => INJECTED.test(String(error));

/** What a job says that has met one. */
export const INJECTED = new RegExp(MESSAGE);

export class InjectedFaults {
  /** Of every file. */
  readonly file: DriverDescriptor;
  /** Files of which something has failed. */
  readonly met = new Set<string>();
  #fault: Fault | null = null;
  #count = 0;
  #state: number;

  /** `seed`: of the delays; 1 or more. `copiesInHost`: see `Interference`. */
  constructor(seed: number, { copiesInHost = false }: { readonly copiesInHost?: boolean } = {}) {
    this.#state = seed;
    this.file = delayedFile(null, {
      copiesInHost,
      before: async (operation, offset, _length, path) => {
        await this.#delay();
        await this.#fail(operation, offset, path);
      },
    });
  }

  /** From now on; null for none. Operations are counted from here. */
  arm(fault: Fault | null): void {
    this.#fault = fault;
    this.#count = 0;
  }

  async #delay(): Promise<void> {
    this.#state = (this.#state * 48271) % 0x7fffffff;
    await sleep(this.#state % (MOST_DELAY_MS + 1));
  }

  async #fail(operation: FileOperation, offset: number, path: string): Promise<void> {
    const fault = this.#fault;
    const kind = operation === 'zero' ? 'write' : operation;
    if (fault === null || fault.path !== path || fault.kind !== kind) return;
    this.#count++;
    if (this.#count < fault.at || this.#count >= fault.at + fault.count) return;
    this.met.add(path);
    await fault.torn?.(offset);
    throw new BlockError({ kind: fault.isFull ? 'no-space' : 'io', message: MESSAGE });
  }
}
