/**
 * Many requests of a guest at once, each lane with stripes of the disk of its own, so that it knows what they hold; clusters at the
 * ends of stripes belong to two lanes. What they do is kept in histories for what a crash may leave.
 */
import assert from 'node:assert/strict';
import type { Random } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import type { GuestHistory, GuestWrite } from './guest-history.ts';
import { type FileLog, NEVER } from './recording-file.ts';

export interface LaneWork {
  readonly node: Node;
  readonly random: Random;
  readonly log: FileLog;
  readonly clusterBytes: number;
  readonly lanes: number;
  readonly packs: boolean;
  /** What a power cut may leave. */
  readonly synced: GuestHistory;
  /** What a kill may leave: there each answer is as good as a flush. */
  readonly answered: GuestHistory;
  /** Whether a request may fail so. */
  readonly isExpected: (error: unknown) => boolean;
}

type Kind = 'read' | 'write' | 'packed' | 'discard' | 'zero';

const KINDS: readonly Kind[] = [
  'read',
  ...Array<Kind>(7).fill('write'),
  'discard',
  'discard',
  'zero',
];

export class Lane {
  readonly #work: LaneWork;
  readonly #index: number;
  readonly #known: Uint8Array;
  /** Bytes that a request which has failed may have changed. */
  readonly #unsure = new Set<number>();

  constructor(work: LaneWork, index: number, content: Uint8Array) {
    this.#work = work;
    this.#index = index;
    this.#known = Uint8Array.from(content);
  }

  async run(steps: number): Promise<void> {
    const { random, isExpected } = this.#work;
    for (let i = 0; i < steps; i++) {
      const step = random.below(12) === 0 ? this.#flush() : this.#request();
      await step.catch((error: unknown) => {
        if (!isExpected(error)) throw error;
      });
    }
  }

  async #flush(): Promise<void> {
    const { node, log, synced } = this.#work;
    const begun = log.events;
    await node.flush();
    synced.flushes.push({ begun, answered: log.answer() });
  }

  async #request(): Promise<void> {
    const { random, packs } = this.#work;
    const kind = packs && random.below(3) === 0 ? 'packed' : random.pick(KINDS);
    const { offset, lengthBytes } = this.#range(kind === 'packed');
    if (kind === 'read') await this.#read(offset, lengthBytes);
    else await this.#change(kind, offset, lengthBytes);
  }

  /** Of one of its stripes; now and then, or where it has to be, the first whole cluster in it. */
  #range(isCluster: boolean): { readonly offset: number; readonly lengthBytes: number } {
    const { random, clusterBytes, lanes } = this.#work;
    const stripe = Math.floor(clusterBytes * 2.6);
    const stripes = Math.floor(this.#known.length / stripe / lanes);
    const start = (random.below(stripes) * lanes + this.#index) * stripe;
    if (isCluster || random.below(4) === 0)
      return { offset: Math.ceil(start / clusterBytes) * clusterBytes, lengthBytes: clusterBytes };
    const offset = start + random.below(stripe);
    return { offset, lengthBytes: 1 + random.below(start + stripe - offset) };
  }

  async #read(offset: number, lengthBytes: number): Promise<void> {
    const found = new Uint8Array(lengthBytes);
    await this.#work.node.read(guestOffset(offset), found);
    const wrong = found.findIndex(
      (byte, i) => byte !== this.#known[offset + i] && !this.#unsure.has(offset + i),
    );
    const at = offset + wrong;
    assert.ok(wrong < 0, `byte ${at} is read as ${found[wrong]}, and was ${this.#known[at]}`);
  }

  async #change(kind: Exclude<Kind, 'read'>, offset: number, lengthBytes: number): Promise<void> {
    const { log, synced, answered } = this.#work;
    const bytes = this.#bytes(kind, lengthBytes);
    const write: GuestWrite = { offset, bytes, begun: log.events, answered: NEVER };
    synced.writes.push(write);
    answered.writes.push(write);
    for (let i = 0; i < lengthBytes; i++) this.#unsure.add(offset + i);
    await this.#make(kind, write);
    write.answered = log.answer();
    answered.flushes.push({ begun: write.answered, answered: write.answered });
    this.#known.set(bytes, offset);
    for (let i = 0; i < lengthBytes; i++) this.#unsure.delete(offset + i);
  }

  #bytes(kind: Exclude<Kind, 'read'>, lengthBytes: number): Uint8Array {
    const { random } = this.#work;
    const bytes = new Uint8Array(lengthBytes);
    if (kind === 'write') random.fill(bytes);
    // So that several share a host cluster.
    if (kind === 'packed')
      random.fill(bytes.fill(random.below(250)).subarray(0, random.below(lengthBytes / 3)));
    return bytes;
  }

  #make(kind: Exclude<Kind, 'read'>, { offset, bytes }: GuestWrite): Promise<void> {
    const { node } = this.#work;
    const at = guestOffset(offset);
    switch (kind) {
      case 'write':
        return node.write(at, bytes);
      case 'packed':
        return node.writeCompressed(at, bytes);
      case 'discard':
        return node.discard(at, bytes.length);
      case 'zero':
        return node.writeZeroes(at, bytes.length, { unmap: false });
    }
  }
}
