/** Which lines are those of `vdiskfs mount`, before any of their options is looked at. Imports next to nothing. */
import { existsSync } from 'node:fs';
import { COMMANDS } from './command-table.ts';

/** Options of the mount(8) form whose value is a word of its own. */
const VALUE_OPTIONS = new Set(['-o', '-t']);

/** The line, with `mount` in front where it has the form of mount(8). */
export const withMount = (line: readonly string[]): readonly string[] => {
  const words = line.filter((w, i) => !w.startsWith('-') && !VALUE_OPTIONS.has(line[i - 1] ?? ''));
  const [first, second] = words;
  if (first === undefined || second === undefined || Object.hasOwn(COMMANDS, first)) return line;
  const isSource = /[/=]/.test(first) || existsSync(first);
  return isSource ? ['mount', ...line] : line;
};

/**
 * What a line will need as far as a glance tells: a supervisor's process for a daemon, an engine for a mount in the foreground,
 * nothing for others. A wrong guess costs processor time alone.
 */
export const neededBy = (line: readonly string[]): 'supervisor' | 'engine' | null => {
  if (withMount(line)[0] !== 'mount') return null;
  const has = (...words: readonly string[]): boolean => line.some((w) => words.includes(w));
  if (has('--help', '-h')) return null;
  if (!has('--foreground', '-f')) return 'supervisor';
  // What an earlier supervisor has left is not for a child that is started before it is taken.
  return process.env['LISTEN_FDS'] === undefined ? 'engine' : null;
};
