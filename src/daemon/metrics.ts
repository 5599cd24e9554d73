/**
 * What Prometheus reads of a mount: the one list of names (docs/METRICS.md tells what they mean). Everything is read when it
 * is asked for, from counters that are kept anyway; latencies from shared memory that workers add to without waiting.
 */
import { Counter, Gauge, type Metric, Registry } from 'prom-client';
import type { Backend } from '../../mount/backend.ts';
import type { CatalogStatus } from '../../mount/catalog/catalog-options.ts';
import type { Catalog } from '../../mount/catalog.ts';
import type { OperationLatency } from '../../mount/latencies.ts';
import type { Job } from '../job/job.ts';
import type { JobList } from '../job/job-list.ts';
import { LATENCY_BOUNDS } from '../translation/latency.ts';
import type { EngineConfig } from './messages.ts';

export interface MetricsSource {
  readonly config: EngineConfig;
  readonly catalog: Catalog;
  readonly backend: Backend;
  readonly jobs: JobList;
}

/** One reading for all metrics of a scrape. */
interface Reading {
  status: CatalogStatus;
}

const LATENCY_NAME = 'vdiskfs_request_duration_seconds';

export class Metrics {
  readonly contentType: string;
  readonly #source: MetricsSource;
  readonly #registry = new Registry();
  readonly #reading: Reading = { status: { views: [], ignored: [] } };
  #scrape: Promise<string> | null = null;

  constructor(source: MetricsSource) {
    this.#source = source;
    this.contentType = this.#registry.contentType;
    this.#registerCounters();
    this.#registerViews();
    this.#registerJobs();
    this.#registry.registerMetric(new LatencyMetric(source.backend) as unknown as Metric);
  }

  /** The text of one scrape; those that come during one share it. */
  text(): Promise<string> {
    this.#scrape ??= this.#read().finally(() => {
      this.#scrape = null;
    });
    return this.#scrape;
  }

  async #read(): Promise<string> {
    this.#reading.status = await this.#source.catalog.status();
    return this.#registry.metrics();
  }

  #registerCounters(): void {
    const { backend, config } = this.#source;
    const count = () => backend.counters();
    this.#counter('vdiskfs_requests_total', 'Requests of the kernel', () => count().requests);
    this.#counter(
      'vdiskfs_translation_hits_total',
      'Requests that workers answered from the translation table',
      () => count().hits,
    );
    this.#counter(
      'vdiskfs_translation_faults_total',
      'Requests that the engine answered',
      () => count().faults,
    );
    this.#counter('vdiskfs_read_bytes_total', 'Bytes read by guests', () => count().readBytes);
    this.#counter(
      'vdiskfs_written_bytes_total',
      'Bytes written by guests',
      () => count().writtenBytes,
    );
    this.#counter(
      'vdiskfs_engine_restarts_total',
      'Engines that took the place of another since the mount began',
      () => config.generation,
    );
    this.#gauge(
      'vdiskfs_translation_table_bytes',
      'Memory of the translations that are kept',
      () => count().tableBytes,
    );
    this.#gauge(
      'vdiskfs_engine_start_time_seconds',
      'When this engine began, since 1970',
      () => performance.timeOrigin / 1000,
    );
    this.#gauge('vdiskfs_engine_resident_memory_bytes', 'Memory of the engine', () =>
      process.memoryUsage.rss(),
    );
    this.#gauge('vdiskfs_views', 'Views that the mount shows', () => this.#views.length);
    this.#gauge(
      'vdiskfs_ignored_files',
      'Files of the source that are no images',
      () => this.#reading.status.ignored.length,
    );
  }

  #registerViews(): void {
    type View = CatalogStatus['views'][number];
    const gauges: readonly (readonly [string, string, (view: View) => number])[] = [
      ['size_bytes', "The disk's size", (v) => v.virtualSizeBytes],
      ['allocated_bytes', 'What the image takes on its host', (v) => v.allocatedBytes],
      ['metadata_bytes', 'Memory of its mapping metadata', (v) => v.metadataBytes],
      ['open_handles', 'Open files of programs', (v) => v.handles],
      ['failed', '1 when the image cannot be used', (v) => (v.error === null ? 0 : 1)],
      ['read_only', '1 when it is not written', (v) => (v.readOnlyReason === null ? 0 : 1)],
      ['active', '0 while another host may use the image', (v) => (v.active ? 1 : 0)],
    ];
    for (const [name, help, value] of gauges) {
      const views = (): readonly View[] => this.#views;
      new Gauge({
        name: `vdiskfs_view_${name}`,
        help,
        labelNames: ['view'],
        registers: [this.#registry],
        collect() {
          this.reset();
          for (const view of views()) this.set({ view: view.name }, value(view));
        },
      });
    }
  }

  #registerJobs(): void {
    const { jobs } = this.#source;
    this.#counter(
      'vdiskfs_jobs_started_total',
      'Jobs that this engine has begun',
      () => jobs.started,
    );
    this.#counter(
      'vdiskfs_jobs_failed_total',
      'Jobs that have ended with an error, not counting those that were cancelled',
      () => jobs.failed,
    );
    const gauges: readonly (readonly [string, string, (job: Job) => number])[] = [
      ['offset_bytes', 'What is done', (job) => job.blockJobInfo().offset],
      ['length_bytes', 'What there is to do, as far as is known', (job) => job.blockJobInfo().len],
      ['speed_bytes_per_second', 'What it is limited to; 0 for no limit', (job) => job.speed],
      ['paused', '1 while it is paused', (job) => (job.isPaused ? 1 : 0)],
      ['ready', '1 when it waits to be completed', (job) => (job.blockJobInfo().ready ? 1 : 0)],
    ];
    for (const [name, help, value] of gauges) {
      new Gauge({
        name: `vdiskfs_job_${name}`,
        help,
        labelNames: ['job', 'type'],
        registers: [this.#registry],
        collect() {
          this.reset();
          for (const job of jobs.all) this.set({ job: job.id, type: job.type }, value(job));
        },
      });
    }
  }

  get #views(): CatalogStatus['views'] {
    return this.#reading.status.views;
  }

  #counter(name: string, help: string, value: () => number): void {
    new Counter({
      name,
      help,
      registers: [this.#registry],
      collect() {
        this.reset();
        this.inc(value());
      },
    });
  }

  #gauge(name: string, help: string, value: () => number): void {
    new Gauge({
      name,
      help,
      registers: [this.#registry],
      collect() {
        this.set(value());
      },
    });
  }
}

/** A histogram that is kept in shared memory: prom-client's own wants to be told of each request. */
class LatencyMetric {
  readonly name = LATENCY_NAME;
  readonly #backend: Backend;

  constructor(backend: Backend) {
    this.#backend = backend;
  }

  /** What the registry asks of each of its metrics. */
  async get(): Promise<object> {
    const help = 'How long requests took, from their arrival to their answer';
    const values = this.#backend.latencies().flatMap(samplesOf);
    return { name: this.name, help, type: 'histogram', values };
  }
}

interface Sample {
  readonly metricName: string;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
}

const samplesOf = (latency: OperationLatency): Sample[] => {
  const labels = { operation: latency.operation, served_by: latency.servedBy };
  let sum = 0;
  const buckets = latency.counts.map((count, i): Sample => {
    sum += count;
    const le = LATENCY_BOUNDS[i] ?? '+Inf';
    return { metricName: `${LATENCY_NAME}_bucket`, labels: { le, ...labels }, value: sum };
  });
  return [
    ...buckets,
    { metricName: `${LATENCY_NAME}_sum`, labels, value: latency.sumSeconds },
    { metricName: `${LATENCY_NAME}_count`, labels, value: sum },
  ];
};
