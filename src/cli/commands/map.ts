/** `vdiskfs map`: where an image's content lies. */
import { mapImage, type PlacedRecord } from '../../image/map.ts';
import { openImage } from '../../image/open.ts';
import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, wantsJson } from '../print.ts';
import { parseSize } from '../size.ts';

/** Records are printed this many at a time. */
const BATCH = 1000;

export const command = defineCommand({
  declare: (yargs) =>
    declareJson(declareOffline(declareFormat(yargs)))
      .positional('file', { type: 'string', demandOption: true, describe: 'Image file' })
      .option('start-offset', {
        alias: 's',
        type: 'string',
        default: '0',
        requiresArg: true,
        describe: 'Guest offset to begin at',
      })
      .option('max-length', {
        alias: 'l',
        type: 'string',
        requiresArg: true,
        defaultDescription: 'to the end',
        describe: 'How much to show',
      })
      .example('$0 map disk.qcow2', 'The ranges that hold data, and the files that they lie in')
      .example('$0 map --json disk.qcow2', 'Every range: allocated, zero, how deep in the chain'),
  run: async (options) => {
    const length = options['max-length'];
    const range = {
      startBytes: parseSize(options['start-offset'], '--start-offset'),
      lengthBytes: length === undefined ? Infinity : parseSize(length, '--max-length'),
    };
    const context = await offlineContext(options);
    const format = options.format ?? null;
    await using image = await openImage(options.file, format, context, { withoutKey: true });
    const records = mapImage(image.root, range);
    await (wantsJson(options) ? printRecords(records) : printTable(records));
    return EXIT.success;
  },
});

const printRecords = async (records: AsyncIterable<PlacedRecord>): Promise<void> => {
  let batch: string[] = [];
  let separator = '[';
  for await (const { record } of records) {
    batch.push(`${separator}${JSON.stringify(record)}`);
    separator = ',\n';
    if (batch.length >= BATCH) {
      if (!(await print(batch.join('')))) return;
      batch = [];
    }
  }
  await print(`${batch.join('')}${separator === '[' ? '[' : ''}]\n`);
};

const printTable = async (records: AsyncIterable<PlacedRecord>): Promise<void> => {
  const hex = (n: number): string => (n === 0 ? '0' : `0x${n.toString(16)}`).padEnd(16);
  await print(`${'Offset'.padEnd(16)}${'Length'.padEnd(16)}${'Mapped to'.padEnd(16)}File\n`);
  for await (const { record, path, encrypted } of records) {
    if (!record.data || record.zero) continue;
    const nowhere = encrypted ? '(encrypted)' : '(compressed)';
    const where = record.offset === undefined ? nowhere.padEnd(16) : hex(record.offset);
    const row = `${hex(record.start)}${hex(record.length)}${where}${path ?? ''}\n`;
    if (!(await print(row))) return;
  }
};
