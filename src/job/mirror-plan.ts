/** What a mirror copies at first: marked in its bitmap, which records already. */
import { guestOffset } from '../base/units.ts';
import type { DirtyBitmap } from '../block/dirty-bitmap.ts';
import type { Node } from '../block/node.ts';
import { Breather } from './breather.ts';
import type { JobControl } from './job-work.ts';
import type { MirrorOptions } from './mirror-options.ts';

/** Errors: those of reading the source's metadata; JobCancelled. */
export const markInitial = async (
  control: JobControl,
  content: DirtyBitmap,
  options: MirrorOptions,
): Promise<void> => {
  const { sync, bitmap, targetIsZero } = options;
  switch (sync) {
    case 'none':
      return;
    case 'incremental':
    case 'bitmap':
      if (bitmap !== null) content.merge(bitmap.content);
      return;
    case 'full':
      if (!targetIsZero) content.markAll();
      else await markRuns(control, content, options, hasData);
      return;
    case 'top':
      await markRuns(
        control,
        content,
        options,
        options.above === undefined ? isOwn : isAbove(options.above),
      );
  }
};

interface Run {
  readonly lengthBytes: number;
  readonly isWanted: boolean;
}

type Look = (root: Node, offset: number) => Promise<Run>;

const hasData: Look = async (root, offset) => {
  const { lengthBytes, zero } = await root.blockStatus(
    guestOffset(offset),
    root.lengthBytes - offset,
  );
  return { lengthBytes, isWanted: !zero };
};

/** In the image itself, or where its backing is not what the guest sees: past the backing's end. */
const isOwn: Look = async (root, offset) => {
  const m = await root.mapping(guestOffset(offset), root.lengthBytes - offset);
  return { lengthBytes: m.lengthBytes, isWanted: m.kind !== 'unallocated' };
};

/** In a layer above another one, or where a layer in between ends, past which zeros are seen and not what the other has. */
const isAbove =
  (base: Node): Look =>
  async (root, offset) => {
    const rest = root.lengthBytes - offset;
    const { lengthBytes, allocated } = await root.blockStatus(guestOffset(offset), rest, base);
    let isCut = false;
    for (let node = root.backing; node !== null && node !== base; node = node.backing) {
      isCut ||= offset >= node.lengthBytes && offset < base.lengthBytes;
    }
    return { lengthBytes, isWanted: allocated || isCut };
  };

const markRuns = async (
  control: JobControl,
  content: DirtyBitmap,
  { view }: MirrorOptions,
  look: Look,
): Promise<void> => {
  const breather = new Breather();
  for (let at = 0; ; ) {
    await breather.breathe();
    await control.pausePoint();
    const run = await view.withRoot(async (root) =>
      at >= root.lengthBytes ? null : look(root, at),
    );
    if (run === null) return;
    if (run.isWanted) content.mark(at, run.lengthBytes);
    at += run.lengthBytes;
  }
};
