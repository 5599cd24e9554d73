/** Latencies of a mount by operation, and by who served them. */
import {
  createSharedLatencies,
  type LatencyHistogram,
  LatencyRecorder,
  readLatencies,
} from '../src/translation/latency.ts';

/** Workers answer only the first three. */
export const OPERATIONS = ['read', 'write', 'fsync', 'other'] as const;
export type Operation = (typeof OPERATIONS)[number];

const KINDS = OPERATIONS.length;

export interface OperationLatency extends LatencyHistogram {
  readonly operation: Operation;
  readonly servedBy: 'worker' | 'engine';
}

/** A recorder for one writer of shared memory that `Latencies` made. */
export const recorderOf = (shared: SharedArrayBuffer, writer: number): LatencyRecorder =>
  new LatencyRecorder(shared, { writer, kinds: KINDS });

export class Latencies {
  /** Each worker is a writer of it. */
  readonly ofWorkers: SharedArrayBuffer;
  readonly #ofEngine: SharedArrayBuffer;
  readonly #recorder: LatencyRecorder;

  constructor(workers: number) {
    this.ofWorkers = createSharedLatencies(workers, KINDS);
    this.#ofEngine = createSharedLatencies(1, KINDS);
    this.#recorder = recorderOf(this.#ofEngine, 0);
  }

  /** A request that the control plane has answered. */
  served(operation: Operation, milliseconds: number): void {
    this.#recorder.record(OPERATIONS.indexOf(operation), milliseconds);
  }

  all(): readonly OperationLatency[] {
    return OPERATIONS.flatMap((operation, kind) => {
      const engine = {
        operation,
        servedBy: 'engine' as const,
        ...readLatencies(this.#ofEngine, { kind, kinds: KINDS }),
      };
      if (operation !== 'read' && operation !== 'write') return [engine];
      const worker = readLatencies(this.ofWorkers, { kind, kinds: KINDS });
      return [{ operation, servedBy: 'worker' as const, ...worker }, engine];
    });
  }
}
