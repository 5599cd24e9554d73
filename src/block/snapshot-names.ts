/** Which snapshot a person means, by the rules of `qemu-img`. Names need not be unique: the first of the image counts. */
import { BlockError } from '../base/block-error.ts';
import type { SnapshotDescription } from './driver.ts';

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
