/** The verbs of jobs, in both of QEMU's spellings, and the queries. */
import type { Job } from '../../job/job.ts';
import { JobError } from '../../job/job-error.ts';
import { type ControlContext, deviceNamed } from '../context.ts';
import { defineQmp, flag, integer, optional, type QmpCommand, text } from '../schema.ts';

const blockJob = (context: ControlContext, device: string): Job => {
  const job = context.jobs.get(device);
  if (job !== null) return job;
  throw new JobError(`Block job '${device}' not found`, 'DeviceNotActive');
};

const jobOf = (context: ControlContext, id: string): Job => {
  const job = context.jobs.get(id);
  if (job !== null) return job;
  throw new JobError('Job not found');
};

const simple = (
  verb: 'pause' | 'resume' | 'complete' | 'finalize' | 'dismiss',
): QmpCommand<ControlContext>[] => {
  const byId = verb === 'finalize' || verb === 'dismiss';
  const run = (job: Job): object => {
    job[verb]();
    return {};
  };
  const declared = byId
    ? defineQmp({
        name: `block-job-${verb}`,
        arguments: { id: text },
        returns: 'nothing',
        run: (context: ControlContext, given) => run(blockJob(context, given.id)),
      })
    : defineQmp({
        name: `block-job-${verb}`,
        arguments: { device: text },
        returns: 'nothing',
        run: (context: ControlContext, given) => run(blockJob(context, given.device)),
      });
  const modern = defineQmp({
    name: `job-${verb}`,
    arguments: { id: text },
    returns: 'nothing',
    run: (context: ControlContext, given) => run(jobOf(context, given.id)),
  });
  return [declared, modern];
};

export const jobCommands: readonly QmpCommand<ControlContext>[] = [
  ...(['pause', 'resume', 'complete', 'finalize', 'dismiss'] as const).flatMap(simple),
  defineQmp({
    name: 'block-job-cancel',
    arguments: { device: text, force: optional(flag) },
    returns: 'nothing',
    run: (context: ControlContext, given) => {
      blockJob(context, given.device).cancel({ force: given.force ?? false });
      return {};
    },
  }),
  defineQmp({
    name: 'job-cancel',
    arguments: { id: text },
    returns: 'nothing',
    run: (context: ControlContext, given) => {
      jobOf(context, given.id).cancel({ force: true });
      return {};
    },
  }),
  defineQmp({
    name: 'block-job-set-speed',
    arguments: { device: text, speed: integer },
    returns: 'nothing',
    run: (context: ControlContext, given) => {
      blockJob(context, given.device).setSpeed(given.speed);
      return {};
    },
  }),
  defineQmp({
    name: '__vdiskfs_jobs_of',
    arguments: { device: text },
    returns: 'StringList',
    run: async (context: ControlContext, given) => {
      const { view } = await deviceNamed(context, given.device);
      const job = view.root === null ? null : context.jobs.claimOf(view.root);
      return job === null ? [] : [job.id];
    },
  }),
  defineQmp({
    name: 'query-block-jobs',
    arguments: {},
    returns: 'BlockJobInfoList',
    run: (context: ControlContext) => context.jobs.all.map((job) => job.blockJobInfo()),
  }),
  defineQmp({
    name: 'query-jobs',
    arguments: {},
    returns: 'JobInfoList',
    run: (context: ControlContext) => context.jobs.all.map((job) => job.jobInfo()),
  }),
];
