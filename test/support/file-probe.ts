/**
 * A program of its own for tests: system calls on one file that Node lacks. A call that never returns hangs this process,
 * which its caller kills, and not the test.
 *
 *     file-probe extents FILE                 [[start, end), …] of data, by SEEK_DATA and SEEK_HOLE, as JSON
 *     file-probe getxattr FILE NAME           its value
 *     file-probe listxattr FILE               names, one a line
 *     file-probe mmap-read FILE OFFSET LENGTH a shared mapping's bytes, hexadecimal
 *     file-probe mmap-write FILE OFFSET HEX   writes through a shared mapping and msyncs it
 */
import { closeSync, fstatSync, openSync } from 'node:fs';
import { argv, stdout } from 'node:process';
import koffi from 'koffi';
import { SEEK, seekDataOrHole } from '../../src/os/file-ranges.ts';

const libc = koffi.load('libc.so.6');
const getxattr = libc.func(
  'int64_t getxattr(str path, str name, _Out_ uint8_t *value, size_t size)',
);
const listxattr = libc.func('int64_t listxattr(str path, _Out_ uint8_t *list, size_t size)');
const mmap = libc.func(
  'void *mmap(void *at, size_t length, int prot, int flags, int fd, int64_t offset)',
);
const msync = libc.func('int msync(void *at, size_t length, int flags)');
const munmap = libc.func('int munmap(void *at, size_t length)');

const PROT_READ_WRITE = 3;
const MAP_SHARED = 1;
const MS_SYNC = 4;
const XATTR_BYTES = 65_536;

const check = (op: string, result: number | bigint): number => {
  if (Number(result) < 0) throw new Error(`${op}: errno ${koffi.errno()}`);
  return Number(result);
};

const withFile = <T>(path: string, flags: string, use: (fd: number) => T): T => {
  const fd = openSync(path, flags);
  try {
    return use(fd);
  } finally {
    closeSync(fd);
  }
};

const extents = (path: string): [number, number][] =>
  withFile(path, 'r', (fd) => {
    const found: [number, number][] = [];
    for (let at = seekDataOrHole(fd, 0, SEEK.DATA); at !== null; ) {
      const end = seekDataOrHole(fd, at, SEEK.HOLE) ?? at;
      found.push([at, end]);
      at = seekDataOrHole(fd, end, SEEK.DATA);
    }
    return found;
  });

/** Maps the whole file, so that any offset is in it. */
const withMapping = <T>(path: string, use: (bytes: Uint8Array, sync: () => void) => T): T =>
  withFile(path, 'r+', (fd) => {
    const length = fstatSync(fd).size;
    const at = mmap(null, length, PROT_READ_WRITE, MAP_SHARED, fd, 0);
    if (at === null || koffi.address(at) === 0xffff_ffff_ffff_ffffn) {
      throw new Error(`mmap: errno ${koffi.errno()}`);
    }
    try {
      const sync = (): void => void check('msync', msync(at, length, MS_SYNC));
      return use(new Uint8Array(koffi.view(at, length)), sync);
    } finally {
      munmap(at, length);
    }
  });

const xattr = (path: string, name: string): string => {
  const value = Buffer.alloc(XATTR_BYTES);
  return value.toString('utf8', 0, check('getxattr', getxattr(path, name, value, value.length)));
};

const xattrNames = (path: string): string => {
  const list = Buffer.alloc(XATTR_BYTES);
  const length = check('listxattr', listxattr(path, list, list.length));
  return list.toString('utf8', 0, length).replaceAll('\0', '\n');
};

const [, , command, path = '', first = '', second = ''] = argv;
switch (command) {
  case 'extents':
    stdout.write(JSON.stringify(extents(path)));
    break;
  case 'getxattr':
    stdout.write(xattr(path, first));
    break;
  case 'listxattr':
    stdout.write(xattrNames(path));
    break;
  case 'mmap-read':
    withMapping(path, (bytes) => {
      const part = Buffer.from(bytes.subarray(Number(first), Number(first) + Number(second)));
      stdout.write(part.toString('hex'));
    });
    break;
  case 'mmap-write':
    withMapping(path, (bytes, sync) => {
      bytes.set(Buffer.from(second, 'hex'), Number(first));
      sync();
    });
    break;
  default:
    throw new Error(`unknown command ${command}`);
}
