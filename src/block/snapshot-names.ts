/** Which snapshot a person means, by the rules of `qemu-img`. Names need not be unique: the first of the image counts. */
import { BlockError } from '../base/block-error.ts';
import type { SnapshotDescription } from './image-description.ts';

type NamedSnapshot = Pick<SnapshotDescription, 'id' | 'name'>;

/** By id, else by name. Errors: ENOENT. */
export const snapshotToApply = <S extends NamedSnapshot>(
  snapshots: readonly S[],
  idOrName: string,
): S => snapshots.find(({ id }) => id === idOrName) ?? byName(snapshots, idOrName);

/** By name alone, so that no name is taken for an id. Errors: ENOENT. */
export const snapshotToDelete = <S extends NamedSnapshot>(
  snapshots: readonly S[],
  name: string,
): S => byName(snapshots, name);

/**
 * The one that `convert -l` means: `snapshot.id=ID,snapshot.name=NAME`, either of them left out, or an id or name. Errors:
 * ENOENT; EINVAL.
 */
export const snapshotToShow = <S extends NamedSnapshot>(
  snapshots: readonly S[],
  text: string,
): S => {
  if (!text.startsWith('snapshot.')) return snapshotToApply(snapshots, text);
  const wanted = new Map(text.split(',').map((part) => keyAndValue(part)));
  const id = wanted.get('snapshot.id');
  const name = wanted.get('snapshot.name');
  const unknown = [...wanted.keys()].find((key) => !/^snapshot\.(id|name)$/.test(key));
  if (unknown !== undefined) {
    const message = `snapshot parameter '${unknown}' is neither snapshot.id nor snapshot.name`;
    throw new BlockError({ kind: 'bad-request', message, op: 'snapshot' });
  }
  const found = snapshots.find(
    (s) => (id === undefined || s.id === id) && (name === undefined || s.name === name),
  );
  return found ?? byName([], name ?? id ?? '');
};

const keyAndValue = (part: string): [key: string, value: string] => {
  const at = part.indexOf('=');
  return at < 0 ? [part, ''] : [part.slice(0, at), part.slice(at + 1)];
};

const byName = <S extends NamedSnapshot>(snapshots: readonly S[], wanted: string): S => {
  const found = snapshots.find(({ name }) => name === wanted);
  if (found !== undefined) return found;
  throw new BlockError({
    kind: 'not-found',
    message: `has no snapshot '${wanted}'`,
    hint: 'vdiskfs snapshot -l shows those that it has',
    op: 'snapshot',
  });
};

/** A date for `SnapshotRequest`. */
export const snapshotDate = (
  ms: number,
): { readonly dateSeconds: number; readonly dateNanoseconds: number } => {
  const dateSeconds = Math.floor(ms / 1000);
  return { dateSeconds, dateNanoseconds: Math.round((ms - dateSeconds * 1000) * 1e6) };
};
