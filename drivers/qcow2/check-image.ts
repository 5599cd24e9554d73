/** Checking or repairing an image by its file: what the header refers to, and then the tables. */
import { readU64BE, viewOf } from '../../src/base/byte-order.ts';
import type { CheckRequest, CheckResult } from '../../src/block/image-check.ts';
import { checkTables } from './check.ts';
import type { BitmapDirectory } from './check-bitmaps.ts';
import { encryptionHeaderPlace } from './encryption/open.ts';
import { checkShapeOf, type Qcow2Header, readHeader, refuseUnsupported } from './header.ts';
import { AUTOCLEAR, EXTENSION } from './layout.ts';
import { repairTables } from './repair.ts';
import { readSnapshotTable } from './snapshot-table.ts';

/** Null when there are no bitmaps, or when the autoclear bit says that they are out of date. */
const bitmapsOf = (header: Qcow2Header): BitmapDirectory | null => {
  const content = header.extensions.find((e) => e.type === EXTENSION.bitmaps)?.content;
  if (content === undefined || content.length < 24) return null;
  if ((header.autoclear & AUTOCLEAR.bitmaps) === 0) return null;
  const view = viewOf(content);
  const place = { lengthBytes: readU64BE(view, 8), offset: readU64BE(view, 16) };
  return { bitmaps: view.getUint32(0), place };
};

/**
 * The file must be writable for a repair, and nobody else may use it. Errors: kind invalid-image, unsupported; those of the
 * file.
 */
export const checkImageFile = async ({
  file,
  path,
  repair,
}: Omit<CheckRequest, 'openImage'>): Promise<CheckResult> => {
  const header = await readHeader(file, path);
  refuseUnsupported(header, path);
  const table = await readSnapshotTable(file, header, path);
  const snapshots = table.snapshots.map((s) => ({
    name: s.description.name,
    l1: { offset: s.l1Offset, lengthBytes: s.l1Entries * 8 },
  }));
  const place = { offset: header.snapshotsOffset, lengthBytes: table.lengthBytes };
  const others = header.snapshots === 0 ? [] : [{ what: 'the snapshot table', place }];
  const encryption = encryptionHeaderPlace(header, file.lengthBytes, path);
  if (encryption !== null) others.push({ what: 'the encryption header', place: encryption });
  const shape = checkShapeOf(header);
  const targets = { snapshots, others, bitmaps: bitmapsOf(header) };
  if (repair === 'none') return checkTables(file, shape, targets);
  return repairTables({ file, shape, targets, mode: repair, version: header.version });
};
