/** What several layers of a chain show together, over what lies below them. */
import { isAllZero } from '../base/range.ts';
import { guestOffset } from '../base/units.ts';
import type { Node } from './node.ts';

export interface LayerRun {
  readonly lengthBytes: number;
  /** The layer whose bytes are seen, or zeros; null: what lies below the layers is seen. */
  readonly from: Node | 'zero' | null;
}

/** What is seen at an offset through the layers, top first; `limit` bytes at most. Errors: those of reading metadata. */
export const layerRunOf = async (
  layers: readonly Node[],
  at: number,
  limit: number,
): Promise<LayerRun> => {
  let lengthBytes = limit;
  for (const layer of layers) {
    // Past the end of a layer in between, zeros are seen.
    if (at >= layer.lengthBytes) return { lengthBytes, from: 'zero' };
    const m = await layer.mapping(guestOffset(at), Math.min(lengthBytes, layer.lengthBytes - at));
    lengthBytes = m.lengthBytes;
    if (m.kind === 'unallocated') continue;
    return { lengthBytes, from: m.kind === 'zero' ? 'zero' : layer };
  }
  return { lengthBytes, from: null };
};

/** Zeros take no space where the target's format can say so. Errors: those of the target. */
export const writeSparsely = async (target: Node, at: number, bytes: Uint8Array): Promise<void> => {
  const offset = guestOffset(at);
  if (isAllZero(bytes)) await target.writeZeroes(offset, bytes.length, { unmap: true });
  else await target.write(offset, bytes);
};
