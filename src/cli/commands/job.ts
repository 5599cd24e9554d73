/** `vdiskfs job`: the verbs of a job, by the view it works on or by its id. */
import { stat } from 'node:fs/promises';
import { BlockError } from '../../base/block-error.ts';
import type { QmpClient } from '../../control/client.ts';
import { connectToMount } from '../../daemon/control-client.ts';
import { vdiskfsMounts } from '../../daemon/mount-table.ts';
import type { BlockJobInfo } from '../../job/job-info.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { connectToDevice } from '../mounted-device.ts';
import { declareJson, printJson, wantsJson } from '../print.ts';
import { parseSize } from '../size.ts';

const VERBS = ['pause', 'resume', 'cancel', 'complete', 'finalize', 'dismiss', 'speed'] as const;

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(yargs)
      .positional('verb', {
        choices: VERBS,
        demandOption: true,
        describe: 'What to do',
      })
      .positional('job', {
        type: 'string',
        demandOption: true,
        describe: 'Path of the view that it works on, or its id',
      })
      .positional('size', { type: 'string', describe: 'speed: bytes a second; 0 for no limit' })
      .option('force', {
        type: 'boolean',
        default: false,
        describe: 'cancel: also a job that is ready, whose target may be anything then',
      })
      .example('$0 job pause /mnt/disks/vm.raw', 'Pause what works on vm')
      .example('$0 job speed vm 20M', 'Not more than 20 MiB a second'),
  run: async (options) => {
    const { verb, force, size } = options;
    if ((verb === 'speed') !== (size !== undefined)) {
      throw new UsageError(verb === 'speed' ? 'needs a SIZE' : 'takes no SIZE', verb);
    }
    const { client, id } = await findJob(options.job);
    try {
      switch (verb) {
        case 'speed':
          await client.execute('block-job-set-speed', {
            device: id,
            speed: parseSize(size ?? '0', 'SIZE'),
          });
          break;
        case 'cancel':
          await client.execute('block-job-cancel', { device: id, force });
          break;
        default:
          await client.execute(`job-${verb}`, { id });
      }
      if (wantsJson(options)) await printJson({ job: id, verb });
      return EXIT.success;
    } finally {
      client.close();
    }
  },
});

interface FoundJob {
  readonly client: QmpClient;
  readonly id: string;
}

const findJob = async (name: string): Promise<FoundJob> => {
  const isPath =
    name.includes('/') ||
    (await stat(name).then(
      () => true,
      () => false,
    ));
  return isPath ? jobOfView(name) : jobById(name);
};

const jobsOf = async (client: QmpClient): Promise<readonly BlockJobInfo[]> =>
  (await client.execute('query-block-jobs')) as readonly BlockJobInfo[];

const jobOfView = async (path: string): Promise<FoundJob> => {
  const { client, device } = await connectToDevice(path);
  const jobs = (await client.execute('__vdiskfs_jobs_of', { device })) as readonly string[];
  const [id] = jobs;
  if (id !== undefined && jobs.length === 1) return { client, id };
  client.close();
  const message =
    id === undefined ? 'no job works on it' : `several jobs work on it: ${jobs.join(', ')}`;
  throw new BlockError({ kind: 'not-found', message, path, hint: 'vdiskfs jobs lists them' });
};

/** A mount that does not answer has no job to offer. */
const lookIn = async (mountpoint: string, id: string): Promise<FoundJob | null> => {
  const client = await connectToMount(mountpoint).catch(() => null);
  if (client === null) return null;
  const jobs = await jobsOf(client).catch(() => []);
  if (jobs.some((job) => job.device === id)) return { client, id };
  client.close();
  return null;
};

/** Errors: ENOENT when no mount has it, EINVAL when several have. */
const jobById = async (id: string): Promise<FoundJob> => {
  const looked = await Promise.all(vdiskfsMounts().map(({ mountpoint }) => lookIn(mountpoint, id)));
  const found = looked.filter((job) => job !== null);
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  for (const { client } of found) client.close();
  const message =
    only === undefined ? `there is no job '${id}'` : `several mounts have a job '${id}'`;
  const hint = only === undefined ? 'vdiskfs jobs lists them' : 'give the path of its view';
  throw new BlockError({ kind: 'not-found', message, hint });
};
