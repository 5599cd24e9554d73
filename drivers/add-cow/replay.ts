/**
 * Takes up what a killed engine has answered and no checkpoint has brought to the file: bits, whose clusters it had
 * written to the image file before. Only to an image that is as it was then.
 */
import { decodeRecord, stampOf } from './journal-records.ts';
import type { ImageState } from './state.ts';

/** True when something was applied. Errors: EIO for bits that cannot be read. */
export const replayJournal = async (state: ImageState): Promise<boolean> => {
  const { journal, log, path } = state.request;
  const leftover = journal?.leftover ?? [];
  if (leftover.length === 0) return false;
  const stamp = stampOf(state.header.fields);
  const records = leftover.map(decodeRecord).filter((r) => r !== null);
  const isSame =
    records.length === leftover.length &&
    records.every(
      (r) =>
        r.stamp === stamp &&
        r.imageBytes === state.lengthBytes &&
        r.first >= 0 &&
        r.clusters > 0 &&
        r.first + r.clusters <= state.clusters,
    );
  if (!isSame) {
    log.error(
      path,
      'another program has changed this image since vdiskfs was killed: ' +
        `${leftover.length} changes that were answered then and never synced are lost`,
    );
    // Before there are new ones: whoever takes those up must not meet the lost ones again.
    journal?.begin();
    journal?.end();
    return false;
  }
  for (const { first, clusters } of records) await state.bitmap.change(first, clusters, true);
  log.info(path, `${records.length} changes taken up from the restart journal`);
  return true;
};
