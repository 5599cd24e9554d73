/** A mirror between two files whose operations can be watched, held, or made to fail. */
import { join } from 'node:path';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Job } from '../../src/job/job.ts';
import { delayedFile, type FileOperation } from './delayed-file.ts';
import { MirrorStand } from './mirror-stand.ts';
import { qemuImg } from './qemu-img.ts';
import { type Cleanup, scratchDirectory } from './scratch.ts';
import { until } from './until.ts';

export const KIB = 1024;
export const MIB = 1024 * KIB;

export interface MirrorScene {
  readonly stand: MirrorStand;
  /** What happens before an operation on the source's or the target's file. */
  on: { source: Hook; target: Hook };
}

export type Hook = (operation: FileOperation, offset: number) => Promise<void>;

export const nothing: Hook = async () => undefined;

export const mirrorScene = async (
  t: Cleanup,
  formats: {
    readonly source?: string;
    readonly target?: string;
    readonly lengthBytes?: number;
    /** See `Interference`. */
    readonly copiesInHost?: boolean;
  } = {},
): Promise<MirrorScene> => {
  const directory = await scratchDirectory(t);
  const { source = 'raw', target = 'raw', lengthBytes = 8 * MIB, copiesInHost = false } = formats;
  const on = { source: nothing, target: nothing };
  const of = (which: 'source' | 'target') => ({
    copiesInHost,
    before: (operation: FileOperation, offset: number) => on[which](operation, offset),
  });
  const file = delayedFile(
    join(directory, `source.${source}`),
    of('source'),
    delayedFile(join(directory, `target.${target}`), of('target')),
  );
  const options = { directory, sourceFormat: source, targetFormat: target, lengthBytes, file };
  const stand = await MirrorStand.open(options);
  t.after(async () => stand.abandon());
  return { stand, on };
};

export const put = (stand: MirrorStand, at: number, length: number, fill: number): Promise<void> =>
  stand.view.write(guestOffset(at), Buffer.alloc(length, fill));

export const fault = (kind: 'io' | 'no-space' = 'io'): BlockError =>
  new BlockError({ kind, message: 'the fault of this test' });

/** The first `count` of an operation from now on fail. */
export const failing = (
  operation: FileOperation,
  count: number,
  kind: 'io' | 'no-space' = 'io',
): Hook => {
  let left = count;
  return async (seen) => {
    if (seen === operation && left-- > 0) throw fault(kind);
  };
};

export const assertSame = async ({ source, target, view }: MirrorStand): Promise<void> => {
  await view.close();
  await qemuImg(['compare', source, target]);
};

export const ended = (job: Job): Promise<void> =>
  until('the job has ended', () => job.status === 'concluded');

export const errorsOf = (stand: MirrorStand): readonly unknown[] =>
  stand.events.filter(({ name }) => name === 'BLOCK_JOB_ERROR').map(({ data }) => data);
