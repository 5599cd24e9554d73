/**
 * What supervisor and engine say to each other, over the child process's IPC channel (advanced serialisation).
 * The supervisor is small and trusted to stay: it opens no image content; the engine asks it for what must outlive
 * an engine.
 */
import type { InitOutcome } from '../../mount/kernel/init.ts';
import type { PassthroughUse } from '../../mount/kernel/passthrough.ts';
import type { BlockErrorWire } from '../base/block-error.ts';
import type { LockMode } from '../block/image-locks.ts';
import type { RemoteCredential } from '../block/remote-access.ts';
import type { SecretSource } from '../block/secrets.ts';
import type { DetectZeroes } from '../block/view.ts';
import type { Blocked } from './blame.ts';
import type { MetricsAddress } from './metrics-server.ts';
import type { KeptStandIns } from './stand-in-store.ts';

/** Of these messages: an engine of another version that speaks others is not used. Changes with each of them. */
export const ENGINE_PROTOCOL = 6;

/**
 * The engine's numbers, after stdin, stdout, stderr and the channel. It is started before there is a mount, with a socket in
 * the place of the FUSE descriptor; when it is told to begin, that has brought stderr, black box and FUSE descriptor.
 */
export const ENGINE_DESCRIPTORS = { fuse: 4, blackBox: 5 } as const;

/** Everything an engine needs to begin; also what `status` shows of the options. */
export interface EngineConfig {
  readonly mountpoint: string;
  readonly sources: readonly { readonly name: string | null; readonly path: string }[];
  readonly readOnly: boolean;
  readonly allowOther: boolean;
  /** Flags of mount(2) beside read-only. */
  readonly mountFlags: number;
  readonly threads: number;
  readonly backend: 'kernel' | 'fuse-native';
  readonly cache: 'writeback' | 'none' | 'unsafe';
  readonly cacheBytes: number;
  readonly format: string | null;
  /** And URLs. */
  readonly backingDirectories: readonly string[];
  /** What servers may want to see: never shown. */
  readonly credentials: readonly RemoteCredential[];
  readonly discard: 'unmap' | 'ignore';
  readonly detectZeroes: DetectZeroes;
  /** `--secret`: where keys are, never the keys. */
  readonly secrets: readonly SecretSource[];
  readonly allowShrink: boolean;
  /** `--inactive`: images are another host's until they are activated. */
  readonly inactive: boolean;
  readonly lock: 'auto' | 'on' | 'off';
  /** `--passthrough`. */
  readonly passthrough: boolean;
  /** Where Prometheus asks; null: nobody does, and no latencies are kept. */
  readonly metrics: MetricsAddress | null;
  readonly socketPath: string;
  /** Of restart journals. */
  readonly journalDirectory: string;
  /** Of what outlives the machine: jobs, and what views stand for. Made when first needed. */
  readonly stateDirectory: string;
  /** Jobs that an earlier mount of the same images left go on. */
  readonly resume: boolean;
  readonly copyOnRead: boolean;
  /** Directories of `--record` and `--prefetch`; null without. */
  readonly recordDirectory: string | null;
  readonly prefetchDirectory: string | null;
  /** `--stream`: bytes a second, 0 for no limit; null for no streams. */
  readonly streamSpeed: number | null;
  /** What /proc/mounts shows as the source. */
  readonly sourceLabel: string;
  readonly logLevel: 'error' | 'warning' | 'info' | 'debug';
  /** The engine's number for the FUSE descriptor, and what INIT settled; null for fuse-native. */
  readonly fuse: { readonly descriptor: number; readonly init: InitOutcome } | null;
  /** 0 for the first engine of a mount. */
  readonly generation: number;
  /** It does one thing at a time and records it, because engines died in short order (blame.ts). */
  readonly careful: boolean;
  /** What engines died of again and again. */
  readonly blocked: Blocked;
  /** Paths of images that are active although the mount began with `inactive`, or the other way round. */
  readonly activityChanges: readonly string[];
  /** Passthrough handles that earlier engines opened. */
  readonly passthroughUses: readonly PassthroughUse[];
  /** What views stand for, as an earlier engine has told; null: the state directory says. */
  readonly standIns: KeptStandIns | null;
}

export interface LockAsked {
  readonly path: string;
  readonly mode: LockMode;
}

/** The number of a lock that is held now (see `ImageLock`), or why it is not. */
export type LockOutcome =
  | { readonly lock: number; readonly tenure: string | null }
  | { readonly error: BlockErrorWire };

export type EngineMessage =
  /** The first one: it can be told to begin. */
  | { readonly type: 'loaded'; readonly protocol: number }
  | { readonly type: 'ready'; readonly warnings: readonly string[] }
  | { readonly type: 'failed'; readonly error: BlockErrorWire }
  /** Node ids for keys (`device:inode:snapshot id`): the same key has the same id for the life of the mount. */
  | { readonly type: 'node-ids'; readonly request: number; readonly keys: readonly string[] }
  /** All that were asked for in one turn of the event loop: a mount of thousands of images takes as many locks. */
  | { readonly type: 'lock'; readonly request: number; readonly asked: readonly LockAsked[] }
  | { readonly type: 'unlock'; readonly request: number; readonly locks: readonly number[] }
  | { readonly type: 'passthrough'; readonly use: PassthroughUse }
  /** An image is to be opened by later engines as the mount began, or differently. */
  | {
      readonly type: 'activity';
      readonly request: number;
      readonly path: string;
      readonly differs: boolean;
    }
  /** See `EngineConfig.standIns`. */
  | {
      readonly type: 'stand-ins';
      readonly request: number;
      readonly kept: KeptStandIns | null;
    }
  /** To `ping`: the main thread gets round to its messages. */
  | { readonly type: 'pong' }
  /** Asked for over the control socket: as SIGTERM. */
  | { readonly type: 'quit' }
  /**
   * To `hand-over`: everything is flushed and closed, and nothing more is taken up; but for targets, which may not have answered: then
   * a call that writes to one can be under way.
   */
  | { readonly type: 'handed-over'; readonly targetsClosed: boolean }
  /** The kernel has ended the mount. */
  | { readonly type: 'unmounted' };

export type SupervisorMessage =
  | { readonly type: 'start'; readonly config: EngineConfig }
  | { readonly type: 'node-ids'; readonly request: number; readonly ids: readonly number[] }
  /** In the order in which they were asked for. */
  | { readonly type: 'lock'; readonly request: number; readonly outcomes: readonly LockOutcome[] }
  /** To `unlock`, `activity` and `stand-ins`: it is so. */
  | { readonly type: 'done'; readonly request: number }
  | { readonly type: 'ping' }
  /** Another engine is to go on: finish what is in flight, flush and close everything. */
  | { readonly type: 'hand-over' };
