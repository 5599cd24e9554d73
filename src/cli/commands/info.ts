/** `vdiskfs info`: what an image is. */
import { formatSize } from '../../base/size.ts';
import { chainInfo, type ImageInfo, imageInfo } from '../../image/info.ts';
import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';
import { describeSnapshots } from '../snapshot-list.ts';

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(declareOffline(declareFormat(yargs)))
      .positional('file', { type: 'string', demandOption: true, describe: 'Image file' })
      .option('backing-chain', {
        type: 'boolean',
        default: false,
        describe: 'Show every image of the backing chain, top first',
      })
      .example('$0 info disk.qcow2', 'The image alone; its backing file is not opened')
      .example('$0 info --backing-chain --json disk.qcow2', 'The whole chain, as a JSON array'),
  run: async (options) => {
    const context = await offlineContext(options);
    const format = options.format ?? null;
    const single = !options['backing-chain'];
    const chain = single
      ? [await imageInfo(options.file, format, context)]
      : await chainInfo(options.file, format, context);
    if (wantsJson(options)) await printJson(single ? chain[0] : chain);
    else await print(chain.map(describe).join('\n'));
    return EXIT.success;
  },
});

const describe = (info: ImageInfo): string => {
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${formatSize(info['virtual-size'])} (${info['virtual-size']} bytes)`,
    `disk size: ${diskSize(info)}`,
  ];
  if (info.encrypted) lines.push('encrypted: yes');
  const cluster = info['cluster-size'];
  if (cluster !== undefined) lines.push(`cluster_size: ${cluster}`);
  if (info['dirty-flag']) lines.push('cleanly shut down: no');
  lines.push(...describeBacking(info));
  const snapshots = info.snapshots ?? [];
  if (snapshots.length > 0) lines.push(...describeSnapshots(snapshots));
  const specific = info['format-specific'];
  if (specific !== undefined) {
    lines.push('Format specific information:', ...describeFields(specific.data, '    '));
  }
  return `${lines.join('\n')}\n`;
};

const diskSize = ({ 'actual-size': bytes }: ImageInfo): string =>
  bytes === undefined ? 'unavailable' : formatSize(bytes);

const describeBacking = (info: ImageInfo): string[] => {
  const name = info['backing-filename'];
  if (name === undefined) return [];
  const full = info['full-backing-filename'];
  const lines = [`backing file: ${name}${full === name ? '' : ` (actual path: ${full})`}`];
  const format = info['backing-filename-format'];
  if (format !== undefined) lines.push(`backing file format: ${format}`);
  return lines;
};

const describeFields = (fields: Readonly<Record<string, unknown>>, indent: string): string[] =>
  Object.entries(fields).flatMap(([key, value]) => {
    const label = Array.isArray(fields) ? `[${key}]` : key.replaceAll('-', ' ');
    const name = `${indent}${label}:`;
    if (typeof value !== 'object' || value === null) return [`${name} ${String(value)}`];
    return [name, ...describeFields(value as Record<string, unknown>, `${indent}    `)];
  });
