/**
 * Bringing what an overlay has into an image below it: `vdiskfs commit`, of images that nobody uses.
 *
 * The base is durable before the overlay gives anything up: cut anywhere, the overlay shows what it showed.
 */
import { resolve } from 'node:path';
import { BlockError } from '../base/block-error.ts';
import { guestOffset } from '../base/units.ts';
import { layerRunOf, writeSparsely } from '../block/layers.ts';
import type { Node } from '../block/node.ts';
import { type OfflineContext, openImage } from './open.ts';

export interface CommitRequest {
  readonly path: string;
  /** Null probes. */
  readonly format: string | null;
  /** Path of a layer below; null for the one directly below. */
  readonly base: string | null;
  /** The overlay keeps what it has; so it does with a base that is not directly below. */
  readonly keep: boolean;
  readonly progress: (doneBytes: number, totalBytes: number) => void;
  /** Resolves when so many bytes may be read. */
  readonly pace: (lengthBytes: number) => Promise<void>;
  readonly signal: AbortSignal;
}

const PIECE_BYTES = 1 << 20;

/** Errors: EINVAL without a backing image, or for a base that is none of its chain; those of the images. */
export const commitImage = async (
  request: CommitRequest,
  context: OfflineContext,
): Promise<void> => {
  const { path, format } = request;
  const isDirect = await bringDown(request, context);
  if (request.keep || !isDirect) return;
  const options = { writable: true, withoutBacking: true };
  await using overlay = await openImage(path, format, context, options);
  await overlay.root.makeEmpty();
};

/** Returns whether the base is directly below. */
const bringDown = async (request: CommitRequest, context: OfflineContext): Promise<boolean> => {
  const { path, format } = request;
  await using opened = await openImage(path, format, context);
  const chain = layersOf(opened.root);
  const index = baseIndex(request, chain);
  const layers = chain.slice(0, index);
  const below = chain[index] as Node;
  const baseFormat = below.descriptor.name;
  await using target = await openImage(below.path, baseFormat, context, { writable: true });
  const base = target.root;
  const { lengthBytes } = opened.root;
  if (base.lengthBytes < lengthBytes) await base.resize(lengthBytes);
  await copyLayers(request, layers, base);
  await base.flush();
  return index === 1;
};

const layersOf = (root: Node): readonly Node[] => {
  const layers: Node[] = [];
  for (let node: Node | null = root; node !== null; node = node.backing) layers.push(node);
  return layers;
};

const baseIndex = ({ path, base }: CommitRequest, chain: readonly Node[]): number => {
  const wrong = (message: string): BlockError =>
    new BlockError({ kind: 'bad-request', message, path, op: 'commit' });
  if (chain.length < 2) throw wrong('has no backing image');
  if (base === null) return 1;
  const index = chain.findIndex((node, i) => i > 0 && node.path === resolve(base));
  if (index > 0) return index;
  throw wrong(`'${base}' is not in its backing chain`);
};

const copyLayers = async (
  { signal, progress, pace }: CommitRequest,
  layers: readonly Node[],
  base: Node,
): Promise<void> => {
  const [top] = layers;
  const end = top?.lengthBytes ?? 0;
  const buffer = Buffer.alloc(PIECE_BYTES);
  for (let at = 0; at < end; ) {
    signal.throwIfAborted();
    progress(at, end);
    const { from, lengthBytes } = await layerRunOf(layers, at, end - at);
    const isRead = from !== null && from !== 'zero';
    const length = isRead ? Math.min(lengthBytes, buffer.length) : lengthBytes;
    if (isRead) {
      await pace(length);
      await bringBytes(from, base, at, buffer.subarray(0, length));
    } else if (from === 'zero') await base.writeZeroes(guestOffset(at), length, { unmap: true });
    at += length;
  }
  progress(end, end);
};

const bringBytes = async (from: Node, base: Node, at: number, bytes: Buffer): Promise<void> => {
  await from.read(guestOffset(at), bytes);
  await writeSparsely(base, at, bytes);
};
