/**
 * realpath(3) for a process that serves a mount: it never touches the mountpoint or what lies below, because the
 * answer would have to come from this very process.
 */
import { readlink } from 'node:fs/promises';
import { dirname, isAbsolute, join, sep } from 'node:path';
import { cwd } from 'node:process';
import { BlockError, toBlockError } from '../base/block-error.ts';

/** As the kernel's own limit on one lookup. */
const MAX_SYMLINKS = 40;

/** Whether `path` is `directory` or lies below it; both absolute and normal. */
export const isWithin = (path: string, directory: string): boolean =>
  path === directory || path.startsWith(directory === sep ? directory : directory + sep);

/**
 * The absolute path without symlinks. `excluded`: the real path of our own mountpoint, null for none. Errors: EACCES
 * (kind not-permitted) when the way leads into `excluded`; ENOENT, ELOOP and those of the host.
 */
export const realPathOutside = async (path: string, excluded: string | null): Promise<string> => {
  // Not path.resolve: `link/..` is the parent of what the link names.
  const pending = componentsOf(isAbsolute(path) ? path : `${cwd()}${sep}${path}`);
  let current: string = sep;
  let links = 0;
  for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
    if (name === '..') {
      current = dirname(current);
      continue;
    }
    const next = join(current, name);
    if (excluded !== null && isWithin(next, excluded)) throw insideMount(path);
    const target = await linkTarget(next, path);
    if (target === null) {
      current = next;
      continue;
    }
    if (++links > MAX_SYMLINKS) {
      const message = `follows more than ${MAX_SYMLINKS} symbolic links`;
      throw new BlockError({ kind: 'not-permitted', errno: 'ELOOP', message, path, op: 'open' });
    }
    if (isAbsolute(target)) current = sep;
    pending.push(...componentsOf(target));
  }
  return current;
};

/** Names of a path, last first: a stack with the next one on top. */
const componentsOf = (path: string): string[] =>
  path
    .split(sep)
    .filter((name) => name !== '' && name !== '.')
    .reverse();

/** Null for what is no symbolic link. */
const linkTarget = async (path: string, asked: string): Promise<string | null> => {
  try {
    return await readlink(path);
  } catch (error) {
    const failure = toBlockError(error, { op: 'open', path: asked });
    if (failure.errno === 'EINVAL') return null;
    throw failure;
  }
};

const insideMount = (path: string): BlockError =>
  new BlockError({
    kind: 'not-permitted',
    errno: 'EACCES',
    message: 'leads into the mount that would have to open it',
    path,
    op: 'open',
  });
