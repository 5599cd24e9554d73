/** Header extensions (specification: "Header extensions", "Feature name table"). Unknown ones are kept as they are. */
import { invalidImage } from '../../src/base/block-error.ts';
import { viewOf } from '../../src/base/byte-order.ts';
import { alignUp } from '../../src/base/range.ts';
import { EXTENSION } from './layout.ts';

export interface Extension {
  readonly type: number;
  readonly content: Uint8Array;
}

const HEAD_BYTES = 8;
const FEATURE_ENTRY_BYTES = 48;
const MAX_FORMAT_BYTES = 15;

/** The extensions from `start` on, up to the end marker or `end`. Errors: EIO for one that reaches past `end`. */
export const readExtensions = (
  cluster: Uint8Array,
  start: number,
  end: number,
  path: string,
): readonly Extension[] => {
  const view = viewOf(cluster);
  const found: Extension[] = [];
  for (let at = start; at + HEAD_BYTES <= end; ) {
    const type = view.getUint32(at);
    if (type === EXTENSION.end) break;
    const length = view.getUint32(at + 4);
    if (length > end - at - HEAD_BYTES) {
      const message = `header extension 0x${type.toString(16)} of ${length} bytes reaches past the header`;
      throw invalidImage(message, { path, offset: at });
    }
    found.push({ type, content: cluster.slice(at + HEAD_BYTES, at + HEAD_BYTES + length) });
    at += HEAD_BYTES + alignUp(length, 8);
  }
  return found;
};

/** Whether the extensions from `start` on, up to the end marker or `end`, all lie in these first bytes of the cluster. */
export const extensionsAreIn = (head: Uint8Array, start: number, end: number): boolean => {
  const view = viewOf(head);
  for (let at = start; at + HEAD_BYTES <= end; ) {
    if (at + HEAD_BYTES > head.length) return false;
    if (view.getUint32(at) === EXTENSION.end) return true;
    at += HEAD_BYTES + alignUp(view.getUint32(at + 4), 8);
  }
  return end <= head.length;
};

/** The declared format of the backing file; null when the image does not say. */
export const backingFormatOf = (extensions: readonly Extension[]): string | null => {
  const content = extensions.find((e) => e.type === EXTENSION.backingFormat)?.content;
  if (content === undefined || content.length === 0) return null;
  return Buffer.from(content.subarray(0, MAX_FORMAT_BYTES)).toString('latin1');
};

/** The name of the external data file; null when the header has none. */
export const dataFileNameOf = (extensions: readonly Extension[]): string | null => {
  const content = extensions.find((e) => e.type === EXTENSION.dataFile)?.content;
  if (content === undefined || content.length === 0) return null;
  return Buffer.from(content).toString('utf8');
};

/** What the image calls an incompatible feature bit; null when it does not say. */
export const featureName = (extensions: readonly Extension[], bit: number): string | null => {
  const table = extensions.find((e) => e.type === EXTENSION.featureNames)?.content;
  if (table === undefined) return null;
  for (let at = 0; at + FEATURE_ENTRY_BYTES <= table.length; at += FEATURE_ENTRY_BYTES) {
    if (table[at] !== 0 || table[at + 1] !== bit) continue;
    const name = Buffer.from(table.subarray(at + 2, at + FEATURE_ENTRY_BYTES)).toString('utf8');
    return name.replace(/\0.*$/s, '');
  }
  return null;
};
