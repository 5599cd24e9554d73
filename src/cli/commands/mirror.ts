/** `vdiskfs mirror`: copies an image while it is used, and lets its view go on over the copy. */
import { resolve } from 'node:path';
import { isUrl } from '../../block/remote-url.ts';
import { COPY_MODES, MIRROR_SYNC } from '../../job/mirror-options.ts';
import { defineCommand } from '../command.ts';
import { declareWait, runJob } from '../job-wait.ts';
import { connectToDevice, type MountedDevice } from '../mounted-device.ts';
import { refuseExisting } from '../new-file.ts';
import { declareJson, print, wantsJson } from '../print.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareWait(declareJson(yargs))
      .positional('view', {
        type: 'string',
        demandOption: true,
        describe: 'Path of the view in its mount',
      })
      .positional('target', {
        type: 'string',
        demandOption: true,
        describe: 'File to make, or URL of an NBD export',
      })
      .option('sync', {
        choices: MIRROR_SYNC.filter((mode) => mode !== 'bitmap'),
        default: 'full' as const,
        requiresArg: true,
        describe:
          'What is copied: all, what the image has itself, what is written from now on, or what a bitmap has',
      })
      .option('bitmap', {
        type: 'string',
        requiresArg: true,
        describe: 'Bitmap of --sync incremental; it is cleared when the mirror succeeds',
      })
      .option('format', {
        alias: 'f',
        type: 'string',
        requiresArg: true,
        defaultDescription: "the image's own; raw for a URL",
        describe: 'Format of the target',
      })
      .option('existing', {
        type: 'boolean',
        default: false,
        describe: 'Copy into an image that is there',
      })
      .option('speed', {
        type: 'string',
        requiresArg: true,
        defaultDescription: 'no limit',
        describe: 'Bytes a second at most',
      })
      .option('mode', {
        choices: COPY_MODES,
        default: 'background' as const,
        requiresArg: true,
        describe: 'When a write reaches the target: some time, or before it is answered',
      })
      .option('complete', {
        type: 'boolean',
        default: false,
        describe: 'Stay, and let the view go on over the target as soon as that is the same',
      })
      .example(
        '$0 mirror --complete /mnt/disks/vm.raw /fast/vm.qcow2',
        'Move a disk while it is used',
      )
      .example(
        '$0 mirror --wait /mnt/disks/vm.raw nbd://backup/vm',
        'Keep a copy elsewhere in step, until the job is cancelled',
      ),
  run: async (options) => {
    const { target, complete, format, bitmap, speed } = options;
    const isThere = options.existing || isUrl(target);
    if (!isThere) await refuseExisting(resolve(target), 'mirror', '--existing copies over it');
    const mounted = await connectToDevice(options.view);
    try {
      const given = {
        target: isUrl(target) ? target : resolve(target),
        sync: options.sync,
        mode: isThere ? 'existing' : 'absolute-paths',
        'copy-mode': options.mode,
        ...(format === undefined ? {} : { format }),
        ...(bitmap === undefined ? {} : { bitmap }),
        ...(speed === undefined ? {} : { speed: parseSize(speed, '--speed') }),
      };
      const wait = options.wait || complete;
      const how = { wait, complete, json: wantsJson(options) };
      const before = await standsFor(mounted);
      const status = await runJob(mounted, 'drive-mirror', given, how);
      const now = wait ? await standsFor(mounted) : before;
      if (now !== before && !how.json) await print(`${options.view} goes on over ${now}\n`);
      return status;
    } finally {
      mounted.client.close();
    }
  },
});

interface BlockInfo {
  readonly device: string;
  readonly inserted?: { readonly file: string };
}

/** The image that a view is of now. */
const standsFor = async ({ client, device }: MountedDevice): Promise<string | null> => {
  const all = (await client.execute('query-block')) as readonly BlockInfo[];
  return all.find((info) => info.device === device)?.inserted?.file ?? null;
};
