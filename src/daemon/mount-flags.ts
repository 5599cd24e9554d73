/** The words of mount(8) that become flags of the mount: the one list of them. */
import { MS } from '../os/mount-bits.ts';

interface FlagWord {
  readonly set: number;
  readonly clear: number;
}

const ATIME = MS.NOATIME | MS.RELATIME | MS.STRICTATIME;

/**
 * `ro` and `rw` are not here: they are the option --read-only. Nor are `suid` and `dev`: a view is never set-id and never a
 * device, so every mount is nosuid and nodev.
 */
const FLAG_WORDS: Readonly<Record<string, FlagWord>> = {
  nosuid: { set: MS.NOSUID, clear: 0 },
  nodev: { set: MS.NODEV, clear: 0 },
  noexec: { set: MS.NOEXEC, clear: 0 },
  exec: { set: 0, clear: MS.NOEXEC },
  sync: { set: MS.SYNCHRONOUS, clear: 0 },
  async: { set: 0, clear: MS.SYNCHRONOUS },
  dirsync: { set: MS.DIRSYNC, clear: 0 },
  noatime: { set: MS.NOATIME, clear: ATIME },
  atime: { set: 0, clear: MS.NOATIME },
  nodiratime: { set: MS.NODIRATIME, clear: 0 },
  diratime: { set: 0, clear: MS.NODIRATIME },
  relatime: { set: MS.RELATIME, clear: ATIME },
  norelatime: { set: 0, clear: MS.RELATIME },
  strictatime: { set: MS.STRICTATIME, clear: ATIME },
  nostrictatime: { set: 0, clear: MS.STRICTATIME },
  lazytime: { set: MS.LAZYTIME, clear: 0 },
  nolazytime: { set: 0, clear: MS.LAZYTIME },
};

/** How fusermount3 spells the flags. */
const WORD_OF_FLAG: readonly (readonly [number, string])[] = [
  [MS.NOEXEC, 'noexec'],
  [MS.SYNCHRONOUS, 'sync'],
  [MS.DIRSYNC, 'dirsync'],
  [MS.NOATIME, 'noatime'],
  [MS.NODIRATIME, 'nodiratime'],
  [MS.RELATIME, 'relatime'],
  [MS.STRICTATIME, 'strictatime'],
  [MS.LAZYTIME, 'lazytime'],
];

/** Of every mount. */
const ALWAYS = MS.NOSUID | MS.NODEV;

export const isMountFlag = (word: string): boolean => Object.hasOwn(FLAG_WORDS, word);

/** Flags of mount(2); a later word wins over an earlier one. Words that are no flags count for nothing. */
export const flagsOf = (words: readonly string[]): number =>
  words.reduce((flags, word) => {
    const { set, clear } = FLAG_WORDS[word] ?? { set: 0, clear: 0 };
    return (flags & ~clear) | set;
  }, ALWAYS);

/** The same for fusermount3, beside nosuid and nodev. */
export const wordsOfFlags = (flags: number): readonly string[] =>
  WORD_OF_FLAG.filter(([flag]) => (flags & flag) !== 0).map(([, word]) => word);
