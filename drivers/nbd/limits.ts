/** How long the client waits and how much it takes. Tests take smaller ones. */
export interface NbdLimits {
  /** Connecting and negotiating. */
  readonly handshakeMs: number;
  /** A connection on which requests wait and no byte comes for so long is given up. */
  readonly silenceMs: number;
  /** As `silenceMs`, while a flush, a zeroing or a trim is under way: those may really take long. */
  readonly longSilenceMs: number;
  /** In each stretch of this length a reply has to end, or `progressBytes` to come. */
  readonly progressMs: number;
  readonly progressBytes: number;
  /** A request fails when it has not ended after this long, reconnecting included. */
  readonly deadlineMs: number;
  /** Pauses between tries to connect again. */
  readonly firstPauseMs: number;
  readonly lastPauseMs: number;
  /** Connections to a server that allows several. */
  readonly connections: number;
  /** Requests in flight on each of them. */
  readonly inFlight: number;
  /** Writes that were answered and not flushed are kept up to so many bytes, then flushed. */
  readonly unflushedBytes: number;
}

export const NBD_LIMITS: NbdLimits = {
  handshakeMs: 8000,
  silenceMs: 30_000,
  longSilenceMs: 120_000,
  progressMs: 10_000,
  progressBytes: 10 << 10,
  deadlineMs: 60_000,
  firstPauseMs: 100,
  lastPauseMs: 5000,
  connections: 4,
  inFlight: 16,
  unflushedBytes: 16 << 20,
};

/** Longest payload that every server takes (the specification's default). */
export const DEFAULT_MAX_PAYLOAD_BYTES = 32 << 20;
/** A request is cut into pieces of this size at most: so the memory of one is bounded. */
export const PIECE_BYTES = 4 << 20;
