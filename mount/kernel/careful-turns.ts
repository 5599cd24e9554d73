/**
 * Requests one after the other, each recorded before it is served: how an engine serves whose predecessors have died, so that
 * its own death tells what they died of.
 */
import { endsWithin } from '../../src/base/bounded-wait.ts';
import type { FuseRequest } from './request.ts';

/** So long a request is waited for before the next one begins, in ms. */
const TURN_MS = 1000;

/** Where what is being done is recorded; call what `begin` returns when it has ended. */
export interface TaskLog {
  begin(task: {
    readonly id: string;
    readonly nodeId: number;
    readonly path: null;
    readonly name: string;
  }): () => void;
}

export interface CarefulTurnsOptions {
  readonly tasks: TaskLog;
  readonly nameOf: (nodeId: number) => string;
  /** False: it is left to the next engine. */
  readonly mayServe: () => boolean;
  readonly serve: (request: FuseRequest) => void;
}

export class CarefulTurns {
  readonly #options: CarefulTurnsOptions;
  /** When the request before has ended. */
  #turn: Promise<void> = Promise.resolve();
  readonly #ends = new Map<FuseRequest, () => void>();

  constructor(options: CarefulTurnsOptions) {
    this.#options = options;
  }

  /** Never throws. The caller calls `ended` once for each request that `serve` got; without it the next one begins after a second. */
  add(request: FuseRequest): void {
    this.#turn = this.#turn.then(() => this.#serve(request));
  }

  ended(request: FuseRequest): void {
    this.#ends.get(request)?.();
    this.#ends.delete(request);
  }

  async #serve(request: FuseRequest): Promise<void> {
    const { tasks, nameOf, mayServe, serve } = this.#options;
    if (!mayServe()) return;
    const { nodeId, uniqueLow, uniqueHigh } = request;
    // The top bit says that it is repeated.
    const id = `request ${uniqueHigh & 0x7fff_ffff}:${uniqueLow}`;
    const end = tasks.begin({ id, nodeId, path: null, name: nameOf(nodeId) });
    const ended = new Promise<void>((resolve) => this.#ends.set(request, resolve));
    void ended.then(end);
    serve(request);
    await endsWithin(ended, TURN_MS);
  }
}
