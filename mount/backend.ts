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

/** What the kernel keeps of views. */
export interface KernelPages {
  /** Whether somebody may have the view open for writing; also when that cannot be told. */
  mayBeWritten(nodeId: number): boolean;
  /** Whether the kernel reads and writes the view's file by itself. */
  isPassthrough(nodeId: number): boolean;
  /**
   * Writes the kernel's pages of a view to it and drops them; resolves when that is done. Never called in a drained
   * section, whose end it would wait for. Null: the backend cannot; a view that is open does not change its content.
   */
  readonly invalidate: ((nodeId: number) => Promise<void>) | null;
}

/** Takes views away from guests and gives them back, so that another host can use their images meanwhile. */
export interface ViewHolding {
  /** What stands in the way of `hold` now, for people; null for nothing. */
  refusal(nodeId: number): string | null;
  /**
   * Holds what guests ask of a view's content, and drops what the kernel keeps of it; other requests are served. What
   * has begun may still be in flight. After an fsync by the caller. Errors: EBUSY when the pages cannot be dropped; nothing
   * is held then.
   */
  hold(nodeId: number): Promise<void>;
  /**
   * What was held goes on, once the view's `isHeld` is false. `fresh`: the content is another one; writes that the kernel
   * had taken for done before they came here fail with EIO, and what it keeps is dropped before this resolves.
   */
  letGo(nodeId: number, options: { readonly fresh: boolean }): Promise<void>;
}

export interface Backend {
  readonly name: 'kernel' | 'fuse-native';
  /** Resolves when the mount is gone and no request is in flight any more. */
  readonly ended: Promise<void>;
  readonly pages: KernelPages;
  /** Null: the backend cannot. */
  readonly holding: ViewHolding | null;
  /**
   * Takes nothing up any more: what comes is left to the engine that takes over. Resolves when nothing is in flight, or
   * after a while. Only where the kernel repeats requests.
   */
  hold?(): Promise<void>;
  counters(): BackendCounters;
  /** Empty where they are not kept. */
  latencies(): readonly OperationLatency[];
}
