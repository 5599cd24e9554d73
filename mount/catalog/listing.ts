/** Lists the files that the sources of a mount offer, before anybody looks into them. */
import { opendir } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { toBlockError } from '../../src/base/block-error.ts';
import type { OpenGate } from '../../src/block/open-gate.ts';
import { realPathOutside } from '../../src/block/real-path.ts';
import { canonicalUrl, fileNameOfUrl, isUrl } from '../../src/block/remote-url.ts';
import {
  type HostFile,
  type LocalFileSystem,
  localFileSystemOf,
  statHostFile,
} from './host-file.ts';
import type { CandidateStandIn } from './stand-ins.ts';

/** More files than that in one mount are not listed: the listing must not fill the memory. */
export const MAX_CANDIDATES = 65_536;

/** Files that are looked at in one go. Twice the thread pool keeps it busy and the queue short for guests. */
export const PARALLEL_LOOKS = 16;

/** Of a directory, on another thread. */
const ITEMS_AT_ONCE = 1024;

/** A source as the command line gave it; `path` real and absolute, or a URL. */
export interface Source {
  /** `NAME` of `NAME=SOURCE`, else null. */
  readonly name: string | null;
  readonly path: string;
  /** The last component of the path as given, which may be a symlink's. */
  readonly fileName: string;
  readonly isDirectory: boolean;
}

export interface Candidate {
  readonly host: HostFile;
  readonly fileName: string;
  /** Named on the command line itself, not found in a directory. */
  readonly named: boolean;
  readonly declaredName: string | null;
  /** `host` stands in for another file, whose view it has. */
  readonly standIn?: CandidateStandIn;
}

export interface IgnoredFile {
  readonly path: string;
  readonly reason: string;
}

export interface Listing {
  readonly candidates: readonly Candidate[];
  /** Without views, because others stand in for them; but what lies below them is theirs. */
  readonly originals?: readonly Candidate[];
  readonly ignored: readonly IgnoredFile[];
}

/** Resolves a source of the command line. Errors: ENOENT and those of the host. */
export const resolveSource = async (
  source: { readonly name: string | null; readonly path: string },
  mountpoint: string | null,
): Promise<Source> => {
  const { name } = source;
  if (isUrl(source.path)) {
    const path = canonicalUrl(source.path);
    return { name, path, fileName: fileNameOfUrl(path), isDirectory: false };
  }
  const path = await realPathOutside(source.path, mountpoint);
  const host = await statHostFile(path);
  const fileName = basename(resolve(source.path));
  return { name, path, fileName, isDirectory: host.kind === 'directory' };
};

/**
 * Every candidate of every source, in the order of the sources and then of names. A source directory that cannot be
 * read throws: its images have not gone.
 */
export const listSources = async (
  sources: readonly Source[],
  gate: OpenGate,
  mountpoint: string | null,
): Promise<Listing> => {
  const candidates: Candidate[] = [];
  const ignored: IgnoredFile[] = [];
  for (const source of sources) {
    const found = source.isDirectory
      ? await lookInto(source.path, gate, mountpoint)
      : [await lookAtNamed(source)];
    for (const look of found) {
      if (look === null) continue;
      if ('reason' in look) ignored.push(look);
      else if (candidates.length < MAX_CANDIDATES) candidates.push(look);
      else ignored.push({ path: look.host.path, reason: `more than ${MAX_CANDIDATES} files` });
    }
  }
  return { candidates, ignored };
};

const lookInto = async (
  directory: string,
  gate: OpenGate,
  mountpoint: string | null,
): Promise<(Candidate | IgnoredFile | null)[]> => {
  const items = await itemsOf(directory);
  const local = await localFileSystemOf(directory);
  return mapBounded(items, PARALLEL_LOOKS, (item) => lookAt(item, { gate, mountpoint, local }));
};

/** So long at most, in ms, items are gone through before requests of guests have their turn. */
const TURN_MS = 5;

/**
 * Like `Promise.all` over `map`, with at most `limit` running. What is done at once does not keep the event loop from anything
 * else.
 */
export const mapBounded = async <T, R>(
  items: readonly T[],
  limit: number,
  map: (item: T) => Promise<R>,
): Promise<R[]> => {
  const results: R[] = new Array(items.length);
  const iterator = items.entries();
  let turnBegunMs = performance.now();
  const run = async (): Promise<void> => {
    for (const [index, item] of iterator) {
      if (performance.now() - turnBegunMs > TURN_MS) {
        await nextTurn();
        turnBegunMs = performance.now();
      }
      results[index] = await map(item);
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, run));
  return results;
};

interface DirectoryItem {
  readonly path: string;
  readonly isSymlink: boolean;
}

/** Top level only, no dot files; directories are left out without being touched (one may be our mountpoint). */
const itemsOf = async (directory: string): Promise<DirectoryItem[]> => {
  const handle = await opendir(directory, { bufferSize: ITEMS_AT_ONCE }).catch((error: unknown) => {
    throw toBlockError(error, { op: 'open', path: directory });
  });
  const items: DirectoryItem[] = [];
  for await (const item of handle) {
    if (item.name.startsWith('.') || item.isDirectory()) continue;
    items.push({ path: join(directory, item.name), isSymlink: item.isSymbolicLink() });
    if (items.length >= MAX_CANDIDATES) break;
  }
  return items.sort((a, b) => (a.path < b.path ? -1 : 1));
};

const lookAt = async (
  { path, isSymlink }: DirectoryItem,
  {
    gate,
    mountpoint,
    local,
  }: {
    readonly gate: OpenGate;
    readonly mountpoint: string | null;
    readonly local: LocalFileSystem | null;
  },
): Promise<Candidate | IgnoredFile | null> => {
  const ignore = (reason: string): IgnoredFile => ({ path, reason });
  // Node gives U+FFFD for bytes that are not UTF-8, and then the path leads nowhere.
  if (path.includes('\uFFFD')) return ignore('its name is not UTF-8');
  try {
    // The directory's own path is real, so one that is no symlink is real as it stands.
    const real = isSymlink ? await realPathOutside(path, mountpoint) : path;
    if (!gate.allows(real)) {
      return ignore('a symbolic link that leads outside the allowed directories');
    }
    const host = await statHostFile(real, isSymlink ? null : local);
    if (host.kind === 'directory') return null;
    if (host.kind === 'other') return ignore('is neither a file nor a block device');
    return { host, fileName: basename(path), named: false, declaredName: null };
  } catch (error) {
    const failure = toBlockError(error);
    // Removed between the listing and the look.
    return failure.errno === 'ENOENT' ? null : ignore(failure.message);
  }
};

/** A named file that is away for the moment has no view; it gets one again when it is back. */
const lookAtNamed = async (source: Source): Promise<Candidate | IgnoredFile> => {
  try {
    const host = await statHostFile(source.path);
    if (host.kind === 'other' || host.kind === 'directory') {
      return { path: source.path, reason: 'is neither a file nor a block device' };
    }
    const { fileName } = source;
    return { host, fileName, named: true, declaredName: source.name };
  } catch (error) {
    return { path: source.path, reason: toBlockError(error).message };
  }
};
