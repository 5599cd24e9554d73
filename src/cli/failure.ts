/** How a failure is told: one line `vdiskfs: <subject>: <what>[: <what to do>]` on stderr. */
import { BlockError, toBlockError } from '../base/block-error.ts';
import { printable } from '../base/log.ts';
import { UsageError } from './command.ts';

/** The line for anything that a command threw, without its newline. Control characters are escaped. */
export const describeFailure = (thrown: unknown, commandName: string | null): string => {
  const parts = ['vdiskfs', ...partsOf(thrown, commandName)];
  return parts.map(printable).join(': ');
};

const partsOf = (thrown: unknown, commandName: string | null): string[] => {
  if (thrown instanceof UsageError) {
    const help = commandName === null ? 'vdiskfs --help' : `vdiskfs ${commandName} --help`;
    const subject = thrown.subject ?? commandName;
    return [...(subject === null ? [] : [subject]), thrown.message, `see ${help}`];
  }
  const error = thrown instanceof BlockError ? thrown : toBlockError(thrown, ownPath(thrown));
  const subjectless = error.path === undefined && error.node === undefined;
  return [...(subjectless && commandName !== null ? [commandName] : []), error.describe()];
};

// A system error of Node's names its file.
const ownPath = (thrown: unknown): { path?: string } => {
  const path = (thrown as { path?: unknown } | null)?.path;
  return typeof path === 'string' ? { path } : {};
};
