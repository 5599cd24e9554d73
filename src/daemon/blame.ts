/**
 * Which image engines die of. After two deaths in short order the next engine is a careful one: it does one thing at a time
 * and records it (black-box.ts). What was in flight at several deaths of careful engines in a row got nowhere, and the last of
 * it that began is to blame: its view answers EIO from then on, and the others go on.
 *
 * Somebody who kills engines at random blames nobody: between two deaths requests are answered, and each has a number of
 * its own.
 */
import type { Task } from './black-box.ts';

/** Deaths of the last so many ms ask for care. */
const RECENT_MS = 60_000;
const DEATHS_BEFORE_CARE = 2;
/** Deaths with the same task in flight. SIGKILL comes from elsewhere as a rule: it takes more of them. */
const TRIES = 3;
const TRIES_WHEN_KILLED = 8;

export interface Blocked {
  readonly nodeIds: readonly number[];
  readonly paths: readonly string[];
}

export class Blame {
  readonly #nodeIds = new Set<number>();
  readonly #paths = new Set<string>();
  #deathsMs: number[] = [];
  /** Deaths in a row that each task was in flight at. */
  #counts = new Map<string, number>();

  get blocked(): Blocked {
    return { nodeIds: [...this.#nodeIds], paths: [...this.#paths] };
  }

  /** Whether the next engine should be careful. */
  isCareful(nowMs: number): boolean {
    return this.#recent(nowMs).length >= DEATHS_BEFORE_CARE;
  }

  /** An engine has died. `tasks`: of a careful one, else null. Returns what is blamed now; null for nothing. */
  died(options: {
    readonly nowMs: number;
    readonly how: string;
    readonly tasks: readonly Task[] | null;
  }): Task | null {
    const { nowMs, how, tasks } = options;
    this.#deathsMs = [...this.#recent(nowMs), nowMs];
    if (tasks === null) return null;
    this.#counts = new Map(tasks.map(({ id }) => [id, (this.#counts.get(id) ?? 0) + 1]));
    const tries = how === 'SIGKILL' ? TRIES_WHEN_KILLED : TRIES;
    const guilty = tasks.findLast(({ id }) => (this.#counts.get(id) ?? 0) >= tries);
    if (guilty === undefined) return null;
    this.#counts.clear();
    if (guilty.nodeId !== null) this.#nodeIds.add(guilty.nodeId);
    if (guilty.path !== null) this.#paths.add(guilty.path);
    return guilty;
  }

  /** Whether one of these tasks was in flight when an engine died. */
  suspects(tasks: readonly Task[]): boolean {
    return tasks.some(({ id }) => this.#counts.has(id));
  }

  /** An engine serves well: what was before is forgotten, but for what is blocked. */
  lives(): void {
    this.#deathsMs = [];
    this.#counts.clear();
  }

  /** Everything gets another try. */
  forgive(): void {
    this.lives();
    this.#nodeIds.clear();
    this.#paths.clear();
  }

  #recent(nowMs: number): number[] {
    return this.#deathsMs.filter((at) => nowMs - at < RECENT_MS);
  }
}
