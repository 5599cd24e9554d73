/** The list of an image's snapshots for people, as `qemu-img` prints it. */
import { printable } from '../base/log.ts';
import { formatSize } from '../base/size.ts';
import type { SnapshotInfo } from '../image/info.ts';

/** Lines; none for no snapshots. */
export const describeSnapshots = (snapshots: readonly SnapshotInfo[]): string[] =>
  snapshots.length === 0
    ? []
    : ['Snapshot list:', SNAPSHOT_HEAD, ...snapshots.map(describeSnapshot)];

const row = (id: string, tag: string, size: string, date: string, clock: string, icount: string) =>
  [
    id.padEnd(9),
    tag.padEnd(16),
    `${size.padStart(8)}${date.padStart(20)}${clock.padStart(13)}${icount.padStart(11)}`,
  ].join(' ');

const SNAPSHOT_HEAD = row('ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT');

const two = (n: number): string => String(n).padStart(2, '0');

const describeSnapshot = (s: SnapshotInfo): string => {
  const d = new Date(s['date-sec'] * 1000);
  const day = `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())}`;
  const date = `${day} ${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  const seconds = s['vm-clock-sec'];
  const milliseconds = String(Math.floor(s['vm-clock-nsec'] / 1e6)).padStart(3, '0');
  const hours = two(Math.floor(seconds / 3600));
  const clock = `${hours}:${two(Math.floor(seconds / 60) % 60)}:${two(seconds % 60)}.${milliseconds}`;
  return row(
    printable(s.id),
    printable(s.name),
    formatSize(s['vm-state-size']),
    date,
    clock,
    String(s.icount ?? ''),
  );
};
