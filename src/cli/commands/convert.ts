/** `vdiskfs convert`: copies what images show into another one. */
import type { Argv } from 'yargs';
import { printable } from '../../base/log.ts';
import { convertImages } from '../../image/convert.ts';
import { detachImage } from '../../image/detach.ts';
import type { OfflineContext } from '../../image/open.ts';
import { LostRanges } from '../../image/salvage.ts';
import { defineCommand, UsageError } from '../command.ts';
import {
  asksForHelp,
  backingOf,
  declareCreation,
  describeOptions,
  gather,
  ownOptions,
} from '../creation.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { interruptible, startProgress } from '../progress.ts';
import { declareRate, paceOf } from '../rate.ts';
import { parseSize } from '../size.ts';

const MAX_PARALLEL = 16;

/** How it is copied. */
const declareCopying = <T>(yargs: Argv<T>) =>
  declareRate(yargs)
    .option('no-create', {
      alias: 'n',
      type: 'boolean',
      default: false,
      describe: 'Write into an image that is there',
    })
    .option('target-is-zero', {
      type: 'boolean',
      default: false,
      describe: 'The image that is there shows nothing but zeros: they need no writing',
    })
    .option('sparse', {
      alias: 'S',
      type: 'string',
      default: '4k',
      requiresArg: true,
      describe: 'Stretches of zeros from this size on become holes; 0: none',
    })
    .option('parallel', {
      alias: 'm',
      type: 'number',
      default: 8,
      requiresArg: true,
      describe: 'Pieces in flight, 1 to 16',
    })
    .option('out-of-order', {
      alias: 'W',
      type: 'boolean',
      default: false,
      describe: 'Let pieces be written as they come',
    })
    .option('salvage', {
      type: 'boolean',
      default: false,
      describe: 'Go on where the source cannot be read: zeros take the place, and are told',
    })
    .option('progress', {
      alias: 'p',
      type: 'boolean',
      defaultDescription: 'on a terminal',
      describe: 'Show a progress bar',
    });

export const command = defineCommand({
  declare: (yargs) =>
    declareCopying(
      declareCreation(
        declareFormat(
          declareJson(declareOffline(yargs)),
          'Format of the sources, which are not probed then',
        ),
      ),
    )
      .positional('files', {
        type: 'string',
        array: true,
        demandOption: true,
        describe: 'Images to copy, one after the other, and the image to make of them',
      })
      .option('detach', {
        type: 'boolean',
        default: false,
        describe: 'Remove FILE, an add-cow file whose data is all in its image file',
      })
      .option('output-format', {
        alias: 'O',
        type: 'string',
        default: 'raw',
        requiresArg: true,
        describe: 'Format of the new image',
      })
      .option('snapshot', {
        alias: 'l',
        type: 'string',
        requiresArg: true,
        describe: 'Copy a snapshot of the source: its id or name, or snapshot.id=…,snapshot.name=…',
      })
      .option('compress', {
        alias: 'c',
        type: 'boolean',
        default: false,
        describe: 'Pack the clusters of the new image (qcow2)',
      })
      .option('backing', {
        alias: 'B',
        type: 'string',
        requiresArg: true,
        describe: 'Backing image of the new one, which has what the source has below its top',
      })
      .option('bitmaps', {
        type: 'boolean',
        default: false,
        describe: 'Take along the dirty bitmaps that the source keeps (qcow2)',
      })
      .option('skip-broken-bitmaps', {
        type: 'boolean',
        default: false,
        describe: 'Leave behind those that were not saved, which are refused otherwise',
      })
      .example('$0 convert -O qcow2 -c disk.raw disk.qcow2', 'A packed copy')
      .example('$0 convert --detach disk.add-cow', 'Its image file stands alone from now on')
      .example('$0 convert part1.raw part2.raw whole.raw', 'Two images, one after the other'),
  run: async (options) => {
    const context = await offlineContext(options);
    if (options.detach) return detach(options, context);
    const descriptor = context.registry.format(options['output-format']);
    if (asksForHelp(options.options)) {
      await print(describeOptions(descriptor));
      return EXIT.success;
    }
    const sources = options.files.slice(0, -1);
    const target = options.files.at(-1);
    if (target === undefined || sources.length === 0)
      throw new UsageError('needs an image to copy and one to make', 'convert');
    const { parallel } = options;
    if (!Number.isInteger(parallel) || parallel < 1 || parallel > MAX_PARALLEL)
      throw new UsageError(`is not a whole number from 1 to ${MAX_PARALLEL}`, '--parallel');
    if (options.snapshot !== undefined && (sources.length > 1 || options.bitmaps))
      throw new UsageError('copies one snapshot of one image, and no bitmaps', '--snapshot');
    const { bitmaps, 'skip-broken-bitmaps': skipBroken } = options;
    if (skipBroken && !bitmaps) throw new UsageError('needs --bitmaps', '--skip-broken-bitmaps');
    if (options['target-is-zero'] && !options['no-create'])
      throw new UsageError('is said of an image that is there: needs -n', '--target-is-zero');
    const settings = gather(options);
    if (settings.size !== undefined)
      throw new UsageError('is that of the sources; vdiskfs resize changes it', 'size');
    const salvage = options.salvage ? new LostRanges() : null;
    const progress = await startProgress('convert', options.progress);
    try {
      const bytes = await interruptible((signal) =>
        convertImages(
          {
            sources,
            sourceFormat: options.format ?? null,
            snapshot: options.snapshot ?? null,
            target,
            targetFormat: descriptor.name,
            options: ownOptions(settings, descriptor),
            backing: backingOf(settings),
            existing: options['no-create'],
            targetIsZero: options['target-is-zero'],
            compress: options.compress,
            parallel,
            outOfOrder: options['out-of-order'],
            sparseBytes: parseSize(options.sparse, '--sparse'),
            bitmaps: !bitmaps ? 'leave' : skipBroken ? 'copy-sound' : 'copy',
            salvage,
            progress: progress.update,
            pace: paceOf(options.rate, signal),
            signal,
          },
          context,
        ),
      );
      progress.stop();
      tellLost(salvage);
      if (wantsJson(options)) {
        const lost = salvage === null ? {} : { 'lost-bytes': salvage.lostBytes };
        const made = { filename: target, format: descriptor.name, 'virtual-size': bytes };
        await printJson({ ...made, ...lost });
      }
      return EXIT.success;
    } finally {
      progress.stop();
    }
  },
});

const tellLost = (salvage: LostRanges | null): void => {
  if (salvage === null || salvage.lostBytes === 0) return;
  for (const { start, lengthBytes, reason } of salvage.ranges) {
    const where = `${lengthBytes} bytes at 0x${start.toString(16)}`;
    process.stderr.write(`vdiskfs: warning: ${where} are zeros: ${printable(reason)}\n`);
  }
  process.stderr.write(`vdiskfs: warning: ${salvage.lostBytes} bytes could not be read\n`);
};

const detach = async (
  options: Parameters<typeof wantsJson>[0] & {
    readonly files: readonly string[];
    readonly format?: string | undefined;
  },
  context: OfflineContext,
): Promise<number> => {
  const [path, other] = options.files;
  if (path === undefined || other !== undefined)
    throw new UsageError('takes one add-cow file, and makes none', '--detach');
  const remaining = await detachImage(path, options.format ?? null, context);
  if (wantsJson(options)) await printJson({ filename: remaining });
  else await print(`${printable(remaining)} holds all data now\n`);
  return EXIT.success;
};
