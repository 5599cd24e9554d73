/** A request of the transmission phase, and what comes back. */
import type { Command } from './protocol.ts';

export interface NbdRequest {
  readonly command: Command;
  /** See `COMMAND_FLAG`. */
  readonly flags: number;
  readonly offset: number;
  readonly lengthBytes: number;
  /** Of a write. It stays as it is until the request ends. */
  readonly payload: Uint8Array | null;
  /** Where a read goes. */
  readonly target: Uint8Array | null;
}

/** A run of `base:allocation`; see `STATE`. */
export interface Extent {
  readonly lengthBytes: number;
  readonly state: number;
}

/** A request and who waits for its reply. */
export interface Pending {
  readonly request: NbdRequest;
  readonly settle: (outcome: readonly Extent[] | Error) => void;
}
