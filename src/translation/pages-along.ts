/**
 * Pages that come along with the writes that copy them. Both sides.
 *
 * A write of a part of a page that lies where it is not written in place (in a layer below, in a cluster that a snapshot shares) makes the
 * control plane copy the page. Its thread is what such writes wait for, and reading the page is a quarter of its work. So the worker
 * that hands the write over reads the page, into the same slot, while the control plane is still busy with the writes before.
 *
 * The worker reads it as it reads for a guest: inside of the hazard record, by an entry that is in force. It says by which entry, and in
 * which opening of the view. The control plane uses the page only while both are so still (`TranslationTable.isInForce`). That is enough:
 * a place whose content a write copies is not written while some page lies there, in one opening of the view (jobs that write what lies below
 * change the view's chain in a drained section, which closes the view here, and write only below what guests see). Where an entry has COPY
 * and the write turns out to be one in place (not prepared, or not journaled yet, when the entry was made), the page is of no use and not
 * used. The look and the copy are one turn of the event loop.
 *
 *     slot                                                                  (slots.ts)
 *     0    bytes of the page, 0 for none   4 word of the view   8, 12 the two words of the entry
 *     PAGE_AT …  the page, behind the longest payload that may have one
 */
import { HEADER_AREA_BYTES } from './slots.ts';

/** Larger pages are left to the control plane, which does not read them at once either. */
export const MAX_PAGE_ALONG_BYTES = 128 << 10;
/** Where in its slot the page lies. */
export const PAGE_AT = HEADER_AREA_BYTES + MAX_PAGE_ALONG_BYTES;
/** Slots of fewer bytes have no room for pages. */
export const SLOT_BYTES_WITH_PAGE = PAGE_AT + MAX_PAGE_ALONG_BYTES;

/** What a worker says of the page: by which words it was found. */
export interface PageAlong {
  readonly lengthBytes: number;
  readonly state: number;
  readonly word0: number;
  readonly word1: number;
}

/** The worker's side: says it of the slot that begins at `slotAt`, before that is handed over. */
export const writePageAlong = (fields: DataView, slotAt: number, page: PageAlong): void => {
  fields.setUint32(slotAt, page.lengthBytes, true);
  fields.setInt32(slotAt + 4, page.state, true);
  fields.setInt32(slotAt + 8, page.word0, true);
  fields.setInt32(slotAt + 12, page.word1, true);
};

/** No page has come along. */
export const writeNoPage = (fields: DataView, slotAt: number): void =>
  fields.setUint32(slotAt, 0, true);

/** The control plane's side, of a slot that it was lent; null: none has come along. */
export const readPageAlong = (slot: DataView): PageAlong | null => {
  const lengthBytes = slot.getUint32(0, true);
  if (lengthBytes === 0) return null;
  return {
    lengthBytes,
    state: slot.getInt32(4, true),
    word0: slot.getInt32(8, true),
    word1: slot.getInt32(12, true),
  };
};
