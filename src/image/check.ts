/** Whether an image's tables are consistent: `vdiskfs check`, in the fields of `qemu-img check --output=json`. */

import { identify } from '../block/file-identity.ts';
import type { CheckRequest, CheckResult } from '../block/image-check.ts';
import type { Node } from '../block/node.ts';
import { type OfflineContext, type OpenedImage, openFile, openImage } from './open.ts';

/** Counts that are zero are absent, as in `qemu-img`, but for `check-errors`. */
export interface CheckReport {
  readonly filename: string;
  readonly format: string;
  readonly 'check-errors': number;
  readonly 'image-end-offset'?: number;
  readonly corruptions?: number;
  readonly leaks?: number;
  readonly 'corruptions-fixed'?: number;
  readonly 'leaks-fixed'?: number;
  readonly 'total-clusters'?: number;
  readonly 'allocated-clusters'?: number;
  readonly 'fragmented-clusters'?: number;
  readonly 'compressed-clusters'?: number;
}

export interface Checked {
  readonly report: CheckReport;
  /** One sentence each, bounded in number. */
  readonly findings: readonly string[];
}

export interface CheckOptions {
  /** What is mended; `none` opens the image read-only. */
  readonly repair: CheckRequest['repair'];
}

/**
 * Checks the image's own tables; no other file is opened. Null: the format has no check. Errors: EBUSY
 * (locked), kind invalid-image when the image does not even open, those of the host.
 */
export const checkImage = async (
  path: string,
  format: string | null,
  context: OfflineContext,
  { repair }: CheckOptions,
): Promise<Checked | null> => {
  await identify(path);
  await using opened = await openFile(path, format, context, { writable: repair !== 'none' });
  const { file } = opened;
  const { check, name } = opened.format;
  if (check === undefined) return null;
  const images: OpenedImage[] = [];
  try {
    const openAll = async (): Promise<Node> => {
      const image = await openImage(path, name, context);
      images.push(image);
      return image.root;
    };
    const result = await check({ file, path: file.path, repair, openImage: openAll });
    return { report: toReport(file.path, name, result), findings: result.findings };
  } finally {
    for (const image of images) await image[Symbol.asyncDispose]();
  }
};

const toReport = (filename: string, format: string, r: CheckResult): CheckReport => {
  const counts = {
    'image-end-offset': r.imageEndOffset,
    corruptions: r.corruptions,
    leaks: r.leaks,
    'corruptions-fixed': r.corruptionsFixed,
    'leaks-fixed': r.leaksFixed,
    'total-clusters': r.totalClusters,
    'allocated-clusters': r.allocatedClusters,
    'fragmented-clusters': r.fragmentedClusters,
    'compressed-clusters': r.compressedClusters,
  };
  const found = Object.entries(counts).filter(([, count]) => count !== 0);
  return { filename, format, 'check-errors': r.checkErrors, ...Object.fromEntries(found) };
};
