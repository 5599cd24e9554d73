/**
 * What each engine of a mount inherits from the one before: node ids, image locks, passthrough handles, which images are
 * not as the mount began, and what views stand for. The supervisor's side of what an engine asks for in supervisor-link.ts.
 *
 * What a later supervisor needs as well is kept (kept-state.ts) before the engine hears that it is so.
 */
import { closeSync } from 'node:fs';
import type { PassthroughUse } from '../../mount/kernel/passthrough.ts';
import type { Log } from '../base/log.ts';
import { noLocks } from '../block/image-locks.ts';
import { QemuLocks } from '../block/qemu-locks.ts';
import type { EngineProcess } from './engine-process.ts';
import { HeldLocks } from './held-locks.ts';
import type { KeptState, TakenOver } from './kept-state.ts';
import type { EngineConfig, EngineMessage } from './messages.ts';
import { NodeIds } from './node-ids.ts';
import type { KeptStandIns } from './stand-in-store.ts';

/** What an engine asks of its supervisor because it must outlive it. */
export type Asked = Extract<
  EngineMessage,
  { readonly type: 'node-ids' | 'lock' | 'unlock' | 'passthrough' | 'activity' | 'stand-ins' }
>;

export interface InheritanceOptions {
  readonly lock: EngineConfig['lock'];
  readonly log: Log;
  /** Of an earlier supervisor. */
  readonly taken: TakenOver | null;
  /** Null before there is a mount, and for fuse-native. */
  readonly kept: () => KeptState | null;
}

export class Inheritance {
  readonly #kept: () => KeptState | null;
  readonly #nodeIds: NodeIds;
  readonly #qemuLocks: QemuLocks | null;
  readonly #locks: HeldLocks;
  /** By node id. */
  readonly #passthroughUses: Map<number, PassthroughUse>;
  /** See `EngineConfig.activityChanges`. */
  readonly #activityChanges: Set<string>;
  /** See `EngineConfig.standIns`. */
  #standIns: KeptStandIns | null;

  constructor({ lock, log, taken, kept }: InheritanceOptions) {
    this.#kept = kept;
    this.#passthroughUses = new Map(taken?.passthroughUses.map((use) => [use.nodeId, use]));
    this.#activityChanges = new Set(taken?.activityChanges);
    this.#standIns = taken?.standIns ?? null;
    this.#nodeIds = new NodeIds({
      earlier: taken?.ids ?? [],
      given: (ids) => kept()?.idsGiven(ids),
    });
    this.#qemuLocks =
      lock === 'off'
        ? null
        : new QemuLocks({
            require: lock,
            log,
            opened: (lock, fd) => kept()?.lockOpened(lock, fd),
            closed: (lock) => kept()?.lockClosed(lock),
          });
    this.#locks = new HeldLocks(this.#qemuLocks ?? noLocks);
  }

  /** What the next engine is told when it begins; it asks for the rest. */
  get forNext(): Pick<EngineConfig, 'passthroughUses' | 'activityChanges' | 'standIns'> {
    return {
      passthroughUses: [...this.#passthroughUses.values()],
      activityChanges: [...this.#activityChanges],
      standIns: this.#standIns,
    };
  }

  /** Goes on with descriptors that an earlier supervisor has locked, until an engine serves. */
  adoptLocks(locks: TakenOver['locks']): void {
    for (const { descriptor, tenure } of locks) {
      if (this.#qemuLocks === null) closeSync(descriptor);
      else this.#qemuLocks.adopt(descriptor, tenure);
    }
  }

  /** Does what an engine asks for and answers it. `generation`: the one that locks are taken for. */
  async answer(engine: EngineProcess, message: Asked, generation: number): Promise<void> {
    switch (message.type) {
      case 'node-ids': {
        const ids = this.#nodeIds.idsFor(message.keys);
        engine.send({ type: 'node-ids', request: message.request, ids });
        return;
      }
      case 'lock': {
        const outcomes = await this.#locks.acquireAll(message.asked, generation);
        engine.send({ type: 'lock', request: message.request, outcomes });
        return;
      }
      case 'unlock':
        // One that hands over closes everything: the next one takes the locks from here.
        if (!engine.handsOver) for (const lock of message.locks) await this.#locks.release(lock);
        engine.send({ type: 'done', request: message.request });
        return;
      case 'passthrough':
        this.#kept()?.passthroughChanged(message.use);
        if (message.use.handles > 0) this.#passthroughUses.set(message.use.nodeId, message.use);
        else this.#passthroughUses.delete(message.use.nodeId);
        return;
      case 'activity':
        this.#kept()?.activityChanged(message);
        if (message.differs) this.#activityChanges.add(message.path);
        else this.#activityChanges.delete(message.path);
        engine.send({ type: 'done', request: message.request });
        return;
      case 'stand-ins':
        this.#kept()?.standInsTold(message.kept);
        this.#standIns = message.kept;
        engine.send({ type: 'done', request: message.request });
    }
  }

  /** An engine of this generation serves: locks that it has not taken over are given back. */
  served(generation: number): void {
    this.#locks.dropBefore(generation);
    this.#qemuLocks?.settleAdopted();
  }

  /** The mount has ended. */
  releaseLocks(): void {
    this.#locks.releaseAll();
  }
}
