/**
 * Taking a view away from guests and giving it back, as the kernel's side has to be treated.
 *
 * The order, which leaves no page of the view in the kernel although guests go on reading until the last moment: workers
 * give the view up; from then on reads are noted; the kernel writes and drops its pages; requests are held, but for writes of
 * pages; what has been read since is dropped as well, in rounds, each of which serves the reads that it would wait for; then
 * everything is held. A notification inside of a hold of everything would wait for that hold.
 *
 * Giving it back: what is held goes on, then the kernel drops all pages: such as were written whole meanwhile, without
 * asking here.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../src/base/block-error.ts';
import { endsWithin } from '../../src/base/bounded-wait.ts';
import type { ByteRange } from '../../src/base/range.ts';
import type { ViewHolding } from '../backend.ts';
import { OPCODE } from './abi.ts';
import type { HandlerContext } from './context.ts';
import type { HeldRequests } from './held-requests.ts';
import type { FuseRequest } from './request.ts';

/** A server that does not answer keeps reads, and with them pages, for long. */
const PATIENCE_MS = 10_000;
const POLL_MS = 2;

export interface HandOverOptions {
  readonly held: HeldRequests;
  readonly context: Pick<HandlerContext, 'translations' | 'passthrough' | 'starved'>;
  /** What is being served now. */
  readonly serving: ReadonlySet<FuseRequest>;
  /** See `Notifier.contentChanged`. */
  readonly contentChanged: (nodeId: number, range?: ByteRange) => Promise<void>;
}

export class HandOver implements ViewHolding {
  readonly #options: HandOverOptions;

  constructor(options: HandOverOptions) {
    this.#options = options;
  }

  refusal(nodeId: number): string | null {
    const { passthrough, starved } = this.#options.context;
    if (passthrough?.isUsed(nodeId) === true) return 'is open in passthrough: close it first';
    if (starved.has(nodeId)) return 'has cached writes that wait for space';
    return null;
  }

  async hold(nodeId: number): Promise<void> {
    const { held, serving, contentChanged, context } = this.#options;
    held.watch(nodeId, serving);
    try {
      await context.translations?.bar(nodeId);
      await inTime(contentChanged(nodeId));
      const end = performance.now() + PATIENCE_MS;
      for (let ranges = held.nextRound(nodeId); ; ranges = held.nextRound(nodeId)) {
        await this.#readsServed(nodeId);
        if (ranges.length === 0) break;
        if (performance.now() > end) throw cannotBeDropped();
        await inTime(Promise.all(ranges.map((range) => contentChanged(nodeId, range))));
      }
      held.enter(nodeId, 'held');
    } catch (error) {
      await this.letGo(nodeId, { fresh: false });
      throw error;
    }
  }

  async letGo(nodeId: number, { fresh }: { readonly fresh: boolean }): Promise<void> {
    const { held, contentChanged, context } = this.#options;
    held.enter(nodeId, fresh ? 'settling' : null);
    held.takeUp(nodeId, { fresh });
    if (fresh) {
      await contentChanged(nodeId);
      held.enter(nodeId, null);
    }
    context.translations?.allow(nodeId);
  }

  async #readsServed(nodeId: number): Promise<void> {
    const isReading = (r: FuseRequest): boolean => r.opcode === OPCODE.READ && r.nodeId === nodeId;
    for (const end = performance.now() + PATIENCE_MS; ; await sleep(POLL_MS)) {
      if (![...this.#options.serving].some(isReading)) return;
      if (performance.now() > end) throw cannotBeDropped();
    }
  }
}

const inTime = async (dropped: Promise<unknown>): Promise<void> => {
  if (!(await endsWithin(dropped, PATIENCE_MS))) throw cannotBeDropped();
  await dropped;
};

const cannotBeDropped = (): BlockError =>
  new BlockError({
    kind: 'busy',
    op: 'deactivate',
    message: `the kernel did not drop its pages within ${PATIENCE_MS / 1000} s`,
  });
