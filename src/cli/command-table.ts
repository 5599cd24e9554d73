/** The commands there are: the only list. Each file is loaded when its command runs, so that start-up stays fast. */
import type { AnyCommand, Command } from './command.ts';

export interface CommandEntry {
  /** As yargs spells it: `<required>`, `[optional]`, `<many..>`. */
  readonly synopsis: string;
  /** As `--help` shows it, when yargs' spelling does not say it well. */
  readonly usage?: string;
  /** The arguments that may not be left out, when yargs' spelling does not say it well. */
  readonly needs?: string;
  /** One line of `vdiskfs --help`. */
  readonly summary: string;
  readonly load: () => Promise<AnyCommand>;
}

// Each command is called with what its own declaration parsed, so forgetting the options' type here is safe.
const erase = <Options>(command: Command<Options>): AnyCommand => command as unknown as AnyCommand;

export const COMMANDS: Readonly<Record<string, CommandEntry>> = {
  mount: {
    synopsis: 'mount <paths..>',
    usage: 'mount [options] SOURCE... MOUNTPOINT',
    needs: 'SOURCE... MOUNTPOINT',
    summary: 'Show images as flat raw files',
    load: async () => erase((await import('./commands/mount.ts')).command),
  },
  umount: {
    synopsis: 'umount <mountpoint>',
    usage: 'umount [--lazy] MOUNTPOINT',
    summary: 'Flush, unmount, wait for the daemon to end',
    load: async () => erase((await import('./commands/umount.ts')).command),
  },
  status: {
    synopsis: 'status [mountpoint]',
    usage: 'status [--watch] [MOUNTPOINT]',
    summary: 'Show what is mounted, and how each image fares',
    load: async () => erase((await import('./commands/status.ts')).command),
  },
  stream: {
    synopsis: 'stream <view>',
    usage: 'stream VIEW [--base FILE] [--speed SIZE] [--wait]',
    summary: 'Copy what lies below an image into it, while it is used',
    load: async () => erase((await import('./commands/stream.ts')).command),
  },
  mirror: {
    synopsis: 'mirror <view> <target>',
    usage: 'mirror VIEW TARGET [--sync full|top|none|incremental] [--complete] [--wait]',
    summary: 'Copy an image while it is used, and go on over the copy',
    load: async () => erase((await import('./commands/mirror.ts')).command),
  },
  backup: {
    synopsis: 'backup <view> <target>',
    usage: 'backup VIEW TARGET [--sync full|top|none|incremental] [--bitmap NAME] [--wait]',
    summary: 'Copy what an image shows at this moment to another one, while it is used',
    load: async () => erase((await import('./commands/backup.ts')).command),
  },
  jobs: {
    synopsis: 'jobs [mountpoint]',
    usage: 'jobs [MOUNTPOINT]',
    summary: 'Show what works in the background',
    load: async () => erase((await import('./commands/jobs.ts')).command),
  },
  job: {
    synopsis: 'job <verb> <job> [size]',
    usage: 'job pause|resume|cancel|complete|finalize|dismiss|speed VIEW|JOB-ID [SIZE]',
    summary: 'Control a job',
    load: async () => erase((await import('./commands/job.ts')).command),
  },
  deactivate: {
    synopsis: 'deactivate <view>',
    usage: 'deactivate [--force] VIEW',
    summary: 'Flush, drop caches and locks, hold requests: another host may take over',
    load: async () => erase((await import('./commands/deactivate.ts')).command),
  },
  activate: {
    synopsis: 'activate <view>',
    usage: 'activate VIEW',
    summary: 'Take the locks, read the metadata anew, go on',
    load: async () => erase((await import('./commands/activate.ts')).command),
  },
  monitor: {
    synopsis: 'monitor <mountpoint>',
    usage: 'monitor MOUNTPOINT',
    summary: "A prompt with QEMU's monitor commands",
    load: async () => erase((await import('./commands/monitor.ts')).command),
  },
  qmp: {
    synopsis: 'qmp <mountpoint> <command>',
    usage: 'qmp MOUNTPOINT \'{"execute": …}\'',
    summary: 'Send one QMP command',
    load: async () => erase((await import('./commands/qmp.ts')).command),
  },
  restart: {
    synopsis: 'restart <mountpoint>',
    usage: 'restart MOUNTPOINT',
    summary: 'Swap the engine for the installed version, without unmounting',
    load: async () => erase((await import('./commands/restart.ts')).command),
  },
  create: {
    synopsis: 'create <file> [size]',
    usage: 'create [-f FMT] [-o name=value,…] [-b BACKING -F BACKING_FMT] FILE [SIZE]',
    summary: 'Make an image',
    load: async () => erase((await import('./commands/create.ts')).command),
  },
  info: {
    synopsis: 'info <file>',
    usage: 'info [--backing-chain] FILE',
    summary: 'Show what an image is: format, sizes, backing chain, snapshots',
    load: async () => erase((await import('./commands/info.ts')).command),
  },
  map: {
    synopsis: 'map <file>',
    usage: 'map FILE',
    summary: 'Show where content lies: which file of the chain, which offset',
    load: async () => erase((await import('./commands/map.ts')).command),
  },
  check: {
    synopsis: 'check <file>',
    usage: 'check [-r leaks|all] FILE',
    summary: "Check that an image's tables are consistent, and mend them",
    load: async () => erase((await import('./commands/check.ts')).command),
  },
  convert: {
    synopsis: 'convert <files..>',
    usage: 'convert [-O FMT] [-o name=value,…] [-c] [-B BACKING -F FMT] SRC... DST',
    needs: 'SRC... DST',
    summary: 'Copy what images show into another one',
    load: async () => erase((await import('./commands/convert.ts')).command),
  },
  resize: {
    synopsis: 'resize <file> <size>',
    usage: 'resize [--shrink] FILE|VIEW [+|-]SIZE',
    summary: 'Change the virtual size of an image or a mounted view',
    load: async () => erase((await import('./commands/resize.ts')).command),
  },
  snapshot: {
    synopsis: 'snapshot <file>',
    usage: 'snapshot [-l | -c NAME | -a NAME | -d NAME | --external FILE] FILE|VIEW',
    summary: 'List, make, apply or delete internal snapshots; put an overlay on top of a view',
    load: async () => erase((await import('./commands/snapshot.ts')).command),
  },
  rebase: {
    synopsis: 'rebase <file>',
    usage: "rebase [-u] -b BACKING -F FMT FILE   (-b '' for none)",
    summary: 'Put an image on another backing file',
    load: async () => erase((await import('./commands/rebase.ts')).command),
  },
  bitmap: {
    synopsis: 'bitmap <file> <bitmap>',
    usage: 'bitmap --add|--remove|--clear|--merge SOURCE|--enable|--disable… FILE BITMAP',
    summary: 'Work on a dirty bitmap that an image keeps',
    load: async () => erase((await import('./commands/bitmap.ts')).command),
  },
  commit: {
    synopsis: 'commit <file>',
    usage: 'commit [-b BASE] [-d] FILE | commit [--top FILE] [--base FILE] [--wait] VIEW',
    summary: 'Bring what an overlay has into its backing image, also while it is used',
    load: async () => erase((await import('./commands/commit.ts')).command),
  },
  compare: {
    synopsis: 'compare <a> <b>',
    usage: 'compare A B',
    summary: 'Compare what two images show',
    load: async () => erase((await import('./commands/compare.ts')).command),
  },
};
