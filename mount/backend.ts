/** The contract of a backend: one way of speaking FUSE for a directory of views. */
import type { Log } from '../src/base/log.ts';
import type { Directory } from './directory.ts';
import type { OperationLatency } from './latencies.ts';

export interface BackendOptions {
  readonly directory: Directory;
  readonly mountpoint: string;
  readonly readOnly: boolean;
  readonly allowOther: boolean;
  /** Data-plane workers, where the backend has them. */
  readonly threads: number;
  /** Whether to keep latencies: two looks at the clock a request. */
  readonly measure: boolean;
  readonly log: Log;
}

export interface BackendCounters {
  requests: number;
  readBytes: number;
  writtenBytes: number;
  /** Requests that the control plane answered. */
  faults: number;
  /** Requests that the data plane answered alone. */
  hits: number;
  /** Memory of the translations that are kept now. */
  tableBytes: number;
}

export interface Backend {
  readonly name: 'kernel' | 'fuse-native';
  /** Resolves when the mount is gone and no request is in flight any more. */
  readonly ended: Promise<void>;
  counters(): BackendCounters;
  /** Empty where they are not kept. */
  latencies(): readonly OperationLatency[];
}
