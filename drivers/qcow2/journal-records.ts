/**
 * Records of the restart journal: what a change of mapping was, old value and new, so that a new engine can do it again
 * and can see when another program has been at the image.
 *
 *     kind u8, then
 *       WORD      file offset f64, old high u32, old low u32, new high u32, new low u32   an 8-byte table entry
 *       REFCOUNT  host cluster f64, old f64, new f64
 *       TABLE     file offset f64, source offset f64 (0: zeros)                          a cluster-sized table is new
 *       EXTENDED  file offset f64, old: high, low, zeroes, allocated u32, new: the same   a 16-byte L2 entry
 */
import { BlockError } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import type { L2Entry, TableEntry } from './entry.ts';

export type Change =
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
    };

const KIND = { word: 1, refcount: 2, table: 3, extended: 4 } as const;
const BYTES = { word: 25, refcount: 25, table: 17, extended: 41 } as const;

export const encodeChanges = (changes: readonly Change[]): Uint8Array => {
  const bytes = new Uint8Array(changes.reduce((sum, c) => sum + BYTES[c.kind], 0));
  const view = viewOf(bytes);
  let at = 0;
  for (const c of changes) {
    view.setUint8(at, KIND[c.kind]);
    if (c.kind === 'word') {
      view.setFloat64(at + 1, c.at);
      view.setUint32(at + 9, c.old.high);
      view.setUint32(at + 13, c.old.low);
      view.setUint32(at + 17, c.now.high);
      view.setUint32(at + 21, c.now.low);
    } else if (c.kind === 'refcount') {
      view.setFloat64(at + 1, c.cluster);
      view.setFloat64(at + 9, c.old);
      view.setFloat64(at + 17, c.now);
    } else if (c.kind === 'extended') {
      view.setFloat64(at + 1, c.at);
      putEntry(view, at + 9, c.old);
      putEntry(view, at + 25, c.now);
    } else {
      view.setFloat64(at + 1, c.at);
      view.setFloat64(at + 9, c.source);
    }
    at += BYTES[c.kind];
  }
  return bytes;
};

const putEntry = (view: DataView, at: number, entry: L2Entry): void => {
  view.setUint32(at, entry.high);
  view.setUint32(at + 4, entry.low);
  view.setUint32(at + 8, entry.zeroes);
  view.setUint32(at + 12, entry.allocated);
};

const takeEntry = (view: DataView, at: number): L2Entry => ({
  high: view.getUint32(at),
  low: view.getUint32(at + 4),
  zeroes: view.getUint32(at + 8),
  allocated: view.getUint32(at + 12),
});

/** Errors: EIO for a record that this version did not write. */
export const decodeChanges = (record: Uint8Array): Change[] => {
  const view = viewOf(record);
  const changes: Change[] = [];
  for (let at = 0; at < record.length; ) {
    const change = decodeChange(view, at, record.length - at);
    changes.push(change);
    at += BYTES[change.kind];
  }
  return changes;
};

const decodeChange = (view: DataView, at: number, left: number): Change => {
  const kind = view.getUint8(at);
  if (kind === KIND.word && left >= BYTES.word) {
    const entry = (field: number): TableEntry => ({
      high: view.getUint32(at + field),
      low: view.getUint32(at + field + 4),
    });
    return { kind: 'word', at: view.getFloat64(at + 1), old: entry(9), now: entry(17) };
  }
  if (kind === KIND.refcount && left >= BYTES.refcount) {
    const cluster = view.getFloat64(at + 1);
    return {
      kind: 'refcount',
      cluster,
      old: view.getFloat64(at + 9),
      now: view.getFloat64(at + 17),
    };
  }
  if (kind === KIND.extended && left >= BYTES.extended) {
    const now = takeEntry(view, at + 25);
    return { kind: 'extended', at: view.getFloat64(at + 1), old: takeEntry(view, at + 9), now };
  }
  if (kind === KIND.table && left >= BYTES.table) {
    return { kind: 'table', at: view.getFloat64(at + 1), source: view.getFloat64(at + 9) };
  }
  throw new BlockError({ kind: 'io', message: `the restart journal has a change of kind ${kind}` });
};
