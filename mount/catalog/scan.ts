/**
 * One scan: from what the sources hold now and the entries there are, to the entries that there should be. It makes
 * entries and asks for node ids, but changes no table: the catalog does, in one step.
 */
import { dirname } from 'node:path';
import { present } from '../../src/base/assert.ts';
import type { BlockError } from '../../src/base/block-error.ts';
import { RENEW_NODE_ID } from './catalog-options.ts';
import type { EntryContext } from './entry-context.ts';
import type { CatalogEntry, EntryTable } from './entry-table.ts';
import type { HostFile } from './host-file.ts';
import { ImageEntry } from './image-entry.ts';
import type { Inspection, Inspector } from './inspection.ts';
import { type Candidate, type IgnoredFile, mapBounded, PARALLEL_LOOKS } from './listing.ts';
import { assignNames, type Nameable } from './naming.ts';
import type { SnapshotEntry } from './snapshot-entry.ts';
import { knownEntry, snapshotEntries, snapshotsOf } from './snapshot-listing.ts';
import { keyOf } from './stand-ins.ts';

export interface ScanOptions {
  /** When the sources began to be listed; `performance.now()`. */
  readonly sinceMs: number;
  readonly table: EntryTable;
  readonly inspector: Inspector;
  readonly context: EntryContext;
  /** `--format`: the format of the single file of the mount; null for the rules of content and extension. */
  readonly format: string | null;
  /** See `CatalogOptions.nodeIds`. */
  readonly nodeIds: (keys: readonly string[]) => Promise<readonly number[]>;
  /** Source directories. */
  readonly directories: ReadonlySet<string>;
  /** See `Listing`. */
  readonly originals: readonly Candidate[];
  /** Reasons of files that were no images at the last scan, by stamp. */
  readonly knownIgnored: ReadonlyMap<string, string>;
}

export interface ScanResult {
  /** In order, each with its name. */
  readonly entries: readonly CatalogEntry[];
  readonly ignored: readonly IgnoredFile[];
  readonly ignoredHosts: readonly { readonly host: HostFile; readonly reason: string }[];
  /** Names that stand for another file now, or for none. */
  readonly changedNames: readonly string[];
}

/** An image of the coming listing: an entry that stays, or what a new one is made of. */
interface Found {
  readonly candidate: Candidate;
  readonly entry: ImageEntry | null;
  readonly inspection: Inspection;
  /** What the entry knew when it was looked at; null without one. */
  readonly inspectionBefore: Inspection | null;
  readonly openError: BlockError | null;
  readonly key: string;
  /** The file was known here with other content: its old node id must not stand for it any more. */
  readonly renews: boolean;
}

export const scan = async (
  candidates: readonly Candidate[],
  options: ScanOptions,
): Promise<ScanResult> => {
  const { unique, ignored } = withoutAliases(candidates);
  const hosts = new Map(candidates.map(({ host }) => [host.path, host]));
  const looked = await mapBounded(unique, PARALLEL_LOOKS, (candidate) =>
    look(candidate, hosts, options),
  );
  const ignoredHosts: { host: HostFile; reason: string }[] = [];
  const offered: Found[] = [];
  for (const one of looked) {
    if ('reason' in one) ignoredHosts.push(one);
    else offered.push(one);
  }
  const found = withoutDataFiles(offered, ignored);
  for (const { host, reason } of ignoredHosts) ignored.push({ path: host.path, reason });
  const before = new Map(options.table.listed.map((entry) => [entry.name, entry]));
  const images = await nameAndMake(found, ignored, options);
  const entries = [...images.entries, ...images.snapshots];
  const after = new Map(entries.map((entry) => [entry.name, entry]));
  const changedNames = [...before]
    .filter(([name, e]) => after.get(name) !== e)
    .map(([name]) => name);
  markBackings(images.entries, await usersAmong(options));
  return { entries, ignored, ignoredHosts, changedNames };
};

/** Two names of one file would be two writers of one image: the first one stands for it. */
const withoutAliases = (
  candidates: readonly Candidate[],
): { unique: Candidate[]; ignored: IgnoredFile[] } => {
  const first = new Map<string, Candidate>();
  const ignored: IgnoredFile[] = [];
  for (const candidate of candidates) {
    const other = first.get(candidate.host.identity);
    if (other === undefined) first.set(candidate.host.identity, candidate);
    else
      ignored.push({
        path: candidate.host.path,
        reason: `is the same file as '${other.fileName}'`,
      });
  }
  return { unique: [...first.values()], ignored };
};

/** What another image's bytes lie in would show half of a disk, and be written by two. */
const withoutDataFiles = (images: readonly Found[], ignored: IgnoredFile[]): Found[] => {
  const owners = new Map<string, string>();
  for (const { candidate, inspection } of images) {
    if (inspection.error !== null) continue;
    for (const { identity } of inspection.dataFiles) owners.set(identity, candidate.fileName);
  }
  return images.filter(({ candidate }) => {
    const owner = owners.get(candidate.host.identity);
    if (owner !== undefined) {
      const reason = `holds the data of '${owner}'`;
      ignored.push({ path: candidate.host.path, reason });
    }
    return owner === undefined;
  });
};

const look = async (
  listed: Candidate,
  hosts: ReadonlyMap<string, HostFile>,
  options: ScanOptions,
): Promise<Found | { host: HostFile; reason: string }> => {
  const key = listed.standIn?.record.key ?? keyOf(listed.host);
  const known = options.table.byKey(key);
  const candidate = known?.latest(listed, options.sinceMs) ?? listed;
  const { host } = candidate;
  if (known !== null && stays(known, host, hosts, options.directories)) {
    const { inspection, openError } = known;
    const asItWas = { inspection, inspectionBefore: inspection, openError, renews: false };
    return { candidate, entry: known, key, ...asItWas };
  }
  const remembered = options.knownIgnored.get(host.stamp);
  if (remembered !== undefined) return { host, reason: remembered };
  const inspectionBefore = known?.inspection ?? null;
  const inspection = await options.inspector.inspect(candidate, {
    format: options.format,
    patient: false,
  });
  if ('ignored' in inspection) return { host, reason: inspection.ignored };
  const changed =
    known !== null &&
    (known.host.stamp !== host.stamp || !hasSameDataFiles(known.inspection, inspection));
  const openError = changed ? null : (known?.openError ?? null);
  const isBroken = inspection.error !== null || openError !== null;
  // Nobody has pages of an image that could not be opened and cannot be now.
  const keepsNode = known?.canBecome({ broken: isBroken }) === true && (!changed || isBroken);
  const entry = keepsNode ? known : null;
  const renews = known !== null && entry === null;
  return { candidate, entry, inspection, inspectionBefore, openError, key, renews };
};

const hasSameDataFiles = (a: Inspection, b: Inspection): boolean =>
  a.dataFiles.length === b.dataFiles.length &&
  a.dataFiles.every((file, i) => file.stamp === b.dataFiles[i]?.stamp);

/** An image that is open changes through us; one that is not, and has its old stamp, is as it was. */
const stays = (
  entry: ImageEntry,
  host: HostFile,
  hosts: ReadonlyMap<string, HostFile>,
  directories: ReadonlySet<string>,
): boolean => {
  if (entry.isSuperseded) return false;
  // Another host changes it, and it is looked at when it is taken back.
  if (entry.isInactive) return true;
  if (entry.isOpen || entry.handles > 0) return true;
  if (entry.host.stamp !== host.stamp || entry.mustBeReplaced) return false;
  // A broken header is mended in its file; a broken chain may be mended elsewhere.
  const { error, description } = entry.inspection;
  if (error !== null) return description === null;
  const { chain, dataFiles } = entry.inspection;
  return [...chain.slice(1), ...dataFiles].every((layer) => {
    const now = hosts.get(layer.path);
    if (now === undefined) return !directories.has(dirname(layer.path));
    return now.identity === layer.identity && now.stamp === layer.stamp;
  });
};

/** Images are named before snapshots, so that the names of images are the plain ones. */
const nameAndMake = async (
  found: readonly Found[],
  ignored: IgnoredFile[],
  options: ScanOptions,
): Promise<{ entries: ImageEntry[]; snapshots: SnapshotEntry[] }> => {
  const snapshots = snapshotsOf(found, ignored);
  const names = assignNames([
    ...found.map((image) => nameable(image, null, keptBy(image.entry, image.entry, image))),
    ...snapshots.map(({ image, snapshot }) => {
      const known = image.entry === null ? null : knownEntry(options.table, image.entry, snapshot);
      return nameable(image, snapshot.name, keptBy(known, image.entry, image));
    }),
  ]);
  const named: { readonly image: Found; readonly name: string }[] = [];
  found.forEach((image, index) => {
    const name = names[index] ?? null;
    if (name !== null) named.push({ image, name });
    else ignored.push({ path: image.candidate.host.path, reason: 'no name is left for it' });
  });
  const entries = await makeImages(named, options);
  const entryOf = new Map(named.map(({ image }, index) => [image, entries[index]]));
  const namedSnapshots = snapshots.flatMap(({ image, snapshot }, index) => {
    const name = names[found.length + index] ?? null;
    const entry = entryOf.get(image);
    return name === null || entry === undefined ? [] : [{ image: entry, snapshot, name }];
  });
  return { entries, snapshots: await snapshotEntries(namedSnapshots, options) };
};

const nameable = ({ candidate }: Found, snapshot: string | null, kept: string | null): Nameable => {
  const { fileName, declaredName } = candidate;
  return { fileName, declaredName, snapshot, kept };
};

/** The name that an open view keeps, as long as its image has its own. */
const keptBy = (
  entry: CatalogEntry | null,
  image: ImageEntry | null,
  { candidate }: Found,
): string | null =>
  entry !== null && entry.handles > 0 && image?.candidate.fileName === candidate.fileName
    ? entry.name
    : null;

const makeImages = async (
  named: readonly { readonly image: Found; readonly name: string }[],
  options: ScanOptions,
): Promise<ImageEntry[]> => {
  const fresh = named.filter(({ image }) => image.entry === null).map(({ image }) => image);
  const idOf = await nodeIdsOf(fresh, options);
  return named.map(({ image, name }) => {
    const { candidate, inspection, inspectionBefore, openError, key } = image;
    if (image.entry !== null) {
      const { sinceMs } = options;
      image.entry.adopt({ name, candidate, inspection, inspectionBefore, sinceMs });
      return image.entry;
    }
    const nodeId = present(idOf.get(image), 'the supervisor answers with one id for each key');
    const fields = { nodeId, key, name, candidate, inspection, openError };
    return new ImageEntry(options.context, fields);
  });
};

/** An id that an entry still has which lost its name is not given again: the file was away, and may have changed. */
const nodeIdsOf = async (
  images: readonly Found[],
  { nodeIds, table }: ScanOptions,
): Promise<ReadonlyMap<Found, number>> => {
  const ids = await nodeIds(images.map((image) => nodeKeyOf(image, image.renews)));
  const idOf = new Map<Found, number>();
  images.forEach((image, index) => {
    idOf.set(image, present(ids[index], 'there is one id for each key'));
  });
  const taken = images.filter((image) => table.byNodeId(idOf.get(image) ?? 0) !== null);
  const others = await nodeIds(taken.map((image) => nodeKeyOf(image, true)));
  taken.forEach((image, index) => {
    idOf.set(image, present(others[index], 'there is one id for each key'));
  });
  return idOf;
};

/** `device:inode:birth:snapshot`, with what asks for a new id in front. */
const nodeKeyOf = (image: Found, renews: boolean): string =>
  `${renews ? RENEW_NODE_ID : ''}${image.key}:`;

/** What lies below images that others stand in for: writing it would spoil the way back. */
const usersAmong = async ({ originals, inspector, format }: ScanOptions): Promise<Users> => {
  const users = new Map<string, string>();
  for (const original of originals) {
    const inspection = await inspector.inspect(original, { format, patient: false });
    if ('ignored' in inspection) continue;
    for (const { identity } of inspection.chain.slice(1)) users.set(identity, original.fileName);
  }
  return users;
};

type Users = Map<string, string>;

/** Every file of a chain but the first is used by the first one's view. `users`: others, by what they use. */
const markBackings = (entries: readonly ImageEntry[], users: Users): void => {
  for (const entry of entries) {
    for (const layer of entry.inspection.chain.slice(1)) {
      if (!users.has(layer.identity)) users.set(layer.identity, entry.name);
    }
  }
  for (const entry of entries) entry.usedBy = users.get(entry.host.identity) ?? null;
};
