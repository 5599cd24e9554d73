/** `vdiskfs jobs`: what works in the background. */
import { printable } from '../../base/log.ts';
import { formatSize } from '../../base/size.ts';
import { connectToMount } from '../../daemon/control-client.ts';
import { vdiskfsMounts } from '../../daemon/mount-table.ts';
import type { BlockJobInfo } from '../../job/job-info.ts';
import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { mountpointOf } from '../mounted-device.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { alignColumns } from '../table.ts';

interface MountedJob extends BlockJobInfo {
  readonly mountpoint: string;
}

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(yargs)
      .positional('mountpoint', {
        type: 'string',
        describe: 'One mount; all of this machine when left out',
      })
      .example('$0 jobs', 'Every job of every mount'),
  run: async (options) => {
    const mountpoints =
      options.mountpoint === undefined
        ? vdiskfsMounts().map((m) => m.mountpoint)
        : [await mountpointOf(options.mountpoint)];
    const jobs = (await Promise.all(mountpoints.map(jobsOf))).flat();
    if (wantsJson(options)) await printJson(jobs);
    else await print(jobs.length === 0 ? 'No jobs.\n' : textOf(jobs));
    return EXIT.success;
  },
});

const jobsOf = async (mountpoint: string): Promise<MountedJob[]> => {
  const client = await connectToMount(mountpoint);
  try {
    const jobs = (await client.execute('query-block-jobs')) as readonly BlockJobInfo[];
    return jobs.map((job) => ({ ...job, mountpoint }));
  } finally {
    client.close();
  }
};

const HEADER = ['MOUNT', 'JOB', 'TYPE', 'STATE', 'DONE', 'SPEED'];

const textOf = (jobs: readonly MountedJob[]): string => {
  const rows = jobs.map((job) => [
    job.mountpoint,
    job.device,
    job.type,
    job.error === undefined ? job.status : `${job.status}: ${job.error}`,
    job.len === 0 ? '-' : `${Math.floor((job.offset / job.len) * 100)} % of ${formatSize(job.len)}`,
    job.speed === 0 ? '-' : `${formatSize(job.speed)}/s`,
  ]);
  return `${alignColumns([HEADER, ...rows])
    .map(printable)
    .join('\n')}\n`;
};
