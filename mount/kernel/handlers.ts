/**
 * Which handler answers which opcode. What is not here is answered ENOSYS, which the kernel remembers for the whole
 * connection: right for what no view can do (locks of our own, BMAP, POLL, STATX), wrong for anything that one image
 * cannot and another can.
 */
import { OPCODE } from './abi.ts';
import type { Handler } from './context.ts';
import { copyFileRange, fallocate, fsync, lseek, read, write } from './data-requests.ts';
import {
  getattr,
  getxattr,
  listxattr,
  lookup,
  open,
  opendir,
  readdir,
  readdirplus,
  refuseChange,
  refuseIoctl,
  release,
  setattr,
  setxattr,
  statfs,
} from './name-requests.ts';

const succeed: Handler = () => 0;

export const HANDLERS: ReadonlyMap<number, Handler> = new Map<number, Handler>([
  [OPCODE.READ, read],
  [OPCODE.WRITE, write],
  [OPCODE.LOOKUP, lookup],
  [OPCODE.GETATTR, getattr],
  [OPCODE.SETATTR, setattr],
  [OPCODE.OPEN, open],
  [OPCODE.RELEASE, release],
  // The kernel has written its dirty pages before it sends FLUSH: closing a file promises no more than that.
  [OPCODE.FLUSH, succeed],
  [OPCODE.FSYNC, fsync],
  [OPCODE.OPENDIR, opendir],
  [OPCODE.READDIR, readdir],
  [OPCODE.READDIRPLUS, readdirplus],
  [OPCODE.RELEASEDIR, succeed],
  [OPCODE.FSYNCDIR, succeed],
  [OPCODE.STATFS, statfs],
  [OPCODE.LSEEK, lseek],
  [OPCODE.FALLOCATE, fallocate],
  [OPCODE.COPY_FILE_RANGE, copyFileRange],
  [OPCODE.GETXATTR, getxattr],
  [OPCODE.LISTXATTR, listxattr],
  [OPCODE.SETXATTR, setxattr],
  [OPCODE.REMOVEXATTR, setxattr],
  [OPCODE.IOCTL, refuseIoctl],
  [OPCODE.DESTROY, succeed],
  ...[
    OPCODE.SYMLINK,
    OPCODE.MKNOD,
    OPCODE.MKDIR,
    OPCODE.UNLINK,
    OPCODE.RMDIR,
    OPCODE.RENAME,
    OPCODE.RENAME2,
    OPCODE.LINK,
    OPCODE.CREATE,
    OPCODE.TMPFILE,
  ].map((opcode): [number, Handler] => [opcode, refuseChange]),
]);
