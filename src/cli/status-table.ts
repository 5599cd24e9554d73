/** `vdiskfs status` for people: a mount in one line, and a table of its images. */
import { printable } from '../base/log.ts';
import { formatSize } from '../base/size.ts';
import type { MountStatus, ViewStatusDocument } from '../daemon/control-client.ts';
import { alignColumns } from './table.ts';

/** What happened since the last look. */
export interface Rates {
  readonly requests: number;
  readonly readBytes: number;
  readonly writtenBytes: number;
}

const HEADER = ['VIEW', 'FORMAT', 'SIZE', 'ALLOCATED', 'STATE'];

/** Lines of one mount. `rates`: of a second, shown instead of the sums. */
export const describeMount = (mount: MountStatus, rates: Rates | null = null): string[] => {
  const rows = [HEADER, ...mount.views.map(rowOf)];
  const ignored = mount.ignored.map((i) => `ignored: ${i.path}: ${i.reason}`);
  return [headOf(mount, rates), ...alignColumns(rows), ...ignored].map((line) => printable(line));
};

const headOf = (mount: MountStatus, rates: Rates | null): string => {
  const { counters } = mount;
  const served = counters.hits + counters.faults;
  const hits = served === 0 ? '-' : `${Math.round((counters.hits / served) * 100)} %`;
  const load =
    rates === null
      ? `requests ${counters.requests}`
      : `${Math.round(rates.requests)} requests/s, read ${formatSize(Math.round(rates.readBytes))}/s, written ${formatSize(Math.round(rates.writtenBytes))}/s`;
  const backend = mount['outlives-engine']
    ? mount.backend
    : `${mount.backend} (ends with its engine, hands nothing over)`;
  const restarts = mount.generation === 0 ? '' : `, restarted ${mount.generation} times`;
  return `${mount.mountpoint}: ${mount.source}, ${backend}, engine ${mount.pid}${restarts}, ${load}, table hits ${hits}`;
};

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
  const moved = v.standsInFor === null ? '' : `, moved to ${v.path}`;
  const inactive = v.active ? '' : 'inactive, ';
  return `${inactive}${v.readOnlyReason === null ? 'writable' : `read-only: ${v.readOnlyReason}`}${v.handles > 0 ? ', open' : ''}${over}${moved}`;
};
