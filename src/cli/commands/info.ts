import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareJson } from '../print.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(yargs)
      .positional('file', { type: 'string', demandOption: true, describe: 'Image file' })
      .example('$0 info disk.qcow2', 'The image, without opening its backing file'),
  run: async (options) => {
    process.stdout.write(`${options.file} ${options.json}\n`);
    return EXIT.success;
  },
});
