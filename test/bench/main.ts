/**
 * vdiskfs against QEMU's own FUSE export, on the same images in the same minutes.
 *
 *     npm run bench -- [--pairs N] [--only TEXT]... [--json FILE] [--markdown FILE] [--disk DIR]
 *
 * Prints a table; exits 1 when a row misses its target. DIR holds the images that shall lie on a disk (default: the
 * directory for temporary files); the others lie on a tmpfs of their own.
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { measureContest } from './contests.ts';
import { Disks } from './disks.ts';
import { directWritersThroughLoop } from './loop-writers.ts';
import { type Measured, measureRow } from './measure.ts';
import { MIRRORING } from './mirroring.ts';
import { tool } from './programs.ts';
import { REMOTE } from './remote-base.ts';
import { machine, markdown, tableLine } from './report.ts';
import { ROWS } from './rows.ts';
import { serveQemu, serveVdiskfs } from './servers.ts';
import { STREAMING } from './streaming.ts';

const MIN_PAIRS = 3;
const say = (line: string): void => void process.stdout.write(`${line}\n`);

const { values } = parseArgs({
  options: {
    pairs: { type: 'string', default: '3' },
    only: { type: 'string', multiple: true, default: [] },
    json: { type: 'string' },
    markdown: { type: 'string' },
    disk: { type: 'string', default: tmpdir() },
  },
});

const correctness = async (disks: Disks, scratch: string): Promise<Record<string, string>> => {
  const outcome: Record<string, string> = {};
  for (const [name, serve] of [
    ['vdiskfs', serveVdiskfs],
    ['qemu-storage-daemon', serveQemu],
  ] as const) {
    outcome[name] = await directWritersThroughLoop(serve, disks, scratch);
    say(`direct writers through a loop device, content verified: ${name}: ${outcome[name]}`);
  }
  return outcome;
};

const main = async (): Promise<boolean> => {
  const pairs = Math.max(MIN_PAIRS, Number(values.pairs));
  const root = await mkdtemp(join(values.disk, 'vdiskfs-bench-'));
  const memory = join(root, 'tmpfs');
  const scratch = join(root, 'scratch');
  await mkdir(memory);
  await mkdir(scratch);
  await tool('mount', ['-t', 'tmpfs', '-o', 'size=12g', 'tmpfs', memory]);
  const places = { disk: new Disks(root), tmpfs: new Disks(memory) };
  const measured: Measured[] = [];
  const failed: string[] = [];
  try {
    const about = await machine();
    say(about.join('\n'));
    const wanted = ({ name }: { readonly name: string }): boolean =>
      values.only.length === 0 || values.only.some((text) => name.includes(text));
    const measure = async (name: string, work: () => Promise<readonly Measured[]>) => {
      // One that fails does not take the others with it, nor does it pass.
      try {
        const found = await work();
        for (const m of found) say(tableLine(m));
        measured.push(...found);
      } catch (error) {
        failed.push(name);
        say(`${name}: FAILED: ${String(error)}`);
      }
    };
    for (const row of ROWS.filter(wanted))
      await measure(row.name, () => measureRow(row, places[row.place], scratch, pairs));
    for (const contest of [...STREAMING, ...MIRRORING, ...REMOTE].filter(wanted))
      await measure(contest.name, () => measureContest(contest, memory, pairs));
    const loop = values.only.length === 0 ? await correctness(places.tmpfs, scratch) : {};
    const report = { machine: about, pairs, rows: measured, directWritersThroughLoop: loop };
    if (values.json !== undefined)
      await writeFile(values.json, `${JSON.stringify(report, null, 2)}\n`);
    if (values.markdown !== undefined) await writeFile(values.markdown, markdown(report));
  } finally {
    await tool('umount', [memory]);
    await rm(root, { recursive: true, force: true });
  }
  return failed.length === 0 && measured.every((m) => m.holds !== false);
};

process.exitCode = (await main()) ? 0 : 1;
