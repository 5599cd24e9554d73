/** A restart journal that cannot be written now and then, as in a full runtime directory. */
import { BlockError } from '../../src/base/block-error.ts';
import type { RestartJournal } from '../../src/block/restart-journal.ts';

/** `isFull` is asked for each record. */
export const fullJournal = (made: RestartJournal, isFull: () => boolean): RestartJournal => ({
  get leftover() {
    return made.leftover;
  },
  mark: made.mark,
  isContinued: made.isContinued,
  get pendingBytes() {
    return made.pendingBytes;
  },
  append: (record) => {
    if (isFull()) throw new BlockError({ kind: 'no-space', message: 'of this test' });
    made.append(record);
  },
  begin: () => made.begin(),
  end: () => made.end(),
  close: () => made.close(),
});
