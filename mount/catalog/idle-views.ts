/** Which views nobody uses, and are to be closed: each keeps descriptors and tables, and the next request opens it again. */
import type { View } from '../../src/block/view.ts';
import type { CatalogEntry } from './entry-table.ts';
import { canBeToldAgain } from './remote-files.ts';

/** A view without handles and requests is closed after this long, in ms. */
const IDLE_CLOSE_MS = 5000;

/** More idle views than this are closed however young. */
const MAX_IDLE_OPEN = 64;

/** No request runs on it, and nothing holds it open. */
export const isIdle = (view: View): boolean => view.active === 0 && !view.isPinned;

/** Those of the entries whose views are to be closed now. `nowMs`: `performance.now()`. */
export const idleTooLong = (
  entries: readonly CatalogEntry[],
  nowMs: number,
): readonly CatalogEntry[] => {
  const idle = entries
    .filter((entry) => entry.isOpen && entry.handles === 0 && isIdle(entry.view))
    .filter((entry) => canBeToldAgain(entry.view.root))
    .sort((a, b) => a.idleSinceMs - b.idleSinceMs);
  const surplus = idle.length - MAX_IDLE_OPEN;
  return idle.filter(
    (entry, index) => index < surplus || nowMs - entry.idleSinceMs >= IDLE_CLOSE_MS,
  );
};
