/** What commands write to stdout: text for people, or one JSON document. Logs and errors never go there. */
import type { Argv } from 'yargs';

/**
 * Resolves when the text is handed over: true, or false when the reader went away (`| head`), which is no failure, but
 * a reason to print no more. Errors: what the host says (ENOSPC).
 */
export const print = (text: string): Promise<boolean> =>
  new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => {
      if (error === null || error === undefined) resolve(true);
      else if ((error as NodeJS.ErrnoException).code === 'EPIPE') resolve(false);
      else reject(error);
    });
  });

/** One JSON document, indented as `qemu-img --output=json` does it. */
export const printJson = (document: unknown): Promise<boolean> =>
  print(`${JSON.stringify(document, null, 4)}\n`);

/** `--json`, and `--output` for those whose fingers know `qemu-img`. */
export const declareJson = <T>(yargs: Argv<T>) =>
  yargs
    .option('json', {
      type: 'boolean',
      default: false,
      describe: 'Print one JSON document, its fields named as qemu-img names them',
    })
    .option('output', {
      choices: ['human', 'json'] as const,
      requiresArg: true,
      describe: 'The same choice as qemu-img spells it [default: human]',
    });

/** Whether JSON is asked for. */
export const wantsJson = (options: {
  readonly json: boolean;
  readonly output?: 'human' | 'json' | undefined;
}): boolean => options.json || options.output === 'json';
