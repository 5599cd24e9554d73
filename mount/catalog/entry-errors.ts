/** Why an image of a mount cannot be used just now. */
import { BlockError } from '../../src/base/block-error.ts';

/** The kernel looks the name up again at ESTALE, and finds the file that is there now. */
export const staleFile = (path: string): BlockError =>
  new BlockError({
    kind: 'io',
    errno: 'ESTALE',
    message: 'the file is gone, or was changed by another program',
    path,
    op: 'open',
  });

export const usedElsewhere = (path: string): BlockError =>
  new BlockError({ kind: 'busy', message: 'another host may use it', path, op: 'open' });

export const backingIsWritten = (path: string, backingName: string): BlockError =>
  new BlockError({
    kind: 'busy',
    message: `its backing image '${backingName}' is open for writing`,
    path,
    op: 'open',
  });

/** `readOnlyReason`: why it may not be written now; null when it may be, and might not before. */
export const writabilityChanged = (name: string, readOnlyReason: string | null): BlockError => {
  const change =
    readOnlyReason === null ? 'may be written now' : `may not be written now: ${readOnlyReason}`;
  return new BlockError({
    kind: 'busy',
    op: 'activate',
    message: `the view ${name} ${change}`,
    hint: 'close it first',
  });
};
