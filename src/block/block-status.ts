/** Block status: for a range of a node, whether some layer of its chain has it, what it reads as, and where it lies. */
import { type GuestOffset, guestOffset } from '../base/units.ts';
import type { Mapping } from './driver.ts';
import type { Node } from './node.ts';

/** One run, in the words of `qemu-img map`. */
export interface BlockStatus {
  readonly lengthBytes: number;
  /** How far down the chain it was found: 0 this node, 1 its backing, … */
  readonly depth: number;
  /** Some layer of the chain has it; false reads as zeros because none has. */
  readonly allocated: boolean;
  readonly zero: boolean;
  /** Space holds bytes for it. */
  readonly data: boolean;
  readonly compressed: boolean;
  readonly encrypted: boolean;
  /** Where in `path`, when plain bytes lie there; else null. */
  readonly hostOffset: number | null;
  readonly path: string | null;
}

/** What is true of a run unless something else is found. */
const NOWHERE = {
  depth: 0,
  compressed: false,
  encrypted: false,
  hostOffset: null,
  path: null,
} as const;

/**
 * The first run of a range, looked up through the backing chain: the whole of it, or the layers above `base`, which then
 * is as if it were not there. Errors: EIO, EINVAL for the range.
 */
export const blockStatusOf = async (
  node: Node,
  offset: GuestOffset,
  lengthBytes: number,
  base: Node | null = null,
): Promise<BlockStatus> => {
  const m = await node.mapping(offset, lengthBytes);
  const run = { ...NOWHERE, lengthBytes: m.lengthBytes, allocated: true };
  switch (m.kind) {
    case 'unallocated':
      return backingStatus(node, offset, m, base);
    case 'opaque':
      return m.encrypted === true
        ? { ...run, zero: false, data: true, encrypted: true }
        : { ...run, zero: false, data: true, compressed: true };
    case 'zero':
      return { ...run, ...keptPlace(node, m), zero: true, data: false };
    case 'data':
      return dataStatus(node, m, run);
  }
};

/** Where a layer keeps space for what reads otherwise. */
const keptPlace = (
  node: Node,
  m: Extract<Mapping, { kind: 'zero' | 'unallocated' }>,
): Pick<BlockStatus, 'hostOffset' | 'path'> =>
  m.hostOffset === undefined
    ? { hostOffset: null, path: null }
    : { hostOffset: m.hostOffset, path: (m.file ?? node.file)?.path ?? null };

const backingStatus = async (
  node: Node,
  offset: GuestOffset,
  m: Extract<Mapping, { kind: 'unallocated' }>,
  base: Node | null,
): Promise<BlockStatus> => {
  const below = node.backing;
  const { lengthBytes } = m;
  if (below === null || below === base || offset >= below.lengthBytes) {
    const run = { ...NOWHERE, ...keptPlace(node, m), lengthBytes };
    return { ...run, allocated: false, zero: true, data: false };
  }
  const inside = Math.min(lengthBytes, below.lengthBytes - offset);
  const found = await blockStatusOf(below, offset, inside, base);
  return { ...found, depth: found.depth + 1 };
};

const dataStatus = async (
  node: Node,
  m: Extract<Mapping, { kind: 'data' }>,
  run: typeof NOWHERE & { readonly lengthBytes: number; readonly allocated: boolean },
): Promise<BlockStatus> => {
  const { driver, descriptor } = m.file;
  // A data file of a format with clusters knows more of its bytes.
  if (descriptor.role !== 'protocol') {
    const found = await blockStatusOf(m.file, guestOffset(m.hostOffset), m.lengthBytes);
    return { ...found, depth: 0, allocated: true };
  }
  const placed = { ...run, path: m.file.path, hostOffset: m.hostOffset };
  if (driver.stores === undefined || !(await holesMeanZero(node))) {
    return { ...placed, zero: false, data: true };
  }
  const { stored, lengthBytes } = await driver.stores(m.hostOffset, m.lengthBytes);
  // A hole below a format that maps clusters is no hole of the format: a cluster is kept there, which reads as zeros.
  const data = stored || (node.driver.clusterBytes > 1 && node.driver.punchesDataFile !== true);
  return { ...placed, lengthBytes, zero: !stored, data };
};

const holesMeanZero = async (node: Node): Promise<boolean> => {
  const answer = node.driver.holesMeanZero;
  return typeof answer === 'function' ? answer.call(node.driver) : answer === true;
};
