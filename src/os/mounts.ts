/** Mounts: making them, the requests of /dev/fuse, and the attributes by which a mounted file system tells about itself. */
import { check, ioctlCall, libc } from './c-library.ts';

const mountCall = libc.func('int mount(str source, str target, str type, ulong flags, str data)');

/** mount(2). Needs CAP_SYS_ADMIN. Errors: those of the host, with the mountpoint as path. */
export const mountFileSystem = (options: {
  readonly source: string;
  readonly mountpoint: string;
  readonly type: string;
  readonly flags: number;
  readonly data: string;
}): void => {
  const { source, mountpoint, type, flags, data } = options;
  check('mount', Number(mountCall(source, mountpoint, type, flags, data)), mountpoint);
};

const FUSE_DEV_IOC_BACKING_OPEN = 0x4010e501;
const FUSE_DEV_IOC_BACKING_CLOSE = 0x4004e502;

/** Registers a file for passthrough; its id. Errors: EPERM without CAP_SYS_ADMIN, ELOOP for a stacked file system. */
export const openBacking = (fuse: number, file: number): number => {
  const map = new Uint8Array(16);
  new DataView(map.buffer).setInt32(0, file, true);
  const id = Number(ioctlCall(fuse, FUSE_DEV_IOC_BACKING_OPEN, map));
  check('passthrough', id);
  return id;
};

/** Handles that were opened with the id keep the file. */
export const closeBacking = (fuse: number, id: number): void => {
  const argument = new Uint8Array(4);
  new DataView(argument.buffer).setInt32(0, id, true);
  ioctlCall(fuse, FUSE_DEV_IOC_BACKING_CLOSE, argument);
};

const FUSE_DEV_IOC_CLONE = 0x8004e500;

/**
 * Makes `fresh`, just opened from /dev/fuse, another channel of a mount: a request that is read from it ends with an error
 * when it is closed, instead of waiting for an answer for ever.
 */
export const cloneFuseDevice = (fresh: number, fuse: number): void => {
  const argument = new Uint8Array(4);
  new DataView(argument.buffer).setUint32(0, fuse, true);
  check('clone /dev/fuse', Number(ioctlCall(fresh, FUSE_DEV_IOC_CLONE, argument)));
};

const getxattrCall = libc.func(
  'int64_t getxattr(str path, str name, _Out_ uint8_t *value, size_t size)',
);
const MAX_ATTRIBUTE_BYTES = 4096;

/** Memory that does not move: small typed arrays may lie in the heap until their buffer is asked for. */
const pinned = (bytes: number): Uint8Array => new Uint8Array(new ArrayBuffer(bytes));

/** The value of an extended attribute; null when there is none. On a thread of its own: a mount may be slow to answer. */
export const extendedAttribute = (path: string, name: string): Promise<string | null> =>
  new Promise((resolve) => {
    const value = pinned(MAX_ATTRIBUTE_BYTES);
    getxattrCall.async(path, name, value, value.length, (error: unknown, length: number) => {
      const found = error === null && length >= 0;
      resolve(found ? Buffer.from(value.subarray(0, Number(length))).toString('utf8') : null);
    });
  });
