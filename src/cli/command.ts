/**
 * What a command is. A command is one file `src/cli/commands/<name>.ts` that exports `command`, and one line in
 * `command-table.ts`, which holds what `vdiskfs --help` says of it: the file itself is loaded only when it runs.
 *
 * `run` returns the exit status. It throws `UsageError` for what the person typed wrong and anything else (a
 * `BlockError` as a rule) for what failed; `main.ts` prints either as one line of stderr and exits.
 */
import type { Argv } from 'yargs';

export interface Command<Options> {
  /**
   * Declares arguments and options, defaults and an example. Positional arguments are named in the synopsis of the
   * table. An option is repeatable only when it is declared with `array: true`; any other given twice is refused.
   */
  readonly declare: (yargs: Argv) => Argv<Options>;
  /** Returns the exit status (see exit-codes.ts). */
  readonly run: (options: Options) => Promise<number>;
  /** Exit status of a thrown failure; 1 when not given. */
  readonly failureExit?: number;
  /** Exit status of bad usage; 2 when not given. */
  readonly usageExit?: number;
}

/** Keeps the options' type from `declare` to `run`. */
export const defineCommand = <Options>(command: Command<Options>): Command<Options> => command;

/** A command whose options' type only its own file knows. */
export type AnyCommand = Command<unknown>;

/** Bad usage: exit status 2, and a pointer to `--help`. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
  /** The option, argument or command it is about; null when it is about the whole line. */
  readonly subject: string | null;

  constructor(message: string, subject: string | null = null) {
    super(message);
    this.subject = subject;
  }
}
