/** `vdiskfs resize`: changes the virtual size of an image, or of a view while it is used. */
import { stat, truncate } from 'node:fs/promises';
import { BlockError, toBlockError } from '../../base/block-error.ts';
import { readSize } from '../../base/size.ts';
import { isView } from '../../daemon/mount-table.ts';
import { type ResizeRequest, resizeImage } from '../../image/resize.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareFormat(declareJson(declareOffline(yargs)))
      .positional('file', {
        type: 'string',
        demandOption: true,
        describe: 'Image, or the path of a view in a mount',
      })
      .positional('size', {
        type: 'string',
        demandOption: true,
        describe: 'New size; with + or - what is added or taken off',
      })
      .option('shrink', {
        type: 'boolean',
        default: false,
        describe: 'A smaller size is meant: what lies past the new end is lost',
      })
      .option('preallocation', {
        choices: ['off', 'metadata', 'falloc', 'full'] as const,
        default: 'off' as const,
        requiresArg: true,
        describe: 'Give space to what is added: none, its mapping, reserved, written',
      })
      .example('$0 resize disk.qcow2 +10G', 'Ten GiB more')
      .example('$0 resize --shrink disk.qcow2 5G', 'Smaller'),
  run: async (options) => {
    const request: ResizeRequest = {
      path: options.file,
      format: options.format ?? null,
      size: parseChange(options.size),
      shrink: options.shrink,
      preallocation: options.preallocation,
    };
    const bytes = (await isView(options.file))
      ? await resizeView(request)
      : await resizeImage(request, await offlineContext(options));
    if (wantsJson(options)) await printJson({ filename: options.file, 'virtual-size': bytes });
    else await print('Image resized.\n');
    return EXIT.success;
  },
});

/** `10G`, `+1G`, `-512M` (with a blank in front: see command-line.ts). */
const parseChange = (argument: string): ResizeRequest['size'] => {
  const text = argument.trim();
  const sign = /^[+-]/.exec(text)?.[0];
  const size = readSize(sign === undefined ? text : text.slice(1));
  if ('problem' in size) throw new UsageError(size.problem, 'SIZE');
  return { bytes: sign === '-' ? -size.bytes : size.bytes, isRelative: sign !== undefined };
};

// The mount does the rest: the kernel's idea of the size changes with it, and --allow-shrink is the mount's.
const resizeView = async ({
  path,
  size,
  shrink,
  preallocation,
}: ResizeRequest): Promise<number> => {
  const wrong = (message: string, hint: string): BlockError =>
    new BlockError({ kind: 'bad-request', message, hint, path, op: 'resize' });
  if (preallocation !== 'off')
    throw wrong('is in use, and gets no preallocation', 'fallocate(1) does it on the view');
  const old = (await stat(path)).size;
  const now = size.isRelative ? old + size.bytes : size.bytes;
  if (now < old && !shrink)
    throw wrong(`would become smaller (${old} to ${now} bytes)`, 'give --shrink if that is meant');
  await truncate(path, now).catch((error: unknown) => {
    throw toBlockError(error, { op: 'resize', path });
  });
  return (await stat(path)).size;
};
