/** One command line: finds the command, loads it alone, and turns the outcome into one line and an exit status. */
import { readFileSync } from 'node:fs';
import { type AnyCommand, UsageError } from './command.ts';
import { parseAndRun, withCommand, yargsModule } from './command-line.ts';
import { COMMANDS } from './command-table.ts';
import { EXIT } from './exit-codes.ts';
import { describeFailure } from './failure.ts';
import { print } from './print.ts';

const version = (): string => {
  const text = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
};

/** The exit status. Never throws: what goes wrong is told on stderr. */
export const runLine = async (given: readonly string[]): Promise<number> => {
  let name: string | null = null;
  let command: AnyCommand | null = null;
  try {
    const line = await withCommand(given);
    const first = line[0];
    name = first !== undefined && Object.hasOwn(COMMANDS, first) ? first : null;
    if (first === '--version') {
      await print(`vdiskfs ${version()}\n`);
      return EXIT.success;
    }
    if (first !== undefined && name === null && !first.startsWith('-')) {
      throw new UsageError('is no command', first);
    }
    const [loaded] = await Promise.all([
      name === null ? null : COMMANDS[name]?.load(),
      yargsModule(),
    ]);
    command = loaded ?? null;
    return await parseAndRun(line, name, command);
  } catch (thrown) {
    process.stderr.write(`${describeFailure(thrown, name)}\n`);
    return thrown instanceof UsageError
      ? (command?.usageExit ?? EXIT.usage)
      : (command?.failureExit ?? EXIT.failure);
  }
};
