/** What `vdiskfs status --json` prints of one mount. */
import type { Backend } from '../../mount/backend.ts';
import type { Catalog } from '../../mount/catalog.ts';
import { BlockError } from '../base/block-error.ts';
import type { JobList } from '../job/job-list.ts';
import type { EngineConfig } from './messages.ts';

export interface StatusSource {
  readonly config: EngineConfig;
  readonly catalog: Catalog;
  readonly backend: Backend;
  readonly jobs: JobList;
}

export const statusDocument = async (source: StatusSource): Promise<object> => {
  const { config, catalog, backend, jobs } = source;
  const { views, ignored } = await catalog.status();
  return {
    mountpoint: config.mountpoint,
    source: config.sourceLabel,
    backend: backend.name,
    // Views go on when the engine dies or is swapped, and images can be handed over.
    'outlives-engine': backend.holding !== null,
    'read-only': config.readOnly,
    threads: config.threads,
    pid: process.pid,
    'supervisor-pid': process.ppid,
    generation: config.generation,
    counters: backend.counters(),
    views: views.map((v) => ({
      ...v,
      error: v.error === null ? null : BlockError.fromWire(v.error).describe(),
    })),
    jobs: jobs.all.map((job) => job.blockJobInfo()),
    ignored,
  };
};
