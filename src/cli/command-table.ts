/** The commands there are: the only list. Each file is loaded when its command runs, so that start-up stays fast. */
import type { AnyCommand, Command } from './command.ts';

export interface CommandEntry {
  /** As yargs spells it: `<required>`, `[optional]`, `<many..>`. */
  readonly synopsis: string;
  /** As `--help` shows it, when yargs' spelling does not say it well. */
  readonly usage?: string;
  /** One line of `vdiskfs --help`. */
  readonly summary: string;
  readonly load: () => Promise<AnyCommand>;
}

// Each command is called with what its own declaration parsed, so forgetting the options' type here is safe.
const erase = <Options>(command: Command<Options>): AnyCommand => command as unknown as AnyCommand;

export const COMMANDS: Readonly<Record<string, CommandEntry>> = {
  info: {
    synopsis: 'info <file>',
    summary: 'Show what an image is: format, sizes, backing chain, snapshots',
    load: async () => erase((await import('./commands/info.ts')).command),
  },
};
