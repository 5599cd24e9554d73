/** What an image says of itself: `vdiskfs info`, in the fields of `qemu-img info --output=json`. */
import { present } from '../base/assert.ts';
import { BlockError } from '../base/block-error.ts';
import { type FileIdentity, identify } from '../block/file-identity.ts';
import { readFileName } from '../block/file-name.ts';
import { MAX_CHAIN_DEPTH } from '../block/graph.ts';
import type { ImageDescription, SnapshotDescription } from '../block/image-description.ts';
import type { OpenGate } from '../block/open-gate.ts';
import { withoutPassword } from '../block/remote-url.ts';
import { gateFor, type OfflineContext, openFile } from './open.ts';

/** One image. Fields that do not apply are absent, as in `qemu-img`. */
export interface ImageInfo {
  readonly filename: string;
  readonly format: string;
  readonly 'virtual-size': number;
  /** Bytes taken on the host; absent for what lies on a server. */
  readonly 'actual-size'?: number;
  readonly 'dirty-flag': boolean;
  readonly 'cluster-size'?: number;
  readonly encrypted?: true;
  readonly compressed?: true;
  /** As the header has it. */
  readonly 'backing-filename'?: string;
  /** Resolved against the image's directory. */
  readonly 'full-backing-filename'?: string;
  readonly 'backing-filename-format'?: string;
  readonly snapshots?: readonly SnapshotInfo[];
  readonly 'format-specific'?: {
    readonly type: string;
    readonly data: Readonly<Record<string, unknown>>;
  };
}

export interface SnapshotInfo {
  readonly id: string;
  readonly name: string;
  readonly 'vm-state-size': number;
  readonly 'date-sec': number;
  readonly 'date-nsec': number;
  readonly 'vm-clock-sec': number;
  readonly 'vm-clock-nsec': number;
  readonly icount?: number;
}

/**
 * The image at `path` alone: its backing file is not opened and need not exist. `format` null probes. Errors: EBUSY
 * (locked), kind invalid-image naming the field, those of the host.
 */
export const imageInfo = async (
  path: string,
  format: string | null,
  context: OfflineContext,
): Promise<ImageInfo> => {
  await identify(path);
  return describe(path, path, format, context);
};

/** `shown` is the name that people gave it, `path` the file that is opened. */
const describe = async (
  shown: string,
  path: string,
  format: string | null,
  context: OfflineContext,
): Promise<ImageInfo> => {
  const { description, allocatedBytes } = await inspectFile(path, format, context);
  const gate = await gateFor(path, context);
  const size = await virtualSizeOf(description, path, { ...context, gate }, 0);
  return toInfo(withoutPassword(shown), description, size, allocatedBytes);
};

const inspectFile = async (
  path: string,
  format: string | null,
  context: OfflineContext,
): Promise<{ readonly description: ImageDescription; readonly allocatedBytes: number | null }> => {
  await using opened = await openFile(path, format, context);
  const { inspect, name } = opened.format;
  if (inspect === undefined) {
    throw new BlockError({ kind: 'unsupported', message: `format ${name} has no info`, path });
  }
  const { driver } = opened.file;
  const description = await inspect(opened.file, opened.file.path);
  return { description, allocatedBytes: driver.remote ? null : await driver.allocatedBytes() };
};

/** Of an image whose header does not say it, that of its data file, which is looked at and no more. */
const virtualSizeOf = async (
  { virtualSizeBytes, dataFiles }: ImageDescription,
  path: string,
  context: OfflineContext & { readonly gate: OpenGate },
  depth: number,
): Promise<number> => {
  if (virtualSizeBytes !== null) return virtualSizeBytes;
  const link = present(dataFiles[0], 'an image without a size of its own has a data file');
  if (depth >= MAX_CHAIN_DEPTH) throw chainError(path, `has more than ${depth} files above it`);
  const { path: below, format } = await context.gate.resolveLink(link, path);
  const { description } = await inspectFile(below, format, context);
  return virtualSizeOf(description, below, context, depth + 1);
};

/**
 * The image and every image below it, top first. Names in headers go through the gate. Errors: as `imageInfo` for each
 * of them; EACCES outside the allowed directories; ELOOP for a chain that loops or is too deep.
 */
export const chainInfo = async (
  path: string,
  format: string | null,
  context: OfflineContext,
): Promise<ImageInfo[]> => {
  const gate = await gateFor(path, context);
  const chain: ImageInfo[] = [];
  const seen: FileIdentity[] = [];
  let next: ChainLink | null = { shown: path, path, format };
  while (next !== null) {
    const link: ChainLink = next;
    const identity = await identify(link.path);
    if (seen.some((s) => s.device === identity.device && s.inode === identity.inode)) {
      throw chainError(path, `its backing chain loops: '${link.shown}' is above itself`);
    }
    if (seen.length > MAX_CHAIN_DEPTH) {
      throw chainError(path, `its backing chain is deeper than ${MAX_CHAIN_DEPTH}`);
    }
    seen.push(identity);
    const info = await describe(link.shown, link.path, link.format, context);
    chain.push(info);
    next = await linkBelow(info, link, gate);
  }
  return chain;
};

interface ChainLink {
  readonly shown: string;
  readonly path: string;
  readonly format: string | null;
}

const linkBelow = async (
  info: ImageInfo,
  above: ChainLink,
  gate: OpenGate,
): Promise<ChainLink | null> => {
  const filename = info['backing-filename'];
  if (filename === undefined) return null;
  const link = { filename, format: info['backing-filename-format'] ?? null };
  const { path, format } = await gate.resolveLink(link, above.path);
  const shown = besidePath(above.shown, readFileName(filename, above.path).name);
  return { shown, path, format };
};

/** In the words of `qemu-img`: `actualBytes` is what it takes on its host. */
export const toInfo = (
  path: string,
  d: ImageDescription,
  virtualSizeBytes: number,
  actualBytes: number | null,
): ImageInfo => ({
  ...(d.backing === null
    ? {}
    : {
        'backing-filename': d.backing.filename,
        'full-backing-filename': backingPath(path, d.backing.filename),
        ...(d.backing.format === null ? {} : { 'backing-filename-format': d.backing.format }),
      }),
  ...(d.snapshots.length === 0 ? {} : { snapshots: d.snapshots.map(toSnapshotInfo) }),
  'virtual-size': virtualSizeBytes,
  filename: path,
  ...(d.clusterBytes === null ? {} : { 'cluster-size': d.clusterBytes }),
  format: d.format,
  ...(actualBytes === null ? {} : { 'actual-size': actualBytes }),
  ...(d.encrypted ? { encrypted: true as const } : {}),
  ...(d.compressed ? { compressed: true as const } : {}),
  ...(d.formatSpecific === null
    ? {}
    : { 'format-specific': { type: d.format, data: d.formatSpecific } }),
  'dirty-flag': d.dirty,
});

const NANOSECONDS = 1_000_000_000;

/** In the fields of `qemu-img`. */
export const toSnapshotInfo = (s: SnapshotDescription): SnapshotInfo => ({
  id: s.id,
  name: s.name,
  'vm-state-size': s.vmStateBytes,
  'date-sec': s.dateSeconds,
  'date-nsec': s.dateNanoseconds,
  'vm-clock-sec': Math.floor(s.vmClockNanoseconds / NANOSECONDS),
  'vm-clock-nsec': s.vmClockNanoseconds % NANOSECONDS,
  ...(s.icount === null || s.icount === undefined ? {} : { icount: s.icount }),
});

/** The name that a header gives, seen from where the program stands: not normalised, as people wrote it. */
export const backingPath = (imagePath: string, filename: string): string =>
  /^[a-z][a-z0-9+.-]*:/i.test(filename) ? filename : besidePath(imagePath, filename);

const besidePath = (imagePath: string, name: string): string =>
  name.startsWith('/') ? name : imagePath.slice(0, imagePath.lastIndexOf('/') + 1) + name;

const chainError = (path: string, message: string): BlockError =>
  new BlockError({ kind: 'invalid-image', errno: 'ELOOP', message, path, op: 'open' });
