/**
 * Opening images for offline work: through the graph, the gate (the image's own directory and what was allowed) and
 * the locks, like a mount does.
 */
import { dirname, resolve } from 'node:path';
import { BlockError, toBlockError } from '../base/block-error.ts';
import { createLog, silentLog } from '../base/log.ts';
import type { DriverDescriptor } from '../block/driver.ts';
import { readFileName } from '../block/file-name.ts';
import { Graph } from '../block/graph.ts';
import type { BackingLink } from '../block/image-description.ts';
import { type ImageLocks, noLocks } from '../block/image-locks.ts';
import { Node } from '../block/node.ts';
import { type OpenGate, openGate, placesBeside } from '../block/open-gate.ts';
import { probeFormat } from '../block/probe.ts';
import type { DriverRegistry } from '../block/registry.ts';
import { type RemoteCredential, splitCredential } from '../block/remote-access.ts';
import { fileNameOfUrl, isUrl, parseUrl, withoutPassword } from '../block/remote-url.ts';
import type { Secrets } from '../block/secrets.ts';
import { snapshotToShow } from '../block/snapshot-names.ts';

/** What every offline command is given by the command line. */
export interface OfflineContext {
  readonly registry: DriverRegistry;
  readonly locks: ImageLocks;
  /** `--backing-dir`: directories and URLs that headers may name files in, besides the image's own. */
  readonly backingDirectories: readonly string[];
  /** `--secret`: keys of encrypted images. */
  readonly secrets: Secrets;
  /** `unsafe`: what is made need not outlive the machine. 'writeback' when it is not given. */
  readonly cache?: 'writeback' | 'unsafe';
  /** What servers may want to see, besides what stands in the image's own URL. */
  readonly credentials?: readonly RemoteCredential[];
}

/** An opened image with its chain; closes with `using`. */
export interface OpenedImage extends AsyncDisposable {
  readonly root: Node;
}

/** Offline work streams through an image once: a small cache of metadata is enough. */
const CACHE_BYTES = 8 << 20;

/** The gate of an image: its own directory and the allowed ones. */
export const gateFor = (path: string, context: OfflineContext): Promise<OpenGate> =>
  openGate([...placesBeside(path), ...context.backingDirectories]);

/** Errors: EINVAL for a URL with user or password: they would stand in the image, for everybody to read. */
export const refusePassword = (link: BackingLink | null, path: string): void => {
  if (link === null || !isUrl(link.filename)) return;
  const { username, password } = parseUrl(link.filename);
  if (username === '' && password === '') return;
  throw new BlockError({
    kind: 'bad-request',
    message: 'the URL of its backing image would put a user or password into the image',
    hint: 'leave them out, and give them in the URL of --backing-dir',
    path: withoutPassword(path),
  });
};

interface Place {
  /** A URL has no user and password here. */
  readonly path: string;
  readonly credentials: readonly RemoteCredential[];
}

const placeOf = (given: string, context: OfflineContext): Place => {
  const credentials = context.credentials ?? [];
  if (!isUrl(given)) return { path: given, credentials };
  const { url, credential } = splitCredential(given);
  return {
    path: url,
    credentials: credential === null ? credentials : [credential, ...credentials],
  };
};

/** A file of this name is never probed: its first bytes are its guest's to write. */
const RAW_NAME = /\.raw$/i;

const declaredFormat = (path: string, format: string | null): string | null =>
  format ?? (RAW_NAME.test(isUrl(path) ? fileNameOfUrl(path) : path) ? 'raw' : null);

export interface OpenOptions {
  /** The top of the chain is opened for writing. */
  readonly writable?: boolean;
  /** The image alone. */
  readonly withoutBacking?: boolean;
  /** Only the mapping is wanted: encrypted images need no key. */
  readonly withoutKey?: boolean;
  /** An internal snapshot in place of the image, as `convert -l` names it; read-only. */
  readonly snapshot?: string | null;
}

/**
 * Opens an image and its backing chain, read-only unless told otherwise. `format` null probes, but for a name that ends
 * in `.raw`. Errors: those of `Graph.open`; a lock that another program holds is EBUSY.
 */
export const openImage = async (
  given: string,
  format: string | null,
  context: OfflineContext,
  options: OpenOptions = {},
): Promise<OpenedImage> => {
  const { path, credentials } = placeOf(given, context);
  const graph = new Graph({
    registry: context.registry,
    gate: await gateFor(path, context),
    locks: context.locks,
    // Opening for writing may repair: that is told.
    log: options.writable === true ? createLog({ level: 'warning' }) : silentLog,
    cache: 'writeback',
    cacheBytes: CACHE_BYTES,
    discard: 'unmap',
    secrets: options.withoutKey === true ? null : context.secrets,
    journalFor: null,
    credentials,
  });
  const wanted = options.snapshot ?? null;
  const root = await graph.open({
    path,
    format: declaredFormat(path, format),
    readOnly: options.writable !== true,
    withoutBacking: options.withoutBacking === true,
    ...(wanted === null ? {} : { snapshot: await snapshotId(given, format, context, wanted) }),
  });
  return { root, [Symbol.asyncDispose]: () => graph.close(root) };
};

const snapshotId = async (
  path: string,
  format: string | null,
  context: OfflineContext,
  wanted: string,
): Promise<string> => {
  await using opened = await openFile(path, format, context);
  const description = await opened.format.inspect?.(opened.file, path);
  try {
    return snapshotToShow(description?.snapshots ?? [], wanted).id;
  } catch (error) {
    throw toBlockError(error, { path });
  }
};

/** The image that `path` is to have as backing file. Errors: as `openImage`; those of `readFileName`. */
export const openBackingOf = (
  path: string,
  { filename, format }: BackingLink,
  context: OfflineContext,
): Promise<OpenedImage> => {
  const { name, isPath, format: said } = readFileName(filename, path);
  const isWhole = !isPath && isUrl(name);
  return openImage(isWhole ? name : resolve(dirname(path), name), format ?? said, context);
};

/** Several opened images; closes them all with `using`. */
export interface OpenedImages extends AsyncDisposable {
  readonly roots: readonly Node[];
}

/** `openImage` for each path. Errors: the first one's; none stays open then. */
export const openImages = async (
  paths: readonly string[],
  format: string | null,
  context: OfflineContext,
  options: OpenOptions = {},
): Promise<OpenedImages> => {
  const opened: OpenedImage[] = [];
  const dispose = async (): Promise<void> => {
    for (const image of opened) await image[Symbol.asyncDispose]();
  };
  try {
    for (const path of paths) opened.push(await openImage(path, format, context, options));
  } catch (error) {
    await dispose();
    throw error;
  }
  return { roots: opened.map(({ root }) => root), [Symbol.asyncDispose]: dispose };
};

/** The file of an image, opened below any format; closes with `using`. */
export interface OpenedFile extends AsyncDisposable {
  readonly file: Node;
  /** The declared or probed format. */
  readonly format: DriverDescriptor;
}

/**
 * Opens the image's own file alone, for work on its header and tables (`info`, `check`), read-only unless told otherwise. No other file is opened.
 * Errors: EBUSY for a lock, those of the host, kind invalid-image for a file that two formats claim.
 */
export const openFile = async (
  given: string,
  format: string | null,
  context: OfflineContext,
  options: { readonly writable?: boolean } = {},
): Promise<OpenedFile> => {
  const readOnly = options.writable !== true;
  const { path, credentials } = placeOf(given, context);
  const { registry } = context;
  const descriptor = registry.protocolFor(path);
  const locks = isUrl(path) ? noLocks : context.locks;
  const lock = await locks.acquire(path, readOnly ? 'read' : 'write');
  const file = new Node({ name: 'file', path, descriptor, readOnly, file: null });
  try {
    const request = {
      path,
      readOnly,
      create: false,
      cache: 'writeback',
      log: silentLog,
      credentials,
    } as const;
    const driver = await descriptor.openPath?.(request);
    if (driver !== undefined) file.attach(driver);
    const declared = declaredFormat(path, format);
    const found =
      declared === null
        ? ((await probeFormat(registry, file, path)) ?? registry.format('raw'))
        : registry.format(declared);
    return {
      file,
      format: found,
      [Symbol.asyncDispose]: async () => {
        try {
          await file.close();
        } finally {
          await lock.release();
        }
      },
    };
  } catch (error) {
    await file.close();
    await lock.release();
    throw error;
  }
};
