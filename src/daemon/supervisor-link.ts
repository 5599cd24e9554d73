/** The engine's side of the channel to its supervisor: what must outlive an engine is asked for here. */
import { present } from '../base/assert.ts';
import { BlockError } from '../base/block-error.ts';
import type { ImageLock, ImageLocks, LockMode } from '../block/image-locks.ts';
import { Batch } from './batch.ts';
import type { EngineMessage, LockAsked, LockOutcome, SupervisorMessage } from './messages.ts';
import type { KeptStandIns } from './stand-in-store.ts';

interface Pending {
  readonly resolve: (value: never) => void;
}

export class SupervisorLink implements ImageLocks {
  readonly #send: (message: EngineMessage) => void;
  readonly #pending = new Map<number, Pending>();
  readonly #locks = new Batch<LockAsked, LockOutcome>((asked) =>
    this.#ask((request) => ({ type: 'lock', request, asked })),
  );
  readonly #unlocks = new Batch<number, undefined>((locks) =>
    this.#ask((request) => ({ type: 'unlock', request, locks })),
  );
  #nextRequest = 1;

  constructor(send: (message: EngineMessage) => void) {
    this.#send = send;
  }

  /** Takes an answer; messages that are none are the caller's. */
  answer(message: SupervisorMessage): void {
    if (!('request' in message)) return;
    const pending = this.#pending.get(message.request);
    this.#pending.delete(message.request);
    if (message.type === 'node-ids') pending?.resolve(message.ids as never);
    else if (message.type === 'lock') pending?.resolve(message.outcomes as never);
    else pending?.resolve([] as never);
  }

  nodeIds(keys: readonly string[]): Promise<readonly number[]> {
    return this.#ask((request) => ({ type: 'node-ids', request, keys }));
  }

  /** See `EngineConfig.activityChanges`. */
  async activityChanged(path: string, differs: boolean): Promise<void> {
    await this.#ask((request) => ({ type: 'activity', request, path, differs }));
  }

  /** See `EngineConfig.standIns`. */
  async tellStandIns(kept: KeptStandIns | null): Promise<void> {
    await this.#ask((request) => ({ type: 'stand-ins', request, kept }));
  }

  async acquire(path: string, mode: LockMode): Promise<ImageLock> {
    const outcome = present(await this.#locks.add({ path, mode }), 'each lock has an outcome');
    if ('error' in outcome) throw BlockError.fromWire(outcome.error);
    const { lock, tenure } = outcome;
    let released = false;
    const release = async (): Promise<void> => {
      if (released) return;
      released = true;
      await this.#unlocks.add(lock);
    };
    return { release, tenure };
  }

  #ask<T>(message: (request: number) => EngineMessage): Promise<T> {
    const request = this.#nextRequest++;
    return new Promise<T>((resolve) => {
      this.#pending.set(request, { resolve: resolve as Pending['resolve'] });
      this.#send(message(request));
    });
  }
}
