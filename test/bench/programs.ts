/** Programs that measure, and what they measured: fio and dd, run to their end. */
import { unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '../support/vdiskfs.ts';

const LIMIT_MS = 180_000;

/** Per second; latencies in microseconds. */
export interface FioResult {
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly p99Us: number;
  readonly p999Us: number;
  /** What the requests took, without the start of fio. */
  readonly seconds: number;
}

interface FioDirection {
  readonly iops: number;
  readonly bw_bytes: number;
  /** In ms. */
  readonly runtime: number;
  readonly clat_ns: { readonly percentile?: Record<string, number> };
}

interface FioReport {
  readonly jobs: readonly {
    readonly jobname: string;
    readonly read: FioDirection;
    readonly write: FioDirection;
  }[];
}

export const tool = async (program: string, args: readonly string[]): Promise<string> => {
  const done = await run(program, args, { timeoutMs: LIMIT_MS });
  if (done.status === 0) return done.stdout + done.stderr;
  throw new Error(`${program} ${args.join(' ')} exited ${done.status}:\n${done.stderr}`);
};

/** Runs a job file; one result for each section that reports, by name. Reads and writes of one section are summed. */
export const fio = async (scratch: string, job: string): Promise<Map<string, FioResult>> => {
  const file = join(scratch, 'job.fio');
  await writeFile(file, job);
  const out = await tool('fio', ['--output-format=json', file]);
  await unlink(file);
  const report = JSON.parse(out.slice(out.indexOf('{'), out.lastIndexOf('}') + 1)) as FioReport;
  return new Map(report.jobs.map((j) => [j.jobname, resultOf(j.read, j.write)]));
};

const resultOf = (read: FioDirection, write: FioDirection): FioResult => {
  const percentile = (name: string): number =>
    Math.max(read.clat_ns.percentile?.[name] ?? 0, write.clat_ns.percentile?.[name] ?? 0) / 1000;
  return {
    iops: read.iops + write.iops,
    bytesPerSecond: read.bw_bytes + write.bw_bytes,
    p99Us: percentile('99.000000'),
    p999Us: percentile('99.900000'),
    seconds: Math.max(read.runtime, write.runtime) / 1000,
  };
};

/** Bytes per second by dd's own clock. */
export const dd = async (args: readonly string[]): Promise<number> => {
  const out = await tool('dd', args);
  const found = /(?<bytes>\d+) bytes .* copied, (?<seconds>[\d.e-]+) s/.exec(out)?.groups;
  if (found === undefined) throw new Error(`dd said: ${out}`);
  return Number(found['bytes']) / Number(found['seconds']);
};
