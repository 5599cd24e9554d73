/**
 * Records of the restart journal: what a change of mapping was, old value and new, so that a new engine can do it again
 * and can see when another program has been at the image.
 *
 *     kind u8, then
 *       WORD      file offset f64, old high u32, old low u32, new high u32, new low u32   an 8-byte table entry
 *       REFCOUNT  host cluster f64, old f64, new f64
 *       TABLE     file offset f64, source offset f64 (0: zeros)                          a cluster-sized table is new
 *       EXTENDED  file offset f64, old: high, low, zeroes, allocated u32, new: the same   a 16-byte L2 entry
 *       COUNTED   first host cluster f64, clusters u32                                   refcounts that go from 0 to 1
 *       MAPPED    file offset f64, entries u32, host offset f64, cluster bytes u32        8-byte entries that were 0, of
 *                                                                                        clusters side by side
 *       HEADER    as header-changes.ts has it                                            bytes of the header that are owed; witness:
 *                                                                                        the SHA-256 of a new L1 table
 */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { decodeOwed, encodeOwed, type OwedHeader } from '../../src/block/header-changes.ts';
import { copiedEntry, type L2Entry, type TableEntry } from './entry.ts';
import { ENTRY_BYTES } from './layout.ts';

/** Of one entry, refcount or table. */
export type SingleChange =
  | {
      readonly kind: 'word';
      readonly at: number;
      readonly old: TableEntry;
      readonly now: TableEntry;
    }
  | {
      readonly kind: 'refcount';
      readonly cluster: number;
      readonly old: number;
      readonly now: number;
    }
  | { readonly kind: 'table'; readonly at: number; readonly source: number }
  | {
      readonly kind: 'extended';
      readonly at: number;
      readonly old: L2Entry;
      readonly now: L2Entry;
    }
  | { readonly kind: 'header'; readonly owed: OwedHeader };

/** Of many at once, as an allocating write makes them. */
export type RunChange =
  | { readonly kind: 'counted'; readonly first: number; readonly count: number }
  | {
      readonly kind: 'mapped';
      readonly at: number;
      readonly count: number;
      readonly hostOffset: number;
      readonly clusterBytes: number;
    };

export type Change = SingleChange | RunChange;

const KIND = {
  word: 1,
  refcount: 2,
  table: 3,
  extended: 4,
  counted: 5,
  mapped: 6,
  header: 7,
} as const;
/** Of those that are always equally long, with their kind. */
const BYTES = { word: 25, refcount: 25, table: 17, extended: 41, counted: 13, mapped: 25 } as const;
const KIND_OF = new Map<number, Change['kind']>(
  Object.entries(KIND).map(([name, code]) => [code, name as Change['kind']]),
);

export const encodeChanges = (changes: readonly Change[]): Uint8Array => {
  let length = 0;
  for (const change of changes) length += bytesOf(change);
  const bytes = new Uint8Array(length);
  const view = viewOf(bytes);
  let at = 0;
  for (const change of changes) {
    view.setUint8(at, KIND[change.kind]);
    if (change.kind === 'header') bytes.set(encodeOwed(change.owed), at + 1);
    else encodeChange(view, at + 1, change);
    at += bytesOf(change);
  }
  return bytes;
};

const bytesOf = (change: Change): number =>
  change.kind === 'header' ? 1 + encodeOwed(change.owed).length : BYTES[change.kind];

const encodeChange = (view: DataView, at: number, c: Exclude<Change, { kind: 'header' }>): void => {
  switch (c.kind) {
    case 'word':
      view.setFloat64(at, c.at);
      putWord(view, at + 8, c.old);
      putWord(view, at + 16, c.now);
      return;
    case 'refcount':
      view.setFloat64(at, c.cluster);
      view.setFloat64(at + 8, c.old);
      view.setFloat64(at + 16, c.now);
      return;
    case 'table':
      view.setFloat64(at, c.at);
      view.setFloat64(at + 8, c.source);
      return;
    case 'extended':
      view.setFloat64(at, c.at);
      putEntry(view, at + 8, c.old);
      putEntry(view, at + 24, c.now);
      return;
    case 'counted':
      view.setFloat64(at, c.first);
      view.setUint32(at + 8, c.count);
      return;
    case 'mapped':
      view.setFloat64(at, c.at);
      view.setUint32(at + 8, c.count);
      view.setFloat64(at + 12, c.hostOffset);
      view.setUint32(at + 20, c.clusterBytes);
  }
};

const putWord = (view: DataView, at: number, { high, low }: TableEntry): void => {
  view.setUint32(at, high);
  view.setUint32(at + 4, low);
};

const putEntry = (view: DataView, at: number, entry: L2Entry): void => {
  putWord(view, at, entry);
  view.setUint32(at + 8, entry.zeroes);
  view.setUint32(at + 12, entry.allocated);
};

const takeWord = (view: DataView, at: number): TableEntry => ({
  high: view.getUint32(at),
  low: view.getUint32(at + 4),
});

const takeEntry = (view: DataView, at: number): L2Entry => ({
  ...takeWord(view, at),
  zeroes: view.getUint32(at + 8),
  allocated: view.getUint32(at + 12),
});

/** Runs come as what they consist of. Errors: EIO for a record that this version did not write. */
export const decodeChanges = (record: Uint8Array): SingleChange[] => {
  const changes: SingleChange[] = [];
  for (const place of changesIn(record)) {
    if (place.kind === 'header') changes.push({ kind: 'header', owed: place.owed });
    else for (const change of decodeChange(viewOf(record), place)) changes.push(change);
  }
  return changes;
};

/** What is owed alone. Errors: as `decodeChanges`. */
export const decodeOwedHeaders = (record: Uint8Array): OwedHeader[] => {
  const owed: OwedHeader[] = [];
  for (const place of changesIn(record)) if (place.kind === 'header') owed.push(place.owed);
  return owed;
};

type FixedKind = Exclude<Change['kind'], 'header'>;
/** `at`: behind its kind. */
type ChangePlace =
  | { readonly kind: FixedKind; readonly at: number }
  | { readonly kind: 'header'; readonly owed: OwedHeader };

function* changesIn(record: Uint8Array): Generator<ChangePlace> {
  for (let at = 0; at < record.length; ) {
    const code = record[at] ?? 0;
    const kind = KIND_OF.get(code);
    if (kind === 'header') {
      const found = decodeOwed(record.subarray(at + 1));
      if (found === null) throw unknownChange(code);
      yield { kind, owed: found.owed };
      at += 1 + found.lengthBytes;
    } else {
      if (kind === undefined || record.length - at < BYTES[kind]) throw unknownChange(code);
      yield { kind, at: at + 1 };
      at += BYTES[kind];
    }
  }
}

const unknownChange = (kind: number): BlockError =>
  new BlockError({ kind: 'io', message: `the restart journal has a change of kind ${kind}` });

const decodeChange = (
  view: DataView,
  { kind, at }: { readonly kind: FixedKind; readonly at: number },
): SingleChange[] => {
  const first = view.getFloat64(at);
  switch (kind) {
    case 'word':
      return [{ kind, at: first, old: takeWord(view, at + 8), now: takeWord(view, at + 16) }];
    case 'refcount':
      return [
        { kind, cluster: first, old: view.getFloat64(at + 8), now: view.getFloat64(at + 16) },
      ];
    case 'table':
      return [{ kind, at: first, source: view.getFloat64(at + 8) }];
    case 'extended':
      return [{ kind, at: first, old: takeEntry(view, at + 8), now: takeEntry(view, at + 24) }];
    case 'counted':
      return Array.from({ length: view.getUint32(at + 8) }, (_, i) => {
        return { kind: 'refcount', cluster: first + i, old: 0, now: 1 };
      });
    case 'mapped': {
      const hostOffset = view.getFloat64(at + 12);
      const clusterBytes = view.getUint32(at + 20);
      return Array.from({ length: view.getUint32(at + 8) }, (_, i) => {
        const now = copiedEntry(hostOffset + i * clusterBytes);
        return { kind: 'word', at: first + i * ENTRY_BYTES, old: { high: 0, low: 0 }, now };
      });
    }
  }
};
