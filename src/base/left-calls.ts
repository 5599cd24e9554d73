/**
 * Calls to the host that nobody waits for any more, and that have not returned: of a mount that hangs, say. The process ends only
 * when they do, unless it is made to.
 */
let isLeft = false;

/** There is one from now on. */
export const leaveCall = (): void => {
  isLeft = true;
};

export const isCallLeft = (): boolean => isLeft;
