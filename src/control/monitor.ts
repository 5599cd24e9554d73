/** Every command of the control socket, put together. */
import { JobError } from '../job/job-error.ts';
import { activityCommands } from './commands/activity.ts';
import { backupCommands } from './commands/backup.ts';
import { basicCommands, EVENTS, VERSION } from './commands/basic.ts';
import { blockCommit } from './commands/block-commit.ts';
import { blockQueries } from './commands/block-queries.ts';
import { blockStream } from './commands/block-stream.ts';
import { blockdevCommands } from './commands/blockdev.ts';
import { dirtyBitmapCommands } from './commands/dirty-bitmaps.ts';
import { blockdevSnapshotSync } from './commands/external-snapshot.ts';
import { jobCommands } from './commands/jobs.ts';
import { mirrorCommands } from './commands/mirror.ts';
import { snapshotCommands } from './commands/snapshots.ts';
import type { ControlContext } from './context.ts';
import { executeHmp } from './hmp.ts';
import {
  checkArguments,
  defineQmp,
  integer,
  introspect,
  optional,
  type QmpCommand,
  text,
} from './schema.ts';
import type { EventMessage, Monitor } from './server.ts';

/** A command, by name, as a client sends it. */
type Execute = (name: string, given: Readonly<Record<string, unknown>>) => Promise<unknown>;

export const createMonitor = (context: ControlContext): Monitor => {
  const commands = new Map<string, QmpCommand<ControlContext>>();
  const execute: Execute = async (name, given) => {
    const command = commands.get(name);
    if (command === undefined) {
      throw new JobError(`The command ${name} has not been found`, 'CommandNotFound');
    }
    return (await command.run(context, checkArguments(command.arguments, given))) ?? {};
  };
  const all = [
    ...basicCommands,
    ...blockQueries,
    ...jobCommands,
    ...blockdevCommands,
    blockStream,
    blockCommit,
    ...mirrorCommands,
    ...backupCommands,
    ...snapshotCommands,
    blockdevSnapshotSync,
    ...dirtyBitmapCommands,
    ...activityCommands,
  ];
  for (const command of [...all, ...aboutCommands(commands), humanMonitor(execute)]) {
    commands.set(command.name, command);
  }
  return {
    version: VERSION,
    execute,
    listen: (sink: (event: EventMessage) => void) =>
      context.jobs.listen((name, data) => sink({ name, data })),
  };
};

const aboutCommands = (
  commands: ReadonlyMap<string, QmpCommand<ControlContext>>,
): readonly QmpCommand<ControlContext>[] => [
  defineQmp({
    name: 'query-commands',
    arguments: {},
    returns: 'CommandInfoList',
    run: () => ['qmp_capabilities', ...commands.keys()].sort().map((name) => ({ name })),
  }),
  defineQmp({
    name: 'query-qmp-schema',
    arguments: {},
    returns: 'SchemaInfoList',
    run: () => introspect([...commands.values()], EVENTS),
  }),
];

const humanMonitor = (execute: Execute): QmpCommand<ControlContext> =>
  defineQmp({
    name: 'human-monitor-command',
    arguments: { 'command-line': text, 'cpu-index': optional(integer) },
    returns: 'str',
    run: (_context: ControlContext, given) => executeHmp(given['command-line'], execute),
  });
