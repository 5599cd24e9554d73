/**
 * The dirty bit of version 3 (specification: "Incompatible features", bit 0): whoever opens the image for writing checks
 * refcounts and COPIED flags first.
 */
import { viewOf } from '../../src/base/byte-order.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { HEADER, INCOMPATIBLE } from './layout.ts';

/** The low word of the incompatible features: no other bit changes. */
const WORD_AT = HEADER.incompatible + 4;

/** Sets or clears it, durably, after everything that was written before. Errors: those of the file. */
export const writeDirtyBit = async (file: Node, isDirty: boolean): Promise<void> => {
  const word = new Uint8Array(4);
  await file.readClipped(guestOffset(WORD_AT), word);
  const view = viewOf(word);
  const others = view.getUint32(0) & ~INCOMPATIBLE.dirty;
  view.setUint32(0, (isDirty ? others | INCOMPATIBLE.dirty : others) >>> 0);
  await file.flush();
  await file.write(guestOffset(WORD_AT), word);
  await file.flush();
};
