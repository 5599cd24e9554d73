/**
 * From the node graph to translations: what each page of a range of a view may be given, as far as the drivers know it
 * without waiting.
 */
import { guestOffset, hostOffset } from '../../src/base/units.ts';
import type { Mapping } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import type { Translation } from '../../src/translation/entry-writer.ts';
import { READ, WRITE, ZERO } from '../../src/translation/table-layout.ts';

export interface PageWalk {
  readonly root: Node;
  /** Guests may write the view: only then is WRITE given. */
  readonly writable: boolean;
  readonly pageBytes: number;
  readonly firstPage: number;
  readonly pages: number;
  /** COPY where a write copies the page and its driver takes what was read along; else 0. */
  readonly copies: number;
  /** The table's number for the host file below a node; null when it has none (no descriptor, too many files). */
  readonly fileOf: (file: Node) => number | null;
}

interface Run {
  readonly lengthBytes: number;
  /** What a page that lies wholly in the run may be given, for the run's first byte; null: it faults. */
  readonly translation: Translation | null;
}

/**
 * The translations of the pages, in runs. Synchronous, so that what it says is still so when it is stored in the same
 * turn of the event loop: where a driver would have to read metadata first, the pages from there on fault.
 *
 * A page is given a translation only when one run covers it up to the end of the view: pages that lie in two places, and
 * the last page of a shorter backing file, fault.
 */
export const walkPages = (walk: PageWalk): Translation[] => {
  const { root, pageBytes, firstPage, pages } = walk;
  const found: Translation[] = [];
  const end = Math.min(root.lengthBytes, (firstPage + pages) * pageBytes);
  /** Pages before it are in `found`. */
  let next = firstPage;
  for (let at = firstPage * pageBytes; at < end; ) {
    const mapped = runAt(walk, root, at, end - at, walk.writable);
    if (mapped === null) break;
    const run = tracked(root, at, mapped);
    const runEnd = at + run.lengthBytes;
    const first = Math.ceil(at / pageBytes);
    const last = runEnd === end ? Math.ceil(end / pageBytes) : Math.floor(runEnd / pageBytes);
    if (run.translation !== null && last > first) {
      if (first > next) found.push({ ...NOTHING, pages: first - next });
      const { permissions, file, hostOffset } = run.translation;
      const inRun = first * pageBytes - at;
      found.push({ permissions, file, hostOffset: hostOffset + inRun, pages: last - first });
      next = last;
    }
    at = runEnd;
  }
  if (next < firstPage + pages) found.push({ ...NOTHING, pages: firstPage + pages - next });
  return found;
};

/** The first write to what is clean in a dirty bitmap has to fault: no WRITE before all of it is dirty. */
const tracked = (root: Node, at: number, run: Run): Run => {
  const { translation } = run;
  if (translation === null || (translation.permissions & WRITE) === 0) return run;
  const { dirtyBitmaps } = root;
  if (!dirtyBitmaps.isRecording) return run;
  const { lengthBytes, isDirty } = dirtyBitmaps.runAt(at, run.lengthBytes);
  const permissions = isDirty ? translation.permissions : translation.permissions & ~WRITE;
  return { lengthBytes, translation: { ...translation, permissions } };
};

const NOTHING: Translation = { permissions: 0, file: 0, hostOffset: 0 };

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
      const isWorkers = writable && m.inPlace && mayWrite(m.file, m.hostOffset + m.lengthBytes);
      const copies = node === walk.root && m.inPlace ? 0 : walk.copies;
      const permissions = isWorkers ? READ | WRITE : READ | copies;
      const translation = file === null ? null : { permissions, file, hostOffset: m.hostOffset };
      return { lengthBytes: m.lengthBytes, translation };
    }
    case 'unallocated': {
      const below = node.backing;
      if (below === null || at >= below.lengthBytes) {
        return { lengthBytes: m.lengthBytes, translation: ZEROES };
      }
      const inside = Math.min(m.lengthBytes, below.lengthBytes - at);
      // What is read there has to be kept: the engine reads it.
      if (node.copyOnRead !== null) return { lengthBytes: inside, translation: null };
      return runAt(walk, below, at, inside, false);
    }
  }
};

const mayWrite = ({ driver }: Node, end: number): boolean =>
  driver.hostFd !== undefined && driver.lend?.(hostOffset(end)) !== false;

const ZEROES: Translation = { permissions: READ | ZERO, file: 0, hostOffset: 0 };
