/** Which bytes of a read the chunks of its reply have brought: each once, and in the end all. */

/** In order, a reply has one run; servers that answer out of order have a few. */
const MAX_RUNS = 4096;

export class Coverage {
  /** Disjoint, in order, neighbours joined. */
  readonly #runs: { start: number; end: number }[] = [];

  /** False: some of it has come before, or it comes in too many pieces. */
  add(start: number, end: number): boolean {
    const runs = this.#runs;
    // Most come at the end.
    let at = runs.length;
    while (at > 0 && (runs[at - 1]?.start ?? 0) >= end) at--;
    const before = runs[at - 1];
    const after = runs[at];
    if (before !== undefined && before.end > start) return false;
    const joinsBefore = before !== undefined && before.end === start;
    const joinsAfter = after !== undefined && after.start === end;
    if (joinsBefore && joinsAfter) {
      before.end = after.end;
      runs.splice(at, 1);
    } else if (joinsBefore) before.end = end;
    else if (joinsAfter) after.start = start;
    else if (runs.length >= MAX_RUNS) return false;
    else runs.splice(at, 0, { start, end });
    return true;
  }

  isWhole(start: number, end: number): boolean {
    const [run, other] = this.#runs;
    return other === undefined && run?.start === start && run.end === end;
  }
}
