/**
 * Opening a qcow2 image: its header, what has to be mended before it is written, its tables, what snapshots keep, its bitmaps, and the
 * restart journal of the engine before.
 */
import { BlockError } from '../../src/base/block-error.ts';
import type { DriverInstance, OpenRequest } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import { checkImageFile } from './check-image.ts';
import { runCheckpoint } from './checkpoint.ts';
import { type Qcow2Header, readHeader, refuseUnsupported } from './header.ts';
import { Qcow2Image } from './image.ts';
import { dropForeignJournal } from './journal-mark.ts';
import { AES_READ_ONLY, CRYPT_METHOD, INCOMPATIBLE } from './layout.ts';
import { takeUpOwedHeader } from './owed-header.ts';
import { replayJournal } from './replay.ts';
import { readSavedMetadata } from './saved-metadata.ts';
import { snapshotHeader } from './snapshot-view.ts';
import { ImageState } from './state.ts';

/** Errors: kind invalid-image, unsupported; EROFS for one that must be repaired before it is written. */
export const openQcow2 = async (asked: OpenRequest): Promise<DriverInstance> => {
  const request = withOneDataFile(asked);
  if (!request.readOnly) {
    await dropForeignJournal(request);
    await takeUpOwedHeader(request);
  }
  let header = await readHeader(request.file, request.path);
  refuseUnsupported(header, request.path);
  if (!request.readOnly && header.cryptMethod === CRYPT_METHOD.aes)
    throw oldEncryption(request.path);
  const isRepaired = !request.readOnly && isMarked(header, 'dirty') && !isMarked(header, 'corrupt');
  if (isRepaired) {
    await takeUpBeforeRepair(request, header);
    await repairDirty(request);
    header = await readHeader(request.file, request.path);
  }
  if (!request.readOnly) refuseUnrepaired(header, request.path);
  if (request.snapshot !== null) header = await snapshotHeader(request, header, request.snapshot);
  return load(request, header, { takesUp: !request.readOnly && !isRepaired });
};

/** It is opened once, however often it is asked for. */
const withOneDataFile = (request: OpenRequest): OpenRequest => {
  let opened: Promise<Node> | null = null;
  return {
    ...request,
    openDataFile: (link) => {
      opened ??= request.openDataFile(link);
      return opened;
    },
  };
};

/**
 * The restart journal goes by COPIED flags and refcounts as they were, and the repair makes others of them: after it, words that nobody
 * else has touched would look like another program's. It makes no use of what it finds: nothing is allocated or given back, and where
 * refcounts are too low (a program that brings them up to date later was killed) a cluster that both took is counted twice by the
 * repair, and written in place by nobody. Cut or killed in the middle, the image is still marked, and what the journal
 * has is on disk in part, or it is forgotten: then the next opening goes on.
 */
const takeUpBeforeRepair = async (request: OpenRequest, header: Qcow2Header): Promise<void> => {
  if ((request.journal?.leftover ?? []).length === 0) return;
  // No guest's byte is read: it needs no key.
  const state = await ImageState.load({ ...request, secrets: null }, header, () =>
    runCheckpoint(state, { tail: NO_TAIL, release: () => undefined }),
  );
  try {
    await readSavedMetadata(state);
    await takeUpJournal(state);
  } finally {
    state.data.close();
  }
};

const NO_TAIL = { begin: () => undefined, end: async () => undefined };

const load = async (
  request: OpenRequest,
  header: Qcow2Header,
  { takesUp }: { readonly takesUp: boolean },
): Promise<DriverInstance> => {
  let image: Qcow2Image | null = null;
  const state = await ImageState.load(request, header, async () => {
    await image?.checkpoint();
  });
  image = new Qcow2Image(state);
  if (!request.readOnly) await readSavedMetadata(state);
  if (request.snapshot === null) await image.loadBitmaps();
  try {
    if (takesUp) await takeUpJournal(state);
  } catch (error) {
    state.data.close();
    throw error;
  }
  return image;
};

/** What an engine that was killed has answered: in the image before the first request. */
const takeUpJournal = async (state: ImageState): Promise<void> => {
  if (await replayJournal(state)) await state.schedule.request();
};

const isMarked = (header: Qcow2Header, bit: 'dirty' | 'corrupt'): boolean =>
  (header.incompatible & INCOMPATIBLE[bit]) !== 0;

const oldEncryption = (path: string): BlockError =>
  new BlockError({
    kind: 'read-only',
    message: `is only read: it ${AES_READ_ONLY}`,
    hint: 'copy it with vdiskfs convert, to one that is encrypted with LUKS',
    path,
    op: 'open',
  });

/** The program that wrote it last was not able to bring its refcounts up to date. The bit stays when it is not mended. */
const repairDirty = async ({ file, path, log }: OpenRequest): Promise<void> => {
  const found = await checkImageFile({ file, path, repair: 'all' });
  const mended = `${found.corruptionsFixed} corruptions and ${found.leaksFixed} leaks were mended`;
  const left = found.corruptions + found.checkErrors;
  const rest = left === 0 ? '' : `, ${left} errors are left`;
  log.warning(path, `was not closed cleanly: ${mended}${rest}`);
};

const refuseUnrepaired = (header: Qcow2Header, path: string): void => {
  const isCorrupt = isMarked(header, 'corrupt');
  if (!isCorrupt && !isMarked(header, 'dirty')) return;
  throw new BlockError({
    kind: 'read-only',
    message: isCorrupt
      ? 'is marked corrupt'
      : 'was not closed cleanly, and its refcounts could not be mended',
    hint: isCorrupt
      ? 'repair it with vdiskfs check -r all, or open it read-only'
      : 'repair it with qemu-img check -r all, or open it read-only',
    path,
    op: 'open',
  });
};
