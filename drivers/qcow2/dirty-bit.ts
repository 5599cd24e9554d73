/**
 * The dirty bit of version 3 (specification: "Incompatible features", bit 0): whoever opens the image for writing checks
 * refcounts and COPIED flags first.
 */
import type { HeaderChanges } from '../../src/block/header-changes.ts';
import { HEADER, INCOMPATIBLE } from './layout.ts';

/** The low word of the incompatible features: no other bit changes. */
const WORD_AT = HEADER.incompatible + 4;

/** Sets or clears it, durably, after everything that was written before. Errors: those of the file. */
export const writeDirtyBit = async (changes: HeaderChanges, isDirty: boolean): Promise<void> => {
  await changes.file.flush();
  await changes.edit(WORD_AT, 4, (view) => {
    const others = view.getUint32(0) & ~INCOMPATIBLE.dirty;
    view.setUint32(0, (isDirty ? others | INCOMPATIBLE.dirty : others) >>> 0);
  });
};
