/**
 * Files that have no view for the moment although they lie in a source: what a job copies to must be written by nobody
 * else.
 */
import type { Candidate, IgnoredFile, Listing } from './listing.ts';

export class Reservations {
  /** Why, by real path. */
  readonly #reasons = new Map<string, string>();

  /** Returns what ends it. */
  add(path: string, reason: string): () => void {
    this.#reasons.set(path, reason);
    return () => {
      this.#reasons.delete(path);
    };
  }

  apply(listing: Listing): Listing {
    if (this.#reasons.size === 0) return listing;
    const { candidates, ignored } = listing;
    const kept: Candidate[] = [];
    const left: IgnoredFile[] = [...ignored];
    for (const candidate of candidates) {
      const { path } = candidate.host;
      const reason = this.#reasons.get(path);
      // What stands in for another file is no target any more.
      if (reason === undefined || candidate.standIn !== undefined) kept.push(candidate);
      else left.push({ path, reason });
    }
    return { ...listing, candidates: kept, ignored: left };
  }
}
