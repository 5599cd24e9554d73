/** Jobs that earlier engines, or earlier mounts of the same images, have left. */
import { BlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { DRIVE_BACKUP_ARGUMENTS, startDriveBackup } from '../control/commands/backup.ts';
import { COMMIT_ARGUMENTS, startCommit } from '../control/commands/block-commit.ts';
import { STREAM_ARGUMENTS, startStream } from '../control/commands/block-stream.ts';
import { DRIVE_MIRROR_ARGUMENTS, startDriveMirror } from '../control/commands/mirror.ts';
import { type ControlContext, chainOf, type Device } from '../control/context.ts';
import { checkArguments } from '../control/schema.ts';
import { CANCELLED_TEXT, JobError } from '../job/job-error.ts';
import type { JobType } from '../job/job-info.ts';
import type { JobRecord, JobResult } from '../job/job-store.ts';

/**
 * Starts again what an earlier engine, or an earlier mount of these images, was doing; `imagePath`: on that image alone.
 * Never throws.
 */
export const takeUpJobs = async (
  context: ControlContext,
  log: Log,
  imagePath: string | null = null,
): Promise<void> => {
  const devices = await context.devices();
  const records =
    imagePath === null ? await context.store.load() : context.store.recordsOf(imagePath);
  for (const record of records) {
    // What is left here is the next engine's.
    if (context.jobs.isClosed) return;
    // It has not ended, or is there to be dismissed.
    if (context.jobs.get(record.id) !== null) continue;
    if (record.result !== null && isDismissedByItself(record)) {
      tellEnd(record, record.result, log);
      context.store.forget(record.id);
      continue;
    }
    const device = devices.find(
      (d) => d.path === record.imagePath || d.originalPath === record.imagePath,
    );
    // Of an image that is not here: it may be back with the next mount.
    if (device === undefined) {
      log.warning(record.id, `its image '${record.imagePath}' is not here: the job waits`);
      context.keptBitmaps.giveUp(record.imagePath);
      continue;
    }
    if (device.view.isHeld) {
      log.info(record.id, 'its image is inactive: the job waits');
      context.keptBitmaps.giveUp(record.imagePath);
      continue;
    }
    if (hasPivoted(record, device)) {
      context.keptBitmaps.giveUp(record.imagePath);
      conclude(context, record, { type: TYPES[record.command] ?? 'mirror', error: null });
      log.info(record.id, `had ended: its view goes on over '${device.path}'`);
      continue;
    }
    try {
      if (await hasLeftChain(record, device)) {
        conclude(context, record, { type: 'commit', error: null });
        log.info(record.id, 'had ended');
        continue;
      }
      const given = { ...record.arguments, device: device.name };
      const said = await takeUp(context, { ...record, arguments: given });
      if (record.result === null) log.info(record.id, `${said}${record.paused ? ', paused' : ''}`);
    } catch (error) {
      // The list took it no more, or nobody waits any longer for what it needs: it has not failed.
      if (context.jobs.isClosed) return;
      const reason = error instanceof Error ? error.message : String(error);
      context.keptBitmaps.giveUp(record.imagePath);
      const type = TYPES[record.command];
      const isOver = type !== undefined && type !== 'mirror' && isFinal(error);
      const text = `cannot go on after a restart: ${reason}`;
      if (isOver) conclude(context, record, { type, error: text });
      // An image may be locked, or its server away, for a while: the record stays.
      const outlook = isOver ? 'cannot go on' : 'cannot go on, the next mount tries again';
      log.error(record.id, `${outlook}: ${reason}`);
    }
  }
  if (imagePath === null && !context.jobs.isClosed) context.keptBitmaps.giveUpRest();
};

const isDismissedByItself = ({ arguments: given }: JobRecord): boolean =>
  given['auto-dismiss'] !== false;

/** Nobody waits for the result, and perhaps nobody has heard of it: the mount ended, or the engine died. */
const tellEnd = (record: JobRecord, { error }: JobResult, log: Log): void => {
  const { id, command, arguments: given } = record;
  const { sync, target } = given;
  if (error === null) log.info(id, 'had ended');
  else if (error !== CANCELLED_TEXT) log.error(id, `had failed: ${error}`);
  else if (command !== 'drive-backup') log.info(id, 'was cancelled');
  // Its end is to be cancelled, and the target has what guests have overwritten until then.
  else if (sync === 'none')
    log.info(id, `had ended with the mount before: '${target}' is complete`);
  else log.warning(id, `was cancelled when the mount before ended: '${target}' is no whole backup`);
};

/** Of jobs that are given up when they cannot go on, or are known to have ended. */
const TYPES: Readonly<Record<string, JobType>> = {
  'drive-backup': 'backup',
  'drive-mirror': 'mirror',
  'block-commit': 'commit',
};

/** A bitmap that was not saved, a target that does not fit: the next mount would find the same. */
const isFinal = (error: unknown): boolean =>
  error instanceof JobError || (error instanceof BlockError && error.kind === 'bad-request');

/** The engine died when the view had its new place, and nobody had heard of it yet. */
const hasPivoted = ({ command, result, arguments: given }: JobRecord, device: Device): boolean => {
  if (result !== null) return false;
  if (command === 'drive-mirror') return given['target'] === device.path;
  return command === 'block-commit' && given['top'] === undefined && given['base'] === device.path;
};

/** The same of a commit of layers, when the header that is changed last was. */
const hasLeftChain = async (
  { command, result, arguments: given }: JobRecord,
  device: Device,
): Promise<boolean> => {
  const top = given['top'];
  if (command !== 'block-commit' || result !== null || top === undefined) return false;
  const paths = chainOf(await device.view.open()).map((node) => node.path);
  return paths.includes(String(given['base'])) && !paths.includes(String(top));
};

/** A client that waits for the result finds it. */
const conclude = (
  context: ControlContext,
  record: JobRecord,
  { type, error }: { readonly type: JobType; readonly error: string | null },
): void => {
  if (isDismissedByItself(record)) {
    context.store.forget(record.id);
    return;
  }
  const ended = { ...record, result: { error, offset: 0, lengthBytes: 0 } };
  context.store.keep(ended);
  restore(context, ended, type);
};

/** What to say of it. */
const takeUp = async (context: ControlContext, record: JobRecord): Promise<string> => {
  const { paused, result } = record;
  switch (record.command) {
    case 'block-stream': {
      const given = checkArguments(STREAM_ARGUMENTS, record.arguments);
      if (result === null) await startStream(context, given, { paused });
      else restore(context, record, 'stream');
      return 'goes on';
    }
    case 'drive-mirror': {
      const given = checkArguments(DRIVE_MIRROR_ARGUMENTS, record.arguments);
      if (result !== null) {
        restore(context, record, 'mirror');
        return '';
      }
      const { resumes } = await startDriveMirror(context, given, { paused, again: true });
      return resumes
        ? 'goes on with what its target lacks'
        : 'begins again: what its target lacks was known to the engine before alone';
    }
    case 'block-commit': {
      const given = checkArguments(COMMIT_ARGUMENTS, record.arguments);
      if (result === null) await startCommit(context, given, { paused });
      else restore(context, record, 'commit');
      return 'begins again with what the layers have';
    }
    case 'drive-backup': {
      const given = checkArguments(DRIVE_BACKUP_ARGUMENTS, record.arguments);
      if (result === null) await startDriveBackup(context, given, { paused, isTakenUp: true });
      else restore(context, record, 'backup');
      return 'starts again: the moment that it copied is over';
    }
    default:
      throw new BlockError({
        kind: 'unsupported',
        message: `a job of an unknown kind: '${record.command}'`,
      });
  }
};

const restore = (context: ControlContext, record: JobRecord, type: JobType): void => {
  const { id, result } = record;
  if (result === null) return;
  context.jobs.restore(
    {
      id,
      type,
      speed: 0,
      autoFinalize: true,
      autoDismiss: false,
      dismissed: (job) => context.store.forget(job.id),
    },
    result,
  );
};
