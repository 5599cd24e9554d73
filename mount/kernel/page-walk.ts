/**
 * From the node graph to translations: what each page of a range of a view may be given, as far as the drivers know it
 * without waiting.
 */
import { guestOffset } from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import { READ, WRITE, ZERO } from '../../src/translation/table-layout.ts';
import type { Translation } from '../../src/translation/translation-table.ts';

export interface PageWalk {
  readonly root: Node;
  /** Guests may write the view: only then is WRITE given. */
  readonly writable: boolean;
  readonly pageBytes: number;
  readonly firstPage: number;
  readonly pages: number;
  /** The table's number for the host file below a node; null when it has none (no descriptor, too many files). */
  readonly fileOf: (file: Node) => number | null;
}

interface Run {
  readonly lengthBytes: number;
  /** What a page that lies wholly in the run may be given, for the run's first byte; null: it faults. */
  readonly translation: Translation | null;
}

/**
 * One translation, or null, for each page. Synchronous, so that what it says is still so when it is stored in the same
 * turn of the event loop: where a driver would have to read metadata first, the pages from there on fault.
 *
 * A page is given a translation only when one run covers it up to the end of the view: pages that lie in two places, and
 * the last page of a shorter backing file, fault.
 */
export const walkPages = (walk: PageWalk): (Translation | null)[] => {
  const { root, pageBytes, firstPage } = walk;
  const found: (Translation | null)[] = new Array(walk.pages).fill(null);
  const end = Math.min(root.lengthBytes, (firstPage + walk.pages) * pageBytes);
  let at = firstPage * pageBytes;
  while (at < end) {
    const run = runAt(walk, root, at, end - at, walk.writable);
    if (run === null) break;
    const runEnd = at + run.lengthBytes;
    if (run.translation !== null) fillPages(found, walk, run.translation, at, runEnd, end);
    at = runEnd;
  }
  return found;
};

const fillPages = (
  found: (Translation | null)[],
  walk: PageWalk,
  translation: Translation,
  start: number,
  runEnd: number,
  end: number,
): void => {
  const { pageBytes, firstPage } = walk;
  for (let page = Math.ceil(start / pageBytes); page * pageBytes < runEnd; page++) {
    const pageEnd = Math.min((page + 1) * pageBytes, end);
    if (pageEnd > runEnd) return;
    const inRun = page * pageBytes - start;
    const { permissions, file } = translation;
    const hostOffset = (permissions & ZERO) === 0 ? translation.hostOffset + inRun : 0;
    found[page - firstPage] = { permissions, file, hostOffset };
  }
};

/** The run at a guest offset, found down the chain; null when a driver has to wait. */
const runAt = (
  walk: PageWalk,
  node: Node,
  at: number,
  lengthBytes: number,
  writable: boolean,
): Run | null => {
  let m: Mapping | Promise<Mapping>;
  try {
    m = node.driver.mapping(guestOffset(at), lengthBytes);
  } catch {
    // A damaged entry: the request that needs it meets the error.
    return null;
  }
  if (m instanceof Promise) {
    // The load goes on and later faults find it done; its failure is met by the request that needs it.
    m.catch(() => undefined);
    return null;
  }
  switch (m.kind) {
    case 'zero':
      return { lengthBytes: m.lengthBytes, translation: ZEROES };
    case 'opaque':
      return { lengthBytes: m.lengthBytes, translation: null };
    case 'data': {
      const file = walk.fileOf(m.file);
      const permissions = writable && m.inPlace ? READ | WRITE : READ;
      const translation = file === null ? null : { permissions, file, hostOffset: m.hostOffset };
      return { lengthBytes: m.lengthBytes, translation };
    }
    case 'unallocated': {
      const below = node.backing;
      if (below === null || at >= below.lengthBytes) {
        return { lengthBytes: m.lengthBytes, translation: ZEROES };
      }
      const inside = Math.min(m.lengthBytes, below.lengthBytes - at);
      return runAt(walk, below, at, inside, false);
    }
  }
};

const ZEROES: Translation = { permissions: READ | ZERO, file: 0, hostOffset: 0 };
