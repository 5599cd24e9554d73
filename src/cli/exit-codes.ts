/** Every exit status of `vdiskfs`. An interface: scripts test them, so they change only with a note in the changelog. */
export const EXIT = {
  success: 0,
  failure: 1,
  /** Unknown option or command, missing argument, a value that does not parse. */
  usage: 2,
} as const;

/** `vdiskfs check`: those of `qemu-img check`. */
export const CHECK_EXIT = {
  clean: 0,
  /** The check could not be done: the image does not open, a table cannot be read, bad usage. */
  failed: 1,
  corrupt: 2,
  leaksOnly: 3,
  /** The image's format has no check. */
  unsupported: 63,
} as const;

/** `vdiskfs compare`: those of `qemu-img compare`. */
export const COMPARE_EXIT = {
  identical: 0,
  different: 1,
  /** An image does not open, bad usage. */
  openFailed: 2,
  /** The mapping metadata of an image cannot be read. */
  mapFailed: 3,
  /** Content cannot be read. */
  readFailed: 4,
} as const;
