/**
 * The mark of the restart journal: the upper 32 of the autoclear features in a header of version 3 (specification: "Autoclear feature
 * bits"). Bit 63 says that a restart journal of vdiskfs belongs to the image as it is; the 31 bits below it are that journal's number,
 * since the journals of another user, or another image that was copied over this one, are not in our hands.
 *
 * Whoever opens an image for writing clears the autoclear bits that he does not know, as the format demands. So the mark tells who takes over
 * after another lock: as long as it is there, no other program has had the image open for writing since it was set. It is written
 * before the first record (prepare.ts), stays when engines die, and goes when the image is closed and the journal with it. It need not be
 * synced: a power cut takes away the journal, too. A mark without a journal says nothing.
 *
 * What QEMU makes writable only after it has opened it does not lose the mark: an image that an overlay is committed to. That is what
 * foreign-use.ts is for in version 3. Version 2 has no feature bits, and nothing but that.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { OpenRequest } from '../../src/block/driver.ts';
import type { RestartJournal } from '../../src/block/restart-journal.ts';
import { HEADER, HEADER_V3_BYTES } from './layout.ts';

const MARKED = 0x8000_0000;

/** The upper 32 autoclear bits of an image with this journal. */
export const markOf = (journal: RestartJournal | null): number =>
  journal === null ? 0 : (MARKED | journal.mark) >>> 0;

/** Whether the upper 32 autoclear bits are a journal's mark, of whichever. */
export const isMark = (autoclearHigh: number): boolean => (autoclearHigh & MARKED) !== 0;

/**
 * Before anything of a journal is taken up: forgets all of it, and tells, where the image did not stay locked and has lost the mark.
 * Errors: EIO.
 */
export const dropForeignJournal = async (request: OpenRequest): Promise<void> => {
  const { journal, file } = request;
  if (journal === null || journal.isContinued || journal.leftover.length === 0) return;
  const header = new Uint8Array(HEADER_V3_BYTES);
  await file.readClipped(guestOffset(0), header);
  const view = viewOf(header);
  if (view.getUint32(HEADER.version) < 3) return;
  if (view.getUint32(HEADER.autoclear) === markOf(journal)) return;
  forgetLeftover(request, 'it was opened for writing');
};

/**
 * Before there are new records: whoever takes those up must not meet the lost ones again. `trace`: of the other program, as the log has it.
 * Errors: those of the host.
 */
export const forgetLeftover = (
  { journal, log, path }: Pick<OpenRequest, 'journal' | 'log' | 'path'>,
  trace: string,
): void => {
  log.error(
    path,
    `another program has changed this image since vdiskfs was killed (${trace}): ` +
      `${journal?.leftover.length ?? 0} changes that were answered then and never synced are lost`,
  );
  journal?.begin();
  journal?.end();
};
