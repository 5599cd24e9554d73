/** Commands about the program and the socket itself. */
import type { ControlContext } from '../context.ts';
import { defineQmp, type QmpCommand } from '../schema.ts';

/** The behaviour that is followed, and who follows it. */
export const VERSION = {
  qemu: { micro: 0, minor: 2, major: 7 },
  package: 'vdiskfs-0.1.0',
} as const;

/** Every event that is sent: the only list. */
export const EVENTS = [
  'BLOCK_JOB_CANCELLED',
  'BLOCK_JOB_COMPLETED',
  'BLOCK_JOB_ERROR',
  'BLOCK_JOB_PENDING',
  'BLOCK_JOB_READY',
  'JOB_STATUS_CHANGE',
] as const;

export const basicCommands: readonly QmpCommand<ControlContext>[] = [
  defineQmp({
    name: 'query-version',
    arguments: {},
    returns: 'VersionInfo',
    run: () => VERSION,
  }),
  defineQmp({
    name: 'query-status',
    arguments: {},
    returns: 'StatusInfo',
    run: () => ({ running: true, singlestep: false, status: 'running' }),
  }),
  defineQmp({
    name: 'query-events',
    arguments: {},
    returns: 'EventInfoList',
    run: () => EVENTS.map((name) => ({ name })),
  }),
  defineQmp({
    name: '__vdiskfs_status',
    arguments: {},
    returns: 'VdiskfsStatus',
    run: (context: ControlContext) => context.status(),
  }),
  defineQmp({
    name: 'quit',
    arguments: {},
    returns: 'nothing',
    run: (context: ControlContext) => {
      context.quit();
      return {};
    },
  }),
];
