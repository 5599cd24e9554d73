/** HMP, the monitor for people: each command is spelled as QEMU spells it, and done by its QMP command. */
import { printable } from '../base/log.ts';
import { formatSize, readSize } from '../base/size.ts';
import { JobError } from '../job/job-error.ts';
import type { BlockJobInfo, JobInfo } from '../job/job-info.ts';

type Execute = (name: string, given: Readonly<Record<string, unknown>>) => Promise<unknown>;

interface HmpCommand {
  readonly name: string;
  /** As `help` shows it; words in brackets may be left out, `-f` is a flag. */
  readonly parameters: string;
  readonly help: string;
  run(words: Words, execute: Execute): Promise<string>;
}

interface Words {
  /** Words that are no flags, in order. */
  readonly plain: readonly string[];
  readonly flags: ReadonlySet<string>;
}

/** What it prints; errors are printed too, as QEMU does. */
export const executeHmp = async (line: string, execute: Execute): Promise<string> => {
  const words = line
    .trim()
    .split(/\s+/)
    .filter((word) => word !== '');
  const [first, second] = words;
  if (first === undefined) return '';
  if (first === 'help' || first === '?') return helpText(second);
  const name = first === 'info' && second !== undefined ? `info ${second}` : first;
  const command = COMMANDS.find((c) => c.name === name);
  if (command === undefined) {
    return first === 'info' ? helpText('info') : `unknown command: '${printable(first)}'\r\n`;
  }
  const rest = words.slice(name.split(' ').length);
  const flags = new Set(rest.filter((w) => /^-[a-z]$/.test(w)).map((w) => w.slice(1)));
  const plain = rest.filter((w) => !/^-[a-z]$/.test(w));
  try {
    return await command.run({ plain, flags }, execute);
  } catch (error) {
    return `Error: ${printable(error instanceof Error ? error.message : String(error))}\r\n`;
  }
};

const lines = (...texts: readonly string[]): string =>
  texts.map((t) => `${printable(t)}\r\n`).join('');

const required = (words: Words, index: number, name: string): string => {
  const word = words.plain[index];
  if (word === undefined) throw new JobError(`Parameter '${name}' is missing`);
  return word;
};

const sizeOf = (text: string, name: string): number => {
  const size = readSize(text);
  if ('problem' in size) throw new JobError(`Parameter '${name}': ${size.problem}`);
  return size.bytes;
};

interface BlockInfo {
  readonly device: string;
  readonly inserted?: {
    readonly 'node-name': string;
    readonly file: string;
    readonly drv: string;
    readonly ro: boolean;
    readonly backing_file?: string;
    readonly backing_file_depth: number;
    readonly image: { readonly snapshots?: readonly HmpSnapshot[] };
  };
}

interface HmpSnapshot {
  readonly id: string;
  readonly name: string;
  readonly 'vm-state-size': number;
  readonly 'date-sec': number;
}

const blockText = ({ device, inserted }: BlockInfo): string => {
  if (inserted === undefined) return lines(`${device}: [not inserted]`);
  const head = `${device} (${inserted['node-name']}): ${inserted.file} (${inserted.drv}${inserted.ro ? ', read-only' : ''})`;
  const below = inserted.backing_file;
  const backing = `    Backing file:     ${below} (chain depth: ${inserted.backing_file_depth})`;
  return lines(head, '    Cache mode:       writeback', ...(below === undefined ? [] : [backing]));
};

const snapshotsText = ({ device, inserted }: BlockInfo): string => {
  const snapshots = inserted?.image.snapshots ?? [];
  if (snapshots.length === 0) return lines(`${device}: There is no snapshot available.`);
  const rows = snapshots.map((s) => {
    const date = new Date(s['date-sec'] * 1000).toISOString().slice(0, 19).replace('T', ' ');
    return `${s.id.padEnd(10)}${s.name.padEnd(17)}${formatSize(s['vm-state-size']).padStart(8)} ${date}`;
  });
  return lines(`${device}:`, 'ID        TAG               VM SIZE                DATE', ...rows);
};

const blockJobText = (job: BlockJobInfo): string =>
  lines(
    `${job.type === 'stream' ? 'Streaming' : `Type ${job.type},`} device ${job.device}: Completed ${job.offset} of ${job.len} bytes, speed limit ${job.speed} bytes/s${job.paused ? ', paused' : ''}`,
  );

const LOOK_MS = 50;

/** Until the disk goes on over its base. What comes of a job that ends by itself is in the log. */
const commit = async (
  device: string,
  base: string | undefined,
  execute: Execute,
): Promise<void> => {
  await execute('block-commit', { device, ...(base === undefined ? {} : { base }) });
  for (;;) {
    const jobs = (await execute('query-block-jobs', {})) as readonly BlockJobInfo[];
    const job = jobs.find((j) => j.device === device);
    if (job === undefined) return;
    if (job.ready && job.status === 'ready')
      await execute('job-complete', { id: device }).catch(() => undefined);
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
};

const verb = (name: string, qmp: string, help: string): HmpCommand => ({
  name,
  parameters: 'device',
  help,
  run: async (words, execute) => {
    await execute(qmp, { device: required(words, 0, 'device') });
    return '';
  },
});

const COMMANDS: readonly HmpCommand[] = [
  {
    name: 'info block',
    parameters: '[device]',
    help: 'show the disks of the mount',
    run: async ({ plain }, execute) => {
      const all = (await execute('query-block', {})) as readonly BlockInfo[];
      return all
        .filter((b) => plain[0] === undefined || b.device === plain[0])
        .map(blockText)
        .join('');
    },
  },
  {
    name: 'info block-jobs',
    parameters: '',
    help: 'show what block jobs do',
    run: async (_words, execute) => {
      const jobs = (await execute('query-block-jobs', {})) as readonly BlockJobInfo[];
      return jobs.length === 0 ? lines('No active jobs') : jobs.map(blockJobText).join('');
    },
  },
  {
    name: 'info jobs',
    parameters: '',
    help: 'show every job and its state',
    run: async (_words, execute) => {
      const jobs = (await execute('query-jobs', {})) as readonly JobInfo[];
      const rows = jobs.map(
        (j) =>
          `${j.id}: ${j.type}, ${j.status}, ${j['current-progress']} of ${j['total-progress']}`,
      );
      return rows.length === 0 ? lines('No active jobs') : lines(...rows);
    },
  },
  {
    name: 'info snapshots',
    parameters: '',
    help: 'show the internal snapshots of the disks',
    run: async (_words, execute) => {
      const all = (await execute('query-block', {})) as readonly BlockInfo[];
      return all.map(snapshotsText).join('');
    },
  },
  {
    name: 'block_stream',
    parameters: 'device [speed [base]]',
    help: 'copy what lies below a disk into it',
    run: async (words, execute) => {
      const [, speed, base] = words.plain;
      await execute('block-stream', {
        device: required(words, 0, 'device'),
        'on-error': 'report',
        ...(speed === undefined ? {} : { speed: sizeOf(speed, 'speed') }),
        ...(base === undefined ? {} : { base }),
      });
      return '';
    },
  },
  {
    name: 'commit',
    parameters: 'device|all',
    help: 'bring what a disk has into the image below it, and go on over that',
    run: async (words, execute) => {
      const wanted = required(words, 0, 'device');
      const all = (await execute('query-block', {})) as readonly BlockInfo[];
      const isOver = (b: BlockInfo): boolean => (b.inserted?.backing_file_depth ?? 0) > 0;
      const devices =
        wanted === 'all'
          ? all.filter((b) => isOver(b) && b.inserted?.ro === false).map((b) => b.device)
          : [wanted];
      for (const device of devices) {
        const base = all.find((b) => b.device === device)?.inserted?.backing_file;
        await commit(device, base, execute);
      }
      return '';
    },
  },
  {
    name: 'snapshot_blkdev',
    parameters: '[-n] device new-image-file [format]',
    help: 'put an overlay on top of a disk (-n: one that is there)',
    run: async (words, execute) => {
      const [, , format] = words.plain;
      await execute('blockdev-snapshot-sync', {
        device: required(words, 0, 'device'),
        'snapshot-file': required(words, 1, 'new-image-file'),
        mode: words.flags.has('n') ? 'existing' : 'absolute-paths',
        ...(format === undefined ? {} : { format }),
      });
      return '';
    },
  },
  {
    name: 'drive_backup',
    parameters: '[-n] [-f] [-c] device target [format]',
    help: 'copy a disk as it is now (-n: into an image that is there, -f: all of its chain, -c: packed)',
    run: async (words, execute) => {
      const [, , format] = words.plain;
      await execute('drive-backup', {
        device: required(words, 0, 'device'),
        target: required(words, 1, 'target'),
        sync: words.flags.has('f') ? 'full' : 'top',
        mode: words.flags.has('n') ? 'existing' : 'absolute-paths',
        compress: words.flags.has('c'),
        ...(format === undefined ? {} : { format }),
      });
      return '';
    },
  },
  {
    name: 'drive_mirror',
    parameters: '[-n] [-f] device target [format]',
    help: 'copy a disk while it is used (-n: into an image that is there, -f: all of its chain)',
    run: async (words, execute) => {
      const [, , format] = words.plain;
      await execute('drive-mirror', {
        device: required(words, 0, 'device'),
        target: required(words, 1, 'target'),
        sync: words.flags.has('f') ? 'full' : 'top',
        mode: words.flags.has('n') ? 'existing' : 'absolute-paths',
        ...(format === undefined ? {} : { format }),
      });
      return '';
    },
  },
  {
    name: 'block_job_set_speed',
    parameters: 'device speed',
    help: 'limit a job to so many bytes a second (0: no limit)',
    run: async (words, execute) => {
      const speed = sizeOf(required(words, 1, 'speed'), 'speed');
      await execute('block-job-set-speed', { device: required(words, 0, 'device'), speed });
      return '';
    },
  },
  {
    name: 'block_job_cancel',
    parameters: '[-f] device',
    help: 'stop a job (-f: also one that is ready, without its end)',
    run: async (words, execute) => {
      const force = words.flags.has('f');
      await execute('block-job-cancel', { device: required(words, 0, 'device'), force });
      return '';
    },
  },
  verb('block_job_pause', 'block-job-pause', 'pause a job'),
  verb('block_job_resume', 'block-job-resume', 'go on with a paused job'),
  verb('block_job_complete', 'block-job-complete', 'end a job that is ready'),
  {
    name: 'block_resize',
    parameters: 'device size',
    help: 'change the size of a disk',
    run: async (words, execute) => {
      const size = sizeOf(required(words, 1, 'size'), 'size');
      await execute('block_resize', { device: required(words, 0, 'device'), size });
      return '';
    },
  },
  {
    name: 'quit',
    parameters: '',
    help: 'unmount',
    run: async (_words, execute) => {
      await execute('quit', {});
      return '';
    },
  },
];

const helpText = (about: string | undefined): string => {
  const shown = COMMANDS.filter((c) => about === undefined || c.name.split(' ')[0] === about);
  return lines(...shown.map((c) => `${`${c.name} ${c.parameters}`.trim()} -- ${c.help}`));
};
