/** From the snapshots that the images of a scan have, to the entries that there should be of them. */
import { present } from '../../src/base/assert.ts';
import type { SnapshotDescription } from '../../src/block/image-description.ts';
import type { CatalogOptions } from './catalog-options.ts';
import { RENEW_NODE_ID } from './catalog-options.ts';
import type { EntryContext } from './entry-context.ts';
import type { EntryTable } from './entry-table.ts';
import type { ImageEntry } from './image-entry.ts';
import type { Inspection } from './inspection.ts';
import type { IgnoredFile } from './listing.ts';
import { SnapshotEntry, snapshotKey } from './snapshot-entry.ts';

/** Of all images of a mount together: the listing must not fill the memory. */
const MAX_SNAPSHOT_VIEWS = 65_536;

/** A snapshot of something that a scan has found. */
export interface FoundSnapshot<Image> {
  readonly image: Image;
  readonly snapshot: SnapshotDescription;
}

interface WithInspection {
  readonly inspection: Inspection;
  readonly candidate: { readonly host: { readonly path: string } };
}

/** Every snapshot that gets a view. Of several with one id the first does: no other can be asked for. */
export const snapshotsOf = <Image extends WithInspection>(
  images: readonly Image[],
  ignored: IgnoredFile[],
): FoundSnapshot<Image>[] => {
  const found: FoundSnapshot<Image>[] = [];
  for (const image of images) {
    const ids = new Set<string>();
    const snapshots = image.inspection.description?.snapshots ?? [];
    for (const snapshot of snapshots) {
      if (ids.has(snapshot.id) || found.length >= MAX_SNAPSHOT_VIEWS) continue;
      ids.add(snapshot.id);
      found.push({ image, snapshot });
    }
    const left = snapshots.length - ids.size;
    const reason = `${left} of its ${snapshots.length} snapshots are not shown: they have the id of another, or there are too many`;
    if (left > 0) ignored.push({ path: image.candidate.host.path, reason });
  }
  return found;
};

export interface NamedSnapshot {
  readonly image: ImageEntry;
  readonly snapshot: SnapshotDescription;
  readonly name: string;
}

/** Entries of snapshots that have a name, those that there are already among them. */
export const snapshotEntries = async (
  named: readonly NamedSnapshot[],
  options: {
    readonly table: EntryTable;
    readonly context: EntryContext;
    readonly nodeIds: CatalogOptions['nodeIds'];
  },
): Promise<SnapshotEntry[]> => {
  const { table, context, nodeIds } = options;
  const known = named.map((one) => knownEntry(table, one.image, one.snapshot));
  const fresh = named.filter((_, index) => known[index] === null);
  const keyOf = (one: NamedSnapshot): string =>
    `${one.image.key}:${snapshotKey(one.image, one.snapshot)}`;
  const ids = [...(await nodeIds(fresh.map(keyOf)))];
  // An id that is still known for what it stood for before is not given again.
  const taken = fresh.flatMap((one, i) =>
    table.byNodeId(ids[i] ?? 0) === null ? [] : [{ one, i }],
  );
  const others = await nodeIds(taken.map(({ one }) => `${RENEW_NODE_ID}${keyOf(one)}`));
  taken.forEach(({ i }, index) => {
    ids[i] = present(others[index], 'there is one id for each key');
  });
  let next = 0;
  return named.map((one, index) => {
    const { image, snapshot, name } = one;
    const entry = known[index] ?? null;
    if (entry !== null) {
      entry.name = name;
      return entry;
    }
    const nodeId = present(ids[next++], 'the supervisor answers with one id for each key');
    return new SnapshotEntry(context, {
      nodeId,
      key: snapshotKey(image, snapshot),
      name,
      image,
      snapshot,
    });
  });
};

/** The entry that there is already of an image's snapshot; null for none. */
export const knownEntry = (
  table: EntryTable,
  image: ImageEntry,
  snapshot: SnapshotDescription,
): SnapshotEntry | null => {
  const entry = table.bySnapshotKey(snapshotKey(image, snapshot));
  return entry?.image === image ? entry : null;
};
