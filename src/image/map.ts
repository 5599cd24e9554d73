/** Where an image's content lies: `vdiskfs map`, the records of `qemu-img map --output=json`. */
import { guestOffset } from '../base/units.ts';
import type { BlockStatus } from '../block/block-status.ts';
import type { Node } from '../block/node.ts';

/** One run, in the fields of `qemu-img map`. Bytes. */
export interface MapRecord {
  readonly start: number;
  readonly length: number;
  /** How far down the chain: 0 the image itself, 1 its backing file, … */
  readonly depth: number;
  /** Some layer has it. */
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  /** Where in `path`, when plain bytes lie there. */
  readonly offset?: number;
}

/** A record and the file that `offset` is in; null when it has none. */
export interface PlacedRecord {
  readonly record: MapRecord;
  readonly path: string | null;
  /** Its bytes lie somewhere, but not as the guest sees them. */
  readonly encrypted: boolean;
}

export interface MapRange {
  readonly startBytes: number;
  /** Clipped to the image's length. */
  readonly lengthBytes: number;
}

/**
 * The runs of a range in order, neighbours that differ in nothing joined. Memory does not grow with their number.
 * Errors: EIO for metadata that is unreadable or breaks its format.
 */
export async function* mapImage(root: Node, range?: MapRange): AsyncGenerator<PlacedRecord> {
  const end = Math.min(
    root.lengthBytes,
    range === undefined ? Infinity : range.startBytes + range.lengthBytes,
  );
  let pending: PlacedRecord | null = null;
  for (let at = range?.startBytes ?? 0; at < end; ) {
    const status = await root.blockStatus(guestOffset(at), end - at);
    const next = placed(at, status);
    const joined: PlacedRecord | null = pending === null ? next : join(pending, next);
    if (joined === null && pending !== null) yield pending;
    pending = joined ?? next;
    at += status.lengthBytes;
  }
  if (pending !== null) yield pending;
  else if (root.lengthBytes === 0) yield EMPTY;
}

/** What `qemu-img` prints for an image of no bytes. */
const EMPTY: PlacedRecord = {
  path: null,
  encrypted: false,
  record: { start: 0, length: 0, depth: 0, present: false, zero: false, data: false },
};

const placed = (start: number, s: BlockStatus): PlacedRecord => ({
  path: s.path,
  encrypted: s.encrypted,
  record: {
    start,
    length: s.lengthBytes,
    depth: s.depth,
    present: s.allocated,
    zero: s.zero,
    data: s.data,
    ...(s.hostOffset === null ? {} : { offset: s.hostOffset }),
  },
});

const join = (a: PlacedRecord, b: PlacedRecord): PlacedRecord | null => {
  const [x, y] = [a.record, b.record];
  const alike =
    a.path === b.path &&
    x.depth === y.depth &&
    x.present === y.present &&
    x.zero === y.zero &&
    x.data === y.data;
  const contiguous =
    x.offset === undefined ? y.offset === undefined : x.offset + x.length === y.offset;
  if (!alike || !contiguous) return null;
  return { path: a.path, encrypted: a.encrypted, record: { ...x, length: x.length + y.length } };
};
