/** What a job does when a read or write of its own fails: QEMU's policies. */

/** QEMU's `BlockdevOnError`. */
export type ErrorPolicy = 'report' | 'ignore' | 'enospc' | 'stop' | 'auto';

export type ErrorAction = 'report' | 'ignore' | 'stop';

/** What comes of one failure. `isFull`: there was no space. */
export const actionOf = (policy: ErrorPolicy, isFull: boolean): ErrorAction => {
  switch (policy) {
    case 'report':
    case 'ignore':
    case 'stop':
      return policy;
    case 'enospc':
    case 'auto':
      return isFull ? 'stop' : 'report';
  }
};
