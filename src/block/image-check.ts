/** Checking and repairing images. */
import type { Node } from './node.ts';

/** Totals as `qemu-img check --output=json` names them, in camel case. */
export interface CheckResult {
  readonly corruptions: number;
  readonly leaks: number;
  readonly corruptionsFixed: number;
  readonly leaksFixed: number;
  /** Errors of the check itself (unreadable tables). */
  readonly checkErrors: number;
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
  readonly imageEndOffset: number;
  /** One sentence per finding, at most `MAX_CHECK_FINDINGS`, the count goes on. */
  readonly findings: readonly string[];
}

export interface CheckRequest {
  readonly file: Node;
  readonly path: string;
  readonly repair: 'none' | 'leaks' | 'all';
  /**
   * Opens the image with every file that its header names, read-only; the caller of `check` closes it. Errors: those of
   * `Graph.open`.
   */
  readonly openImage: () => Promise<Node>;
}

/** Bound of `CheckResult.findings`: a hostile image must not fill the memory with sentences. */
export const MAX_CHECK_FINDINGS = 1000;
