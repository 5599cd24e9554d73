/**
 * Making images: `vdiskfs create`. Everything that can be refused is refused before FILE is touched; an image that
 * cannot be finished is removed.
 */
import { isUtf8 } from 'node:buffer';
import { open, stat, unlink } from 'node:fs/promises';
import { basename } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { silentLog } from '../base/log.ts';
import { alignUp } from '../base/range.ts';
import type { DriverDescriptor } from '../block/driver.ts';
import { identify } from '../block/file-identity.ts';
import type { CreatePlan } from '../block/image-creation.ts';
import type { BackingLink } from '../block/image-description.ts';
import { Node } from '../block/node.ts';
import { isUrl, withoutPassword } from '../block/remote-url.ts';
import type { Secret } from '../block/secrets.ts';
import { chainOf } from './chain.ts';
import { type NamedDataFile, openNamedDataFile } from './named-data-file.ts';
import { type OfflineContext, openBackingOf, refusePassword } from './open.ts';

export interface CreateImageRequest {
  readonly path: string;
  readonly format: string;
  /** Null: as large as the backing image. Rounded up to whole sectors of 512 bytes, as `qemu-img` does. */
  readonly virtualSizeBytes: number | null;
  /** Checked by `checkOptions`. */
  readonly options: ReadonlyMap<string, string>;
  /** The name as it goes into the header, relative to the image's directory. */
  readonly backing: BackingLink | null;
  /** The backing image is not opened; it need not exist. A size is needed then. */
  readonly withoutOpeningBacking: boolean;
}

const SECTOR_BYTES = 512;

/**
 * Makes an image, over a file of that name if there is one (never over one that another program holds). Returns its
 * virtual size. Errors: EINVAL naming the option, EBUSY (locked), ENOSPC, those of opening the backing chain.
 */
export const createImage = async (
  request: CreateImageRequest,
  context: OfflineContext,
): Promise<number> => {
  const { path } = request;
  const descriptor = context.registry.format(request.format);
  refusePassword(request.backing, path);
  const refused = reasonToRefuse(request, descriptor);
  if (refused !== null) throw wrong(refused, withoutPassword(path));
  await using backing = await openBacking(request, context);
  await using dataFile = await openNamedDataFile(request, descriptor, context);
  const virtualSizeBytes = sizeOf(request, dataFile, backing?.root ?? null);
  const plan: CreatePlan = {
    path,
    virtualSizeBytes,
    backing: linkOf(request, descriptor, backing?.root ?? null),
    options: request.options,
  };
  descriptor.checkCreate?.(plan, dataFile?.root ?? null);
  const secret = await secretOf(plan, context);
  await refuseOwnChain(path, backing?.root ?? null);
  if (dataFile !== null) {
    await refuseOwnChain(path, dataFile.root);
    await refuseOwnChain(dataFile.root.path, backing?.root ?? null);
  }
  await syncChain(backing?.root ?? null);
  await writeImage({ ...plan, secret }, descriptor, dataFile?.root ?? null, context);
  dataFile?.keep();
  return virtualSizeBytes;
};

/** Where the header has the format of the backing image, and nobody named it, what it was found to be. */
const linkOf = (
  { backing }: CreateImageRequest,
  descriptor: DriverDescriptor,
  opened: Node | null,
): BackingLink | null => {
  if (backing === null || backing.format !== null || opened === null) return backing;
  return descriptor.recordsBackingFormat === true
    ? { ...backing, format: opened.descriptor.name }
    : backing;
};

// A data file that is there has its size in bytes; others come in sectors, as `qemu-img` has them.
const sizeOf = (
  request: CreateImageRequest,
  dataFile: NamedDataFile | null,
  backing: Node | null,
): number => {
  const given = dataFile === null || dataFile.isNew ? null : dataFile.root.lengthBytes;
  const wanted = request.virtualSizeBytes ?? given ?? backing?.lengthBytes ?? null;
  if (wanted === null)
    throw wrong('a size is needed: there is no backing image to take it from', request.path);
  return wanted === given ? wanted : alignUp(wanted, SECTOR_BYTES);
};

const reasonToRefuse = (r: CreateImageRequest, d: DriverDescriptor): string | null => {
  if (d.create === undefined) return `format ${d.name} cannot be created`;
  if (isUrl(r.path)) return 'images are made as files of this machine, not on a server';
  if (r.backing === null) return null;
  if (d.capabilities.backing !== true) return `format ${d.name} has no backing files`;
  if (r.backing.filename === '') return 'the name of the backing file is empty';
  return null;
};

const openBacking = async (request: CreateImageRequest, context: OfflineContext) => {
  const { backing, path, withoutOpeningBacking } = request;
  if (backing === null || withoutOpeningBacking) return null;
  // The person names the first one, so it needs no permission; what its header names does.
  return openBackingOf(path, backing, context);
};

// An overlay that outlives a power cut names a chain that has outlived it too.
const syncChain = async (backing: Node | null): Promise<void> => {
  for (const node of chainOf(backing)) {
    if (isUrl(node.path)) continue;
    const file = await open(node.path, 'r');
    try {
      await file.datasync();
    } finally {
      await file.close();
    }
  }
};

// Overwriting an image that the new one is to stand on would leave neither.
const refuseOwnChain = async (path: string, backing: Node | null): Promise<void> => {
  const own = await identify(path).catch((error: unknown) => {
    if (toBlockError(error).errno === 'ENOENT') return null;
    throw error;
  });
  if (own === null) return;
  for (const node of chainOf(backing)) {
    const below = await identify(node.path);
    if (below.device === own.device && below.inode === own.inode) {
      throw wrong(`is in its own backing chain (as '${basename(node.path)}')`, path);
    }
  }
};

/** The option by which formats name a secret. */
const KEY_OPTION = 'encrypt.key-secret';

// QEMU takes nothing but text for a passphrase: what it could not open is not made.
const secretOf = async (plan: CreatePlan, context: OfflineContext): Promise<Secret | null> => {
  const id = plan.options.get(KEY_OPTION);
  if (id === undefined) return null;
  const secret = await context.secrets.byId(id);
  if (secret === null) throw wrong(`${KEY_OPTION}: there is no secret '${id}'`, plan.path);
  if (!isUtf8(secret.bytes) || secret.bytes.includes(0))
    throw wrong(`${KEY_OPTION}: the key of secret '${id}' is no text in UTF-8`, plan.path);
  return secret;
};

const writeImage = async (
  plan: CreatePlan & { readonly secret: Secret | null },
  descriptor: DriverDescriptor,
  dataFile: Node | null,
  context: OfflineContext,
): Promise<void> => {
  const { path } = plan;
  const target = await openTarget(path, context);
  const { file } = target;
  // An existing file is ours to remove from the moment its content is gone.
  let ours = target.isNew;
  try {
    const lock = await context.locks.acquire(path, 'write');
    try {
      ours = true;
      await file.resize(0);
      await descriptor.create?.({ ...plan, file, dataFile });
      await file.flush();
    } finally {
      await lock.release();
    }
    await file.close();
  } catch (error) {
    await file.close().catch(() => undefined);
    if (ours) await unlink(path).catch(() => undefined);
    throw error;
  }
};

interface Target {
  readonly file: Node;
  readonly isNew: boolean;
}

const openTarget = async (path: string, context: OfflineContext): Promise<Target> => {
  const descriptor = context.registry.protocol('file');
  const open = async (isNew: boolean): Promise<Target> => {
    const request = {
      path,
      readOnly: false,
      create: isNew,
      cache: context.cache ?? 'writeback',
      log: silentLog,
    };
    const driver = await descriptor.openPath?.(request);
    if (driver === undefined) throw wrong('no driver opens it', path);
    const file = new Node({ name: 'file', path, descriptor, readOnly: false, file: null });
    file.attach(driver);
    return { file, isNew };
  };
  try {
    return await open(true);
  } catch (error) {
    if (toBlockError(error).errno !== 'EEXIST') throw error;
  }
  const s = await stat(path);
  if (!s.isFile()) throw wrong('exists and is no regular file', path);
  return open(false);
};

const wrong = (message: string, path: string): BlockError =>
  new BlockError({ kind: 'bad-request', message, path, op: 'create' });
