/** `vdiskfs commit`: brings what an overlay, or layers of a view's chain, have into an image below. */
import { stat } from 'node:fs/promises';
import { basename, resolve } from 'node:path';
import type { QmpClient } from '../../control/client.ts';
import { isView } from '../../daemon/mount-table.ts';
import { commitImage } from '../../image/commit.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareWait, runJob } from '../job-wait.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, wantsJson } from '../print.ts';
import { interruptible, startProgress } from '../progress.ts';
import { declareRate, paceOf } from '../rate.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareWait(declareJson(declareRate(declareFormat(declareOffline(yargs)))))
      .positional('file', {
        type: 'string',
        demandOption: true,
        describe: 'Overlay, or the path of a view in its mount',
      })
      .option('base', {
        alias: 'b',
        type: 'string',
        requiresArg: true,
        describe: 'Image of its chain that gets it all; the overlay stays as it is then',
        defaultDescription: 'the one directly below',
      })
      .option('top', {
        type: 'string',
        requiresArg: true,
        describe: 'Of a view: the highest layer that is committed, itself below its image',
        defaultDescription:
          "the image; the view goes on over the base when '--wait' is given, or at 'job complete'",
      })
      .option('speed', {
        type: 'string',
        requiresArg: true,
        defaultDescription: 'no limit',
        describe: 'Of a view: bytes a second at most',
      })
      .option('force', {
        type: 'boolean',
        default: false,
        describe:
          'Of a view: although other images are made of the base, and will show something else',
      })
      .option('keep', {
        alias: 'd',
        type: 'boolean',
        default: false,
        describe: 'The overlay stays as it is: it is not emptied',
      })
      .option('progress', {
        alias: 'p',
        type: 'boolean',
        defaultDescription: 'on a terminal',
        describe: 'Show a progress bar',
      })
      .option('quiet', { alias: 'q', type: 'boolean', default: false, describe: 'Print nothing' })
      .example(
        '$0 commit --wait /mnt/disks/vm.raw',
        'The view goes on over the image below, under the guest',
      )
      .example('$0 commit overlay.qcow2', 'Its backing image shows what it shows; it is empty'),
  run: async (options) => {
    const { file } = options;
    if (await isView(file)) return commitView(options);
    for (const name of ['top', 'speed', 'force', 'wait'] as const) {
      if (options[name] !== undefined && options[name] !== false)
        throw new UsageError('is for a view of a mount', `--${name}`);
    }
    await stat(file);
    const progress = await startProgress('commit', options.progress);
    try {
      const context = await offlineContext(options);
      await interruptible((signal) =>
        commitImage(
          {
            path: file,
            format: options.format ?? null,
            base: options.base ?? null,
            keep: options.keep,
            progress: progress.update,
            pace: paceOf(options.rate, signal),
            signal,
          },
          context,
        ),
      );
    } finally {
      progress.stop();
    }
    if (!options.quiet) await print('Image committed.\n');
    return EXIT.success;
  },
});

interface ViewOptions {
  readonly file: string;
  readonly base?: string | undefined;
  readonly top?: string | undefined;
  readonly speed?: string | undefined;
  readonly keep: boolean;
  readonly force: boolean;
  readonly wait: boolean;
  readonly json: boolean;
}

const commitView = async (options: ViewOptions): Promise<number> => {
  const { file, base, top, speed, keep, force, wait } = options;
  if (keep) throw new UsageError('is for images that are not mounted', '--keep');
  const { connectToDevice } = await import('../mounted-device.ts');
  const mounted = await connectToDevice(file);
  try {
    const layers = await chainOf(mounted.client, basename(file));
    const highest = top === undefined ? 0 : layers.indexOf(resolve(top));
    const below = base === undefined ? layers[highest + 1] : resolve(base);
    const given = {
      ...(below === undefined || highest < 0 ? {} : { base: below }),
      ...(top === undefined ? {} : { top: resolve(top) }),
      ...(speed === undefined ? {} : { speed: parseSize(speed, '--speed') }),
      ...(force ? { __vdiskfs_force: true } : {}),
    };
    const complete = wait && top === undefined;
    return await runJob(mounted, 'block-commit', given, {
      wait,
      complete,
      json: wantsJson(options),
    });
  } finally {
    mounted.client.close();
  }
};

/** Paths of a view's layers, top first. */
const chainOf = async (client: QmpClient, view: string): Promise<readonly string[]> => {
  const status = (await client.execute('__vdiskfs_status')) as {
    readonly views: readonly {
      readonly name: string;
      readonly chain: { readonly path: string }[];
    }[];
  };
  return status.views.find(({ name }) => name === view)?.chain.map(({ path }) => path) ?? [];
};
