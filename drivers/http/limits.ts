/** How long the driver waits, how often it tries, and how much it asks for at once. Tests take smaller ones. */
export interface HttpLimits {
  /** Connections to the server, and so requests at once. */
  readonly connections: number;
  /** From the start of a try until the answer's header is there. */
  readonly answerMs: number;
  /** In each stretch of this length at least `progressBytes` of a body have to come. */
  readonly progressMs: number;
  readonly progressBytes: number;
  /** A read fails when it has not ended after this long, all tries together. */
  readonly deadlineMs: number;
  /** As `deadlineMs`, of an opening: somebody stands and waits. */
  readonly openDeadlineMs: number;
  /** Pauses between tries. */
  readonly firstPauseMs: number;
  readonly lastPauseMs: number;
  /** Tries of an answer that breaks the protocol, or of a file that is not there: longer waiting does not mend it. */
  readonly brokenTries: number;
}

export const HTTP_LIMITS: HttpLimits = {
  connections: 8,
  answerMs: 15_000,
  progressMs: 10_000,
  progressBytes: 10 << 10,
  deadlineMs: 60_000,
  openDeadlineMs: 8000,
  firstPauseMs: 100,
  lastPauseMs: 5000,
  brokenTries: 3,
};

/** Followed from one request to the next; more is taken for a loop. */
export const MAX_REDIRECTS = 5;
