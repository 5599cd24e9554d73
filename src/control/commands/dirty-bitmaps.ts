/**
 * Dirty bitmaps of a device, as QEMU's commands spell them. One that the image does not keep lives as long as its node, so the
 * view stays open for it; it is lost with the engine, as with QEMU.
 */
import { BlockError } from '../../base/block-error.ts';
import { defaultGranularity, refuseOtherLength } from '../../block/bitmap-rules.ts';
import { DirtyBitmap, isGranularity } from '../../block/dirty-bitmap.ts';
import { TrackedBitmap } from '../../block/dirty-tracking.ts';
import type { Node } from '../../block/node.ts';
import { JobError } from '../../job/job-error.ts';
import { type ControlContext, deviceNamed } from '../context.ts';
import { defineQmp, flag, integer, listOf, optional, type QmpCommand, text } from '../schema.ts';

/** QEMU's BlockDirtyBitmapOrStr: of the target's node, or of another. */
type Source = string | { readonly node: string; readonly name: string };

const isSource = (item: unknown): item is Source => {
  if (typeof item === 'string') return true;
  const { node, name } = (item ?? {}) as { readonly node?: unknown; readonly name?: unknown };
  return (
    typeof node === 'string' && typeof name === 'string' && Object.keys(item as object).length === 2
  );
};

const nodeNamed = async (context: ControlContext, name: string): Promise<Node> => {
  const node = context.nodes().find((n) => n.name === name);
  return node ?? (await deviceNamed(context, name)).view.open();
};

const add = async (
  context: ControlContext,
  given: {
    readonly node: string;
    readonly name: string;
    readonly granularity?: number;
    readonly persistent?: boolean;
    readonly disabled?: boolean;
  },
): Promise<void> => {
  const { name, persistent = false } = given;
  if (name === '') throw new JobError('Bitmap name cannot be empty');
  const { view } = await deviceNamed(context, given.node);
  // Until it is there, and as long as it is there alone.
  const unpin = view.pin();
  try {
    const root = await view.open();
    const granularityBytes = given.granularity ?? defaultGranularity(root);
    if (!isGranularity(granularityBytes)) {
      throw new JobError('Granularity must be a power of 2 from 512 bytes to 2 GiB');
    }
    if (persistent) checkStore(root, name, granularityBytes);
    const { lengthBytes } = root;
    const bitmap = new TrackedBitmap({
      name,
      content: new DirtyBitmap({ lengthBytes, granularityBytes }),
      recording: given.disabled !== true,
      persistent,
      ...(persistent ? {} : { dropped: unpin }),
    });
    await root.dirtyBitmaps.add(bitmap);
    if (persistent) unpin();
  } catch (error) {
    unpin();
    throw error;
  }
};

const checkStore = (root: Node, name: string, granularityBytes: number): void => {
  const { bitmapStore } = root.driver;
  if (bitmapStore === undefined) {
    throw new BlockError({
      kind: 'unsupported',
      message: `Cannot store dirty bitmaps in images of the format '${root.descriptor.name}'`,
      path: root.path,
    });
  }
  if (root.readOnly) {
    const message = 'the image is open read-only, so it cannot keep another bitmap';
    throw new BlockError({ kind: 'read-only', message, path: root.path, op: 'bitmap' });
  }
  bitmapStore.checkNew(name, granularityBytes);
};

const merge = async (
  context: ControlContext,
  given: { readonly node: string; readonly target: string; readonly bitmaps: readonly Source[] },
): Promise<void> => {
  const node = await nodeNamed(context, given.node);
  const target = node.dirtyBitmaps.get(given.target);
  const contents: DirtyBitmap[] = [];
  for (const source of given.bitmaps) {
    const isOwn = typeof source === 'string';
    const owner = isOwn ? node : await nodeNamed(context, source.node);
    const { content } = owner.dirtyBitmaps.get(isOwn ? source : source.name);
    refuseOtherLength(target.content, content, node.path);
    contents.push(content);
  }
  // All of them or none: what can be refused was refused before.
  const sum = new DirtyBitmap(target.content);
  for (const content of contents) sum.merge(content);
  await node.dirtyBitmaps.merge(target, sum);
};

const ONE = { node: text, name: text };

export const dirtyBitmapCommands: readonly QmpCommand<ControlContext>[] = [
  defineQmp({
    name: 'block-dirty-bitmap-add',
    arguments: {
      ...ONE,
      granularity: optional(integer),
      persistent: optional(flag),
      disabled: optional(flag),
    },
    returns: 'nothing',
    run: (context: ControlContext, given) => add(context, given),
  }),
  defineQmp({
    name: 'block-dirty-bitmap-remove',
    arguments: ONE,
    returns: 'nothing',
    run: async (context: ControlContext, { node, name }) =>
      (await nodeNamed(context, node)).dirtyBitmaps.remove(name),
  }),
  ...(['clear', 'enable', 'disable'] as const).map((verb) =>
    defineQmp({
      name: `block-dirty-bitmap-${verb}`,
      arguments: ONE,
      returns: 'nothing',
      run: async (context: ControlContext, { node, name }) => {
        const { dirtyBitmaps } = await nodeNamed(context, node);
        const bitmap = dirtyBitmaps.get(name);
        await (verb === 'clear' ? dirtyBitmaps.clearAll(bitmap) : dirtyBitmaps[verb](bitmap));
      },
    }),
  ),
  defineQmp({
    name: 'block-dirty-bitmap-merge',
    arguments: { node: text, target: text, bitmaps: listOf('BlockDirtyBitmapOrStr', isSource) },
    returns: 'nothing',
    run: (context: ControlContext, given) => merge(context, given),
  }),
];
