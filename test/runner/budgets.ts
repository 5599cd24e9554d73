/**
 * The time that each room of tests may take, how it runs, and how much more the soak does: the one list of them. The
 * budgets are bounds against hangs, about twice what the rooms take on two quiet cores: 14 minutes together.
 */

export interface RoomBudget {
  /** Folder below `test/`. */
  readonly room: string;
  /** For `npm test`, in seconds; the room fails when it takes longer. */
  readonly seconds: number;
  /** Files that run at the same time; 1 where tests have bounds of time. */
  readonly concurrency: number;
  /** COUNT of the soak, as a multiple of each test's own default. */
  readonly soakFactor: number;
}

export const BUDGETS: readonly RoomBudget[] = [
  { room: 'unit', seconds: 100, concurrency: 2, soakFactor: 10 },
  { room: 'conformance', seconds: 140, concurrency: 2, soakFactor: 10 },
  { room: 'reference', seconds: 220, concurrency: 2, soakFactor: 20 },
  { room: 'crash', seconds: 210, concurrency: 2, soakFactor: 20 },
  { room: 'qemu', seconds: 120, concurrency: 2, soakFactor: 5 },
  { room: 'fuzz', seconds: 60, concurrency: 2, soakFactor: 50 },
  { room: 'control', seconds: 260, concurrency: 2, soakFactor: 5 },
  { room: 'mount', seconds: 660, concurrency: 2, soakFactor: 5 },
  { room: 'timing', seconds: 130, concurrency: 1, soakFactor: 1 },
];

/** What the budgets may sum to, which the runner checks. */
export const TOTAL_SECONDS = 1900;
/** The soak has no budgets but this one for each room, so that a hang ends. */
export const SOAK_SECONDS = 7200;
