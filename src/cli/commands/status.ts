/** `vdiskfs status`: what is mounted, and how each image fares. */
import { mountStatus } from '../../daemon/control-client.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { describeMount } from '../status-table.ts';
import { watchStatus } from '../status-watch.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(yargs)
      .positional('mountpoint', {
        type: 'string',
        describe: 'One mount; all of this machine when left out',
      })
      .option('watch', {
        type: 'boolean',
        default: false,
        describe: 'Look again and again, and show what happens in a second',
      })
      .option('interval', {
        type: 'string',
        default: '1',
        requiresArg: true,
        describe: 'Seconds between two looks of --watch',
      })
      .example('$0 status', 'A table of every mount and its images')
      .example('$0 status --json /mnt/disks', 'One mount, for programs'),
  run: async (options) => {
    const mountpoint = options.mountpoint ?? null;
    if (options.watch) {
      const intervalMs = parseInterval(options.interval);
      await watchStatus({ mountpoint, intervalMs, json: wantsJson(options) });
      return EXIT.success;
    }
    const mounts = await mountStatus(mountpoint);
    if (wantsJson(options)) await printJson(mountpoint === null ? mounts : mounts[0]);
    else if (mounts.length === 0) await print('Nothing is mounted.\n');
    else await print(mounts.map((m) => `${describeMount(m).join('\n')}\n`).join('\n'));
    return EXIT.success;
  },
});

/** Errors: UsageError. */
const parseInterval = (text: string): number => {
  const seconds = Number(text);
  if (text.trim() !== '' && seconds >= 0.1 && seconds <= 3600) return seconds * 1000;
  throw new UsageError(`'${text}' is no number of seconds from 0.1 to 3600`, '--interval');
};
