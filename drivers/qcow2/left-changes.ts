/** What a restart journal has left, by item: each change of a word, a refcount or a table, in the order in which they were made. */
import { type HostCluster, hostCluster } from '../../src/base/units.ts';
import type { OwedHeader } from '../../src/block/header-changes.ts';
import { entryOffset, isCompressed, type L2Entry, plainEntry, type TableEntry } from './entry.ts';
import type { SingleChange } from './journal-records.ts';
import { ENTRY_BYTES, EXTENDED_ENTRY_BYTES } from './layout.ts';

/** Of an L1 word, a word of the refcount table, or an L2 entry of 8 or 16 bytes. */
export interface WordChange {
  readonly at: number;
  readonly old: L2Entry;
  readonly now: L2Entry;
  readonly lengthBytes: number;
}
export type RefcountChange = SingleChange & { kind: 'refcount' };

/** Values that each had in turn. */
export interface LeftChanges {
  /** owed-header.ts has put it back, unless another program was at the header. */
  readonly owed: readonly OwedHeader[];
  /** By file offset. */
  readonly words: ReadonlyMap<number, readonly WordChange[]>;
  /** By host cluster. */
  readonly refcounts: ReadonlyMap<HostCluster, readonly RefcountChange[]>;
  /** New tables by offset, and what they were copied from; 0 for zeros. */
  readonly tables: ReadonlyMap<number, number>;
}

export const foldChanges = (changes: readonly SingleChange[]): LeftChanges => {
  const words = new Map<number, WordChange[]>();
  const refcounts = new Map<HostCluster, RefcountChange[]>();
  const tables = new Map<number, number>();
  const owed: OwedHeader[] = [];
  for (const c of changes) {
    if (c.kind === 'header') owed.push(c.owed);
    else if (c.kind === 'table') tables.set(c.at, c.source);
    else if (c.kind === 'word') append(words, c.at, wordChange(c));
    else if (c.kind === 'extended')
      append(words, c.at, { ...c, lengthBytes: EXTENDED_ENTRY_BYTES });
    else append(refcounts, hostCluster(c.cluster), c);
  }
  return { owed, words, refcounts, tables };
};

const wordChange = ({ at, old, now }: SingleChange & { kind: 'word' }): WordChange => ({
  at,
  old: plainEntry(old),
  now: plainEntry(now),
  lengthBytes: ENTRY_BYTES,
});

const append = <K, V>(map: Map<K, V[]>, key: K, value: V): void => {
  const known = map.get(key);
  if (known === undefined) map.set(key, [value]);
  else known.push(value);
};

export const lastOf = <T>(changes: readonly T[]): T => {
  const last = changes.at(-1);
  if (last === undefined) throw new RangeError('a folded change has a value');
  return last;
};

/** The place that the old entry named stays the new one's: nothing of it was unmapped. */
export const isSamePlace = (old: TableEntry, now: TableEntry): boolean =>
  !isCompressed(old.high) && entryOffset(old.high, old.low) === entryOffset(now.high, now.low);
