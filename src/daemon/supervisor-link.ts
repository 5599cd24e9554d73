/** The engine's side of the channel to its supervisor: what must outlive an engine is asked for here. */
import { BlockError } from '../base/block-error.ts';
import type { ImageLock, ImageLocks, LockMode } from '../block/image-locks.ts';
import type { EngineMessage, SupervisorMessage } from './messages.ts';

interface Pending {
  readonly resolve: (value: never) => void;
  readonly reject: (error: BlockError) => void;
}

export class SupervisorLink implements ImageLocks {
  readonly #send: (message: EngineMessage) => void;
  readonly #pending = new Map<number, Pending>();
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
    else if (message.type === 'lock') pending?.resolve(message.lock as never);
    else if (message.type === 'done') pending?.resolve(undefined as never);
    else pending?.reject(BlockError.fromWire(message.error));
  }

  nodeIds(keys: readonly string[]): Promise<readonly number[]> {
    return this.#ask((request) => ({ type: 'node-ids', request, keys }));
  }

  /** See `EngineConfig.activityChanges`. */
  activityChanged(path: string, differs: boolean): Promise<void> {
    return this.#ask((request) => ({ type: 'activity', request, path, differs }));
  }

  async acquire(path: string, mode: LockMode): Promise<ImageLock> {
    const lock = await this.#ask<number>((request) => ({ type: 'lock', request, path, mode }));
    let released = false;
    const release = async (): Promise<void> => {
      if (released) return;
      released = true;
      await this.#ask((request) => ({ type: 'unlock', request, lock }));
    };
    return { release };
  }

  #ask<T>(message: (request: number) => EngineMessage): Promise<T> {
    const request = this.#nextRequest++;
    return new Promise<T>((resolve, reject) => {
      this.#pending.set(request, { resolve: resolve as Pending['resolve'], reject });
      this.#send(message(request));
    });
  }
}
