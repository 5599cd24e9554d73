/** The command line: which command it is, and its parsing by yargs, which is loaded only for that. */
import type { Argv } from 'yargs';
import { present } from '../base/assert.ts';
import { type AnyCommand, UsageError } from './command.ts';
import { COMMANDS, type CommandEntry } from './command-table.ts';
import { EXIT } from './exit-codes.ts';
import { withMount } from './mount-form.ts';

/**
 * The line with its command in front: `vdiskfs SOURCE MOUNTPOINT [-o …]`, the form mount(8) and fstab use, is
 * `vdiskfs mount …`. A command's name always wins; a first word that is no path, no URL and no NAME=SOURCE and does
 * not exist is a mistyped command.
 */
export const withCommand = async (line: readonly string[]): Promise<readonly string[]> => {
  const full = withMount(line);
  if (full[0] === 'mount') return (await import('./mount-options.ts')).expandMountLine(full);
  // A size to take off looks like options in one word; with a blank in front it is an argument.
  if (full[0] === 'resize') return full.map((word) => (/^-\d/.test(word) ? ` ${word}` : word));
  return full;
};

const refuseRepeated = (
  parsed: Readonly<Record<string, unknown>>,
  arrays: readonly string[],
): void => {
  for (const [key, value] of Object.entries(parsed)) {
    if (key === '_' || !Array.isArray(value) || arrays.includes(key)) continue;
    throw new UsageError('is given more than once', `${key.length === 1 ? '-' : '--'}${key}`);
  }
};

// One sentence each, beginning small, as the rest of our messages.
const usageMessage = (text: string, entry: CommandEntry | null): string => {
  if (entry !== null && text.startsWith('Not enough non-option arguments'))
    return `needs ${entry.needs ?? requiredIn(entry.synopsis)}`;
  return text
    .trim()
    .replaceAll(/\s*\n\s*/g, ' ')
    .replace(/^./, (c) => c.toLowerCase());
};

/** `<file> <size>` as people write it: FILE SIZE. */
const requiredIn = (synopsis: string): string =>
  [...synopsis.matchAll(/<(?<name>[^>]+)>/g)]
    .map((found) => found.groups?.['name']?.toUpperCase())
    .join(' ');

const MORE_HELP =
  'vdiskfs <command> --help tells the options of a command; vdiskfs --version its version.';

const frame = (yargs: Argv, entry: CommandEntry | null): Argv =>
  yargs
    .scriptName('vdiskfs')
    .usage('$0 <command> [options]\n\nShows virtual disk images as flat raw files.')
    .locale('en')
    .parserConfiguration({
      'camel-case-expansion': false,
      'greedy-arrays': false,
      'parse-positional-numbers': false,
    })
    .strict()
    .demandCommand(1, 'a command is missing')
    .version(false)
    .help()
    .alias('help', 'h')
    .wrap(Math.min(100, process.stdout.columns ?? 100))
    .exitProcess(false)
    .fail((message, error) => {
      throw error ?? new UsageError(usageMessage(message, entry));
    });

/** It takes longest to load of all that a command needs. */
export const yargsModule = (): Promise<typeof import('yargs')> => import('yargs');

/**
 * Parses the line and runs its command; the exit status. `name` and `command` are null when the line names none (it
 * is `--help` or wrong then). Errors: UsageError, and what the command throws.
 */
export const parseAndRun = async (
  line: readonly string[],
  name: string | null,
  command: AnyCommand | null,
): Promise<number> => {
  const { default: yargs } = await yargsModule();
  // The command of a line is all that yargs is told of: the others would only be in its help.
  if (name === null || command === null) {
    const parser = frame(yargs([...line]) as Argv, null);
    for (const { synopsis, summary } of Object.values(COMMANDS)) parser.command(synopsis, summary);
    await parser.epilogue(MORE_HELP).parseAsync();
    return EXIT.success;
  }
  const entry = present(COMMANDS[name], 'it is in the table');
  let outcome: Promise<number> | null = null;
  await frame(yargs([...line]) as Argv, entry)
    .command(
      entry.synopsis,
      entry.summary,
      (y) => {
        y.usage(`vdiskfs ${entry.usage ?? entry.synopsis}\n\n${entry.summary}`);
        const declared = command.declare(y);
        // It would lay out the whole help of each command that runs, for nobody: a tenth of a short one's time.
        inside(y).getInternalMethods().getUsageInstance().cacheHelpMessage = () => undefined;
        const { array: arrays } = inside(declared).getOptions();
        return declared.check((parsed) => {
          refuseRepeated(parsed as Record<string, unknown>, arrays);
          return true;
        });
      },
      (options) => {
        outcome = command.run(options);
        return outcome.then(() => undefined);
      },
    )
    .parseAsync();
  return outcome === null ? EXIT.success : await (outcome as Promise<number>);
};

/** What yargs has and its types do not. */
interface InsideYargs {
  getOptions(): { readonly array: readonly string[] };
  getInternalMethods(): { getUsageInstance(): { cacheHelpMessage: () => void } };
}

const inside = (yargs: unknown): InsideYargs => yargs as InsideYargs;
