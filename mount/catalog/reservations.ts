/**
 * Files that have no view for the moment although they lie in a source: what a job copies to must be written by nobody
 * else.
 */
import { BlockError } from '../../src/base/block-error.ts';
import { isIdle } from './idle-views.ts';
import type { ImageEntry } from './image-entry.ts';
import type { Candidate, IgnoredFile, Listing } from './listing.ts';
import { isElsewhere, keyOf } from './stand-ins.ts';

interface Reservation {
  /** Real path. */
  readonly path: string;
  readonly reason: string;
  readonly ownKey: string | null;
}

export class Reservations {
  /** In their order. One file may have two for a moment: of who lets it go, and of who comes next. */
  readonly #reservations = new Set<Reservation>();

  /** `ownKey`: of the image whose view may go on over the file meanwhile. Returns what ends it. */
  add(path: string, reason: string, ownKey: string | null = null): () => void {
    const reservation = { path, reason, ownKey };
    this.#reservations.add(reservation);
    return () => {
      this.#reservations.delete(reservation);
    };
  }

  apply(listing: Listing): Listing {
    if (this.#reservations.size === 0) return listing;
    // The last one of a path counts.
    const reasons = new Map([...this.#reservations].map((found) => [found.path, found]));
    const { candidates, ignored } = listing;
    const kept: Candidate[] = [];
    const left: IgnoredFile[] = [...ignored];
    for (const candidate of candidates) {
      const { path } = candidate.host;
      const found = reasons.get(path);
      // What stands in for another file is no target any more; and a view may have come back to its own, which was a layer.
      const standIn = candidate.standIn?.record;
      const isElse = standIn !== undefined && isElsewhere(standIn);
      const isOwn = found?.ownKey === (standIn?.key ?? keyOf(candidate.host));
      if (found === undefined || isElse || isOwn) kept.push(candidate);
      else left.push({ path, reason: found.reason });
    }
    return { ...listing, candidates: kept, ignored: left };
  }
}

/** Errors: EBUSY for an image whose view is used, or that lies below another one. */
export const refuseUsed = ({ host, name, usedBy, handles, view }: ImageEntry): void => {
  const refuse = (message: string): BlockError =>
    new BlockError({ kind: 'busy', message, path: host.path });
  if (usedBy !== null) throw refuse(`'${usedBy}' uses it as its backing image`);
  if (handles > 0 || !isIdle(view)) throw refuse(`its view ${name} is in use`);
};

/** Errors: EBUSY for a file that an image's header names. */
export const refuseLayer = (path: string, images: readonly ImageEntry[]): void => {
  for (const { inspection, name } of images) {
    const { chain, dataFiles } = inspection;
    if (![...chain.slice(1), ...dataFiles].some((layer) => layer.path === path)) continue;
    throw new BlockError({ kind: 'busy', message: `'${name}' is made of it`, path });
  }
};
