/** The benchmark's table, for a terminal and for `docs/BENCHMARKS.md`. */
import { cpus, release, totalmem } from 'node:os';
import type { Measured } from './measure.ts';
import { tool } from './programs.ts';
import type { Spread } from './rounds.ts';

export const machine = async (): Promise<readonly string[]> => [
  `machine: ${cpus().length} cores (${cpus()[0]?.model ?? 'unknown'}), ${Math.round(totalmem() / 2 ** 30)} GiB`,
  `kernel: Linux ${release()}; node ${process.version}`,
  `QEMU: ${(await tool('qemu-storage-daemon', ['--version'])).split('\n')[0] ?? ''}`,
  `fio: ${(await tool('fio', ['--version'])).trim()}`,
];

const targetOf = ({ target }: Measured): string => {
  if (target?.atLeast !== undefined) return `>= ${target.atLeast}`;
  return target?.atMost === undefined ? 'none' : `<= ${target.atMost}`;
};

const verdict = ({ holds }: Measured): string => {
  if (holds === null) return '';
  return holds ? 'holds' : 'MISSED';
};

const figure = (metric: string, value: number): string => {
  if (metric.startsWith('p99')) return `${value.toFixed(0)} us`;
  if (metric.startsWith('seconds')) return `${value.toFixed(2)} s`;
  if (metric.startsWith('requests')) return value.toFixed(0);
  if (metric.endsWith('iops')) return `${(value / 1000).toFixed(1)} k/s`;
  return `${(value / 1e6).toFixed(0)} MB/s`;
};

const ratio = ({ median, min, max }: Spread): string =>
  `${median.toFixed(2)} (${min.toFixed(2)} to ${max.toFixed(2)})`;

const nameOf = (m: Measured): string =>
  m.metric === 'iops' || m.metric === 'bytesPerSecond' ? m.row : `${m.row}: ${m.metric}`;

export const tableLine = (m: Measured): string =>
  [
    nameOf(m).padEnd(64),
    ratio(m.ratio).padEnd(24),
    targetOf(m).padEnd(8),
    verdict(m).padEnd(7),
    `${figure(m.metric, m.ours.median)} / ${figure(m.metric, m.theirs.median)}`,
  ].join(' ');

interface Report {
  readonly machine: readonly string[];
  readonly pairs: number;
  readonly rows: readonly Measured[];
  readonly directWritersThroughLoop: Readonly<Record<string, string>>;
}

export const markdown = (report: Report): string => {
  const lines = report.rows.map((m) => {
    const figures = `${figure(m.metric, m.ours.median)} / ${figure(m.metric, m.theirs.median)}`;
    return `| ${nameOf(m)} | ${ratio(m.ratio)} | ${targetOf(m)} | ${verdict(m)} | ${figures} |`;
  });
  const loop = Object.entries(report.directWritersThroughLoop).map(
    ([name, outcome]) =>
      `- Eight direct writers through \`losetup --direct-io=on\`, ${name}: ${outcome}.`,
  );
  return [
    ...report.machine.map((line) => `- ${line}`),
    `- ${report.pairs} pairs; ratio: median (min to max) of the pairs' ratios`,
    ...loop,
    '',
    '| case | ratio | target | | vdiskfs / other |',
    '| --- | --- | --- | --- | --- |',
    ...lines,
    '',
  ].join('\n');
};
