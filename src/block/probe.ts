/** Finds an image's format by its first bytes. `raw` is what is left when no format claims them. */
import { BlockError } from '../base/block-error.ts';
import { guestOffset } from '../base/units.ts';
import { type DriverDescriptor, PROBE_BYTES } from './driver.ts';
import type { Node } from './node.ts';
import type { DriverRegistry } from './registry.ts';

/** Thousands of files are probed in one scan. */
const freeHeads: Uint8Array[] = [];
const MAX_FREE_HEADS = 16;

/** Formats that claim these bytes, surest first. Pure. */
export const probeHead = (
  registry: DriverRegistry,
  head: Uint8Array,
  fileLengthBytes: number,
): DriverDescriptor[] =>
  registry.formats
    .map((driver) => ({ driver, score: driver.probe?.(head, fileLengthBytes) ?? 0 }))
    .filter((p) => p.score > 0)
    .sort((a, b) => b.score - a.score)
    .map((p) => p.driver);

/**
 * The format of an opened file, null when none but raw fits. Errors: kind invalid-image for bytes that two
 * formats claim: such a file is made to be read differently by two programs.
 */
export const probeFormat = async (
  registry: DriverRegistry,
  file: Node,
  path: string,
): Promise<DriverDescriptor | null> => {
  const memory = freeHeads.pop() ?? new Uint8Array(PROBE_BYTES);
  const [first, second] = await claims(registry, file, memory).finally(() => {
    if (freeHeads.length < MAX_FREE_HEADS) freeHeads.push(memory);
  });
  if (second === undefined) return first ?? null;
  throw new BlockError({
    kind: 'invalid-image',
    message: `is valid as ${first?.name} and as ${second.name}`,
    hint: 'name its format with --format',
    path,
  });
};

const claims = async (
  registry: DriverRegistry,
  file: Node,
  memory: Uint8Array,
): Promise<DriverDescriptor[]> => {
  const head = memory.subarray(0, Math.min(PROBE_BYTES, file.lengthBytes));
  await file.read(guestOffset(0), head);
  return probeHead(registry, head, file.lengthBytes);
};
