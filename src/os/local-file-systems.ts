/** File systems that live on this machine: what is cached of them is had in microseconds. */
import { QuickPace } from '../base/quick-pace.ts';
import { timesWaited } from './process.ts';

/** Types of statfs(2). */
const TMPFS = 0x01021994;
/** And: ext2 to ext4, XFS, Btrfs, F2FS, overlayfs. */
const LOCAL_FILE_SYSTEMS = new Set([0xef53, 0x58465342, 0x9123683e, TMPFS, 0xf2f52010, 0x794c7630]);

/** `type`: of statfs(2). */
export const isLocalFileSystem = (type: number): boolean => LOCAL_FILE_SYSTEMS.has(type >>> 0);

/** All of its files are in memory. */
export const isMemoryFileSystem = (type: number): boolean => type >>> 0 === TMPFS;

/** Of calls that look at many files of such file systems: stat, open, access, close. A busy machine is no slow disk: short rests. */
export const looks = new QuickPace({ firstRestMs: 10, lastRestMs: 1000, timesWaited });
