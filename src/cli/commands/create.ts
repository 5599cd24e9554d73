/** `vdiskfs create`: makes an image. */
import { createImage } from '../../image/create.ts';
import { defineCommand } from '../command.ts';
import {
  asksForHelp,
  backingOf,
  declareCreation,
  describeOptions,
  gather,
  ownOptions,
} from '../creation.ts';
import { EXIT } from '../exit-codes.ts';
import { declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { parseSize } from '../size.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareCreation(declareJson(declareOffline(yargs)))
      .positional('file', { type: 'string', demandOption: true, describe: 'Image to make' })
      .positional('size', {
        type: 'string',
        describe: 'Virtual size (64k, 8M, 10G) [default: that of the backing image]',
      })
      .option('format', {
        alias: 'f',
        type: 'string',
        default: 'raw',
        requiresArg: true,
        describe: 'Format of the new image',
      })
      .option('backing', {
        alias: 'b',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'none',
        describe: "Backing image, named from the new image's directory",
      })
      .option('unsafe', {
        alias: 'u',
        type: 'boolean',
        default: false,
        describe: 'Do not open the backing image; it need not exist',
      })
      .example('$0 create -f qcow2 disk.qcow2 10G', 'An empty disk of 10 GiB')
      .example('$0 create -f qcow2 -b base.img -F raw top.qcow2', 'An overlay as large as its base')
      .example('$0 create -f qcow2 -o cluster_size=2M,lazy_refcounts=on a.qcow2 1T', 'With options')
      .example(
        '$0 create -f add-cow -b base.img -F raw -o image_file=disk.raw disk.add-cow',
        'An overlay whose data goes to a raw file that is there (truncate -s 10G disk.raw)',
      ),
  run: async (options) => {
    const context = await offlineContext(options);
    const descriptor = context.registry.format(options.format);
    if (asksForHelp(options.options)) {
      await print(describeOptions(descriptor));
      return EXIT.success;
    }
    const settings = gather(options);
    const virtualSize = await createImage(
      {
        path: options.file,
        format: descriptor.name,
        virtualSizeBytes: settings.size === undefined ? null : parseSize(settings.size, 'SIZE'),
        options: ownOptions(settings, descriptor),
        backing: backingOf(settings, descriptor.recordsBackingFormat),
        withoutOpeningBacking: options.unsafe,
      },
      context,
    );
    if (wantsJson(options)) {
      const created = { filename: options.file, format: descriptor.name };
      await printJson({ ...created, 'virtual-size': virtualSize });
    }
    return EXIT.success;
  },
});
