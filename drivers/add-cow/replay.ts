/**
 * Takes up what a killed engine has answered and no checkpoint has brought to the file: bits, whose clusters it had
 * written to the image file before. Only to an image that is as it was then, but for bytes of the header that were owed.
 */
import type { OpenRequest } from '../../src/block/driver.ts';
import { isPutBack, takeUpOwed } from '../../src/block/header-changes.ts';
import { type BitsSet, decodeRecord, type JournalRecord, stampOf } from './journal-records.ts';
import type { ImageState } from './state.ts';

/**
 * Before the header is read, of an image that is opened for writing: what was owed is put back. Where another program has written there
 * it stays, and nothing is taken up then. Errors: EIO, ENOSPC.
 */
export const takeUpOwedHeader = async ({
  journal,
  file,
}: Pick<OpenRequest, 'journal' | 'file'>): Promise<void> => {
  // A later one was owed when those before it were put back.
  const last = (journal?.leftover ?? []).map(decodeRecord).filter(isOwed).at(-1);
  if (last !== undefined) await takeUpOwed(file, last.owed);
};

const isOwed = (record: JournalRecord | null): record is JournalRecord & { kind: 'header' } =>
  record?.kind === 'header';

const isBits = (record: JournalRecord | null): record is BitsSet => record?.kind === 'bits';

/** True when something was applied. Errors: EIO for bits that cannot be read. */
export const replayJournal = async (state: ImageState): Promise<boolean> => {
  const { journal, log, path } = state.request;
  const leftover = journal?.leftover ?? [];
  if (leftover.length === 0) return false;
  const stamp = stampOf(state.header.fields);
  const decoded = leftover.map(decodeRecord);
  const records = decoded.filter(isBits);
  const owed = decoded.filter(isOwed);
  const putBack = await Promise.all(owed.map((record) => isPutBack(state.file, record.owed)));
  const isSame =
    records.length + owed.length === leftover.length &&
    putBack.every((is) => is) &&
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
