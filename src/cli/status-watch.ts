/**
 * `vdiskfs status --watch`: looks again and again. On a terminal the table is drawn over the last one and never scrolls it;
 * elsewhere each look is printed below the last, with --json as one line.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { printable } from '../base/log.ts';
import { type MountStatus, mountStatus } from '../daemon/control-client.ts';
import { describeFailure } from './failure.ts';
import { print } from './print.ts';
import { describeMount, type Rates } from './status-table.ts';

export interface WatchOptions {
  readonly mountpoint: string | null;
  readonly intervalMs: number;
  readonly json: boolean;
}

interface Look {
  readonly atMs: number;
  readonly mounts: readonly MountStatus[];
}

const TERMINAL = {
  hideCursor: '\x1b[?25l',
  showCursor: '\x1b[?25h',
  home: '\x1b[H',
  clearLine: '\x1b[K',
  clearBelow: '\x1b[J',
} as const;

/** Ends at SIGINT and SIGTERM, and when the reader goes away. */
export const watchStatus = async (options: WatchOptions): Promise<void> => {
  const ending = new AbortController();
  const end = (): void => ending.abort();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, end);
  const draws = process.stdout.isTTY && !options.json;
  if (draws) await print(TERMINAL.hideCursor + TERMINAL.home + TERMINAL.clearBelow);
  let last: Look | null = null;
  try {
    while (!ending.signal.aborted) {
      const look = await lookAt(options.mountpoint);
      const text = options.json ? jsonLineOf(look, options) : frame(look, last, { draws });
      last = look instanceof Error ? null : look;
      if (!(await print(text))) return;
      await sleep(options.intervalMs, null, { signal: ending.signal }).catch(() => undefined);
    }
  } finally {
    if (draws) await print(TERMINAL.showCursor);
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, end);
  }
};

// A mount that goes, or an engine that is being replaced, does not end the watch.
const lookAt = async (mountpoint: string | null): Promise<Look | Error> => {
  try {
    return { atMs: performance.now(), mounts: await mountStatus(mountpoint) };
  } catch (error) {
    return error as Error;
  }
};

const jsonLineOf = (look: Look | Error, { mountpoint }: WatchOptions): string => {
  const document =
    look instanceof Error
      ? { error: describeFailure(look, 'status') }
      : mountpoint === null
        ? look.mounts
        : look.mounts[0];
  return `${JSON.stringify(document)}\n`;
};

const frame = (look: Look | Error, last: Look | null, { draws }: { draws: boolean }): string => {
  const lines = look instanceof Error ? [describeFailure(look, 'status')] : linesOf(look, last);
  if (!draws) return `${lines.join('\n')}\n\n`;
  // A terminal that does not know its size says 0.
  const rows = process.stdout.rows || 24;
  const columns = process.stdout.columns || 80;
  const room = Math.max(1, rows - 1);
  const shown =
    lines.length <= room
      ? lines
      : [...lines.slice(0, room - 1), `… ${lines.length - room + 1} lines more`];
  const cut = shown.map((line) => printable(line).slice(0, columns) + TERMINAL.clearLine);
  return `${TERMINAL.home}${cut.join('\n')}\n${TERMINAL.clearBelow}`;
};

const linesOf = (look: Look, last: Look | null): string[] => {
  if (look.mounts.length === 0) return ['Nothing is mounted.'];
  return look.mounts.flatMap((mount, i) => [
    ...(i === 0 ? [] : ['']),
    ...describeMount(mount, ratesOf(mount, look, last)),
  ]);
};

/** Of a second; an engine that took over counts from 0. */
const ratesOf = (mount: MountStatus, look: Look, last: Look | null): Rates => {
  const before = last?.mounts.find((m) => m.mountpoint === mount.mountpoint && m.pid === mount.pid);
  const seconds = last === null ? 1 : Math.max(0.001, (look.atMs - last.atMs) / 1000);
  const rate = (counter: 'requests' | 'readBytes' | 'writtenBytes'): number =>
    last === null ? 0 : (mount.counters[counter] - (before?.counters[counter] ?? 0)) / seconds;
  return {
    requests: rate('requests'),
    readBytes: rate('readBytes'),
    writtenBytes: rate('writtenBytes'),
  };
};
