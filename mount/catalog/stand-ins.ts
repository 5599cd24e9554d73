/**
 * Images that stand in for others: after a pivot, a view goes on over another file, in this engine, in later ones and in later
 * mounts. The view keeps its name and its node id, the file that it was made for has no view any more, and the one
 * that stands in has no second one.
 */
import { dirname } from 'node:path';
import type { BlockError } from '../../src/base/block-error.ts';
import { toBlockError } from '../../src/base/block-error.ts';
import { type HostFile, statHostFile } from './host-file.ts';
import type { Candidate, Listing, Source } from './listing.ts';

/** What is remembered of a pivot. */
export interface StandIn {
  /** The file that the view was made for: its real path. */
  readonly original: string;
  /** Of the original, as the listing had it: the view's name comes from them. */
  readonly fileName: string;
  readonly named: boolean;
  readonly declaredName: string | null;
  /** Of the original (identity and birth): what the view's node id stands for. */
  readonly key: string;
  /** Path or URL of the file that the view stands for now. */
  readonly target: string;
  readonly format: string;
  /** Images (identity and birth) whose content went into the target: they have no views, and keep nobody from writing it. */
  readonly committed?: readonly string[];
}

/** Where they are kept. */
export interface StandIns {
  readonly all: readonly StandIn[];
  /**
   * In the place of one of the same original. Durable when it resolves, unless its place cannot be synced, which the log says.
   * Errors: those of the place, and ETIMEDOUT when that does not answer; nothing has changed then, or is taken back when it
   * answers. What has changed never fails.
   */
  put(standIn: StandIn): Promise<void>;
  /** The view stands for its own file again. As `put`. */
  remove(original: string): Promise<void>;
}

/** Of a candidate that stands in for another file. */
export interface CandidateStandIn {
  readonly record: StandIn;
  /** Why the original is shown, read-only; null where its place is taken. */
  readonly missing: string | null;
}

export const noStandIns: StandIns = {
  all: [],
  put: async () => undefined,
  remove: async () => undefined,
};

export const keyOf = (host: HostFile): string => `${host.identity}:${host.birth}`;

/** What a pivot of this candidate to another file is remembered as. */
export const standInFor = (
  { host, fileName, named, declaredName, standIn }: Candidate,
  target: { readonly path: string; readonly format: string; readonly committed: readonly string[] },
): StandIn => ({
  original: standIn?.record.original ?? host.path,
  fileName,
  named,
  declaredName,
  key: standIn?.record.key ?? keyOf(host),
  target: target.path,
  format: target.format,
  committed: [...new Set([...(standIn?.record.committed ?? []), ...target.committed])],
});

/** The view goes on over another file than it was made for. */
export const isElsewhere = ({ original, target }: StandIn): boolean => original !== target;

/** The listing with what stands in for what it has. Originals that are gone keep their place in a source. */
export const withStandIns = async (
  listing: Listing,
  standIns: StandIns,
  sources: readonly Source[],
): Promise<Listing> => {
  let { candidates, ignored } = listing;
  const originals: Candidate[] = [];
  for (const record of standIns.all) {
    if (!isOfSources(record, sources)) continue;
    const there = candidates.find(({ host }) => host.path === record.original) ?? null;
    // Somebody has put another file there: it is shown as what it is.
    const isOther = there !== null && keyOf(there.host) !== record.key;
    if (isOther && record.target !== record.original) continue;
    const candidate = await candidateOf(record, there);
    if (candidate === null) continue;
    const isCommitted = ({ host }: Candidate): boolean =>
      record.committed?.includes(keyOf(host)) === true;
    if (there !== null && isElsewhere(record) && !isCommitted(there)) originals.push(there);
    const { path } = candidate.host;
    const reason = `stands in for '${record.original}' in the view of that`;
    const others = candidates.filter(({ host }) => host.path === path && host !== there?.host);
    const empty = candidates.filter((c) => c !== there && !others.includes(c) && isCommitted(c));
    ignored = [
      ...ignored.filter((file) => file.path !== record.original),
      ...others.map(({ host }) => ({ path: host.path, reason })),
      ...empty.map(({ host }) => ({ path: host.path, reason: `was committed into '${path}'` })),
    ];
    const kept = candidates.filter((c) => !others.includes(c) && !empty.includes(c));
    candidates =
      there === null ? [...kept, candidate] : kept.map((c) => (c === there ? candidate : c));
  }
  return { candidates, ignored, originals };
};

const isOfSources = ({ original }: StandIn, sources: readonly Source[]): boolean =>
  sources.some(({ path, isDirectory }) =>
    isDirectory ? dirname(original) === path : original === path,
  );

const candidateOf = async (record: StandIn, there: Candidate | null): Promise<Candidate | null> => {
  const { fileName, named, declaredName, target } = record;
  const own = there ?? { fileName, named, declaredName };
  try {
    const host = await statHostFile(target);
    return { ...own, host, standIn: { record, missing: null } };
  } catch (error) {
    const missing = missingReason(target, toBlockError(error));
    return there === null ? null : { ...there, standIn: { record, missing } };
  }
};

const missingReason = (target: string, error: BlockError): string =>
  `'${target}', which it went on with, is not there (${error.message}); this is the image from before`;
