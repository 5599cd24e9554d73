/** `vdiskfs status`: what is mounted, and how each image fares. */
import { printable } from '../../base/log.ts';
import { formatSize } from '../../base/size.ts';
import {
  type MountStatus,
  mountStatus,
  type ViewStatusDocument,
} from '../../daemon/status-client.ts';
import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(yargs)
      .positional('mountpoint', {
        type: 'string',
        describe: 'One mount; all of this machine when left out',
      })
      .example('$0 status', 'A table of every mount and its images')
      .example('$0 status --json /mnt/disks', 'One mount, for programs'),
  run: async (options) => {
    const mounts = await mountStatus(options.mountpoint ?? null);
    if (wantsJson(options)) await printJson(options.mountpoint === undefined ? mounts : mounts[0]);
    else
      await print(mounts.length === 0 ? 'Nothing is mounted.\n' : mounts.map(describe).join('\n'));
    return EXIT.success;
  },
});

const describe = (mount: MountStatus): string => {
  const { counters } = mount;
  const served = counters.hits + counters.faults;
  const hits = served === 0 ? '-' : `${Math.round((counters.hits / served) * 100)} %`;
  const head = `${mount.mountpoint}: ${mount.source}, ${mount.backend}, engine ${mount.pid}, requests ${counters.requests}, table hits ${hits}`;
  const rows = [HEADER, ...mount.views.map(rowOf)];
  const ignored = mount.ignored.map((i) => `ignored: ${i.path}: ${i.reason}`);
  return `${[head, ...table(rows), ...ignored].map((line) => printable(line)).join('\n')}\n`;
};

const HEADER = ['VIEW', 'FORMAT', 'SIZE', 'ALLOCATED', 'STATE'];

const rowOf = (v: ViewStatusDocument): string[] => [
  v.name,
  v.format ?? '-',
  formatSize(v.virtualSizeBytes),
  formatSize(v.allocatedBytes),
  stateOf(v),
];

const stateOf = (v: ViewStatusDocument): string => {
  if (v.error !== null) return `error: ${v.error}`;
  const base = v.chain[1];
  const over = base === undefined ? '' : `, over ${base.path}`;
  return `${v.readOnlyReason === null ? 'writable' : `read-only: ${v.readOnlyReason}`}${v.handles > 0 ? ', open' : ''}${over}`;
};

const table = (rows: readonly string[][]): string[] => {
  const widths = HEADER.map((_, column) => Math.max(...rows.map((r) => (r[column] ?? '').length)));
  return rows.map((r) =>
    r.map((cell, i) => (i === r.length - 1 ? cell : cell.padEnd(widths[i] ?? 0))).join('  '),
  );
};
