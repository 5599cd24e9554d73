/**
 * The time that each room of tests may take, how it runs, and how much more the soak does: the one list of them. The
 * budgets of `npm test` sum to 47 minutes at most, which the runner checks: bounds against hangs, several times what the rooms should take.
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
  { room: 'unit', seconds: 150, concurrency: 2, soakFactor: 10 },
  { room: 'conformance', seconds: 240, concurrency: 2, soakFactor: 10 },
  { room: 'reference', seconds: 240, concurrency: 2, soakFactor: 20 },
  { room: 'crash', seconds: 240, concurrency: 2, soakFactor: 20 },
  { room: 'qemu', seconds: 420, concurrency: 2, soakFactor: 5 },
  { room: 'fuzz', seconds: 120, concurrency: 2, soakFactor: 50 },
  { room: 'control', seconds: 240, concurrency: 2, soakFactor: 5 },
  { room: 'mount', seconds: 1000, concurrency: 2, soakFactor: 5 },
  { room: 'timing', seconds: 120, concurrency: 1, soakFactor: 1 },
];

export const TOTAL_SECONDS = 2800;
/** The soak has no budgets but this one for each room, so that a hang ends. */
export const SOAK_SECONDS = 7200;
