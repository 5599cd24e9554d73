/** What a supervisor does once for its mount: INIT, read-ahead, directories. */
import { mkdirSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { answerInit, type InitOutcome } from '../../mount/kernel/init.ts';
import { toBlockError } from '../base/block-error.ts';
import type { Log } from '../base/log.ts';
import { mountedAt } from './mount-table.ts';

const READ_AHEAD_KIB = 2048;
const INIT_REQUEST_BYTES = 8192 + 4096;

/** Reads INIT, which the kernel sends first and at once, and answers it. */
export const handshake = (descriptor: number, passthrough: boolean): InitOutcome => {
  const request = new Uint8Array(INIT_REQUEST_BYTES);
  const length = readSync(descriptor, request);
  const withhold = process.env['VDISKFS_WITHHOLD_INIT'] ?? '';
  const { outcome, bytes } = answerInit(request.subarray(0, length), { withhold, passthrough });
  writeSync(descriptor, bytes);
  return outcome;
};

/** Somebody may have tidied them away; an engine that cannot have them serves without. */
export const makeRuntimeDirectories = (
  paths: { readonly socketPath: string; readonly journalDirectory: string },
  log: Log,
): void => {
  for (const path of [dirname(paths.socketPath), paths.journalDirectory]) {
    try {
      mkdirSync(path, { recursive: true, mode: 0o700 });
    } catch (error) {
      log.warning(path, toBlockError(error, { op: 'mkdir' }).describe());
    }
  }
};

/** The kernel reads 128 KiB ahead of a sequential reader on FUSE, a quarter of what one request may carry. */
export const widenReadAhead = (mountpoint: string, log: Log): void => {
  try {
    const device = mountedAt(mountpoint)?.device ?? '';
    writeFileSync(`/sys/class/bdi/${device}/read_ahead_kb`, String(READ_AHEAD_KIB));
  } catch (error) {
    log.debug(mountpoint, `read-ahead stays as it is: ${String(error)}`);
  }
};
