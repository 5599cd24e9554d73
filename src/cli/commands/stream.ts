/** `vdiskfs stream`: copies what lies below an image into it, while it is used. */
import { resolve } from 'node:path';
import { defineCommand } from '../command.ts';
import { declareWait, runJob } from '../job-wait.ts';
import { connectToDevice } from '../mounted-device.ts';
import { declareJson, wantsJson } from '../print.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareWait(declareJson(yargs))
      .positional('view', {
        type: 'string',
        demandOption: true,
        describe: 'Path of the view in its mount',
      })
      .option('base', {
        type: 'string',
        requiresArg: true,
        describe: 'Image of the chain that stays below [default: none stays]',
      })
      .option('speed', {
        type: 'string',
        requiresArg: true,
        describe: 'Bytes a second at most [default: no limit]',
      })
      .option('on-error', {
        choices: ['report', 'stop', 'ignore', 'enospc'] as const,
        default: 'report' as const,
        requiresArg: true,
        describe: 'When a read or write fails: end, pause, go on, pause when the disk is full',
      })
      .example(
        '$0 stream --wait /mnt/disks/vm.raw',
        'Make vm.qcow2 independent of its backing files',
      ),
  run: async (options) => {
    const mounted = await connectToDevice(options.view);
    try {
      const given = {
        'on-error': options['on-error'],
        ...(options.base === undefined ? {} : { base: resolve(options.base) }),
        ...(options.speed === undefined ? {} : { speed: parseSize(options.speed, '--speed') }),
      };
      const { wait } = options;
      return await runJob(mounted, 'block-stream', given, { wait, json: wantsJson(options) });
    } finally {
      mounted.client.close();
    }
  },
});
