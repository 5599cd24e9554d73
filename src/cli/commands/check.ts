/** `vdiskfs check`: whether an image's tables are consistent. */

import { printable } from '../../base/log.ts';
import { withoutPassword } from '../../block/remote-url.ts';
import { type CheckReport, checkImage } from '../../image/check.ts';
import { defineCommand } from '../command.ts';
import { CHECK_EXIT } from '../exit-codes.ts';
import { declareFormat, declareOffline, offlineContext } from '../offline.ts';
import { declareJson, print, printJson, wantsJson } from '../print.ts';

export const command = defineCommand({
  failureExit: CHECK_EXIT.failed,
  usageExit: CHECK_EXIT.failed,
  declare: (yargs) =>
    declareJson(declareOffline(declareFormat(yargs)))
      .positional('file', { type: 'string', demandOption: true, describe: 'Image file' })
      .option('repair', {
        alias: 'r',
        choices: ['leaks', 'all'] as const,
        requiresArg: true,
        describe: 'Mend leaked clusters alone, or wrong refcounts and COPIED flags too',
        defaultDescription: 'changes nothing',
      })
      .epilogue(
        'Exits 0 when clean, 1 when the check failed, 2 when corrupt, 3 with leaked clusters only, 63 when the format has no check.',
      )
      .example('$0 check disk.qcow2', 'Reads the tables, changes nothing')
      .example('$0 check -r all disk.qcow2', 'Mends what it finds, and checks again'),
  run: async (options) => {
    const context = await offlineContext(options);
    const checked = await checkImage(options.file, options.format ?? null, context, {
      repair: options.repair ?? 'none',
    });
    if (checked === null) {
      const subject = printable(withoutPassword(options.file));
      process.stderr.write(`vdiskfs: ${subject}: its format has no check\n`);
      return CHECK_EXIT.unsupported;
    }
    const { report, findings } = checked;
    for (const finding of findings) {
      process.stderr.write(`vdiskfs: ${printable(report.filename)}: ${printable(finding)}\n`);
    }
    await (wantsJson(options) ? printJson(report) : print(describe(report)));
    return exitOf(report);
  },
});

const exitOf = (r: CheckReport): number => {
  if (r['check-errors'] > 0) return CHECK_EXIT.failed;
  if ((r.corruptions ?? 0) > 0) return CHECK_EXIT.corrupt;
  return (r.leaks ?? 0) > 0 ? CHECK_EXIT.leaksOnly : CHECK_EXIT.clean;
};

const describeRepairs = (r: CheckReport): string[] => {
  const leaks = r['leaks-fixed'] ?? 0;
  const corruptions = r['corruptions-fixed'] ?? 0;
  if (leaks + corruptions === 0) return [];
  return [
    'The following inconsistencies were found and repaired:',
    '',
    `    ${leaks} leaked clusters`,
    `    ${corruptions} corruptions`,
    '',
    'Double checking the fixed image now...',
  ];
};

const describe = (r: CheckReport): string => {
  const { corruptions = 0, leaks = 0 } = r;
  const errors = r['check-errors'];
  const lines = describeRepairs(r);
  if (corruptions > 0) {
    lines.push(
      `${corruptions} errors were found on the image.`,
      'Data may be corrupted, or further writes to the image may corrupt it.',
    );
  }
  if (leaks > 0) {
    lines.push(
      `${leaks} leaked clusters were found on the image.`,
      'This means waste of disk space, but no harm to data.',
    );
  }
  if (errors > 0) lines.push(`${errors} internal errors have occurred during the check.`);
  if (corruptions + leaks + errors === 0) lines.push('No errors were found on the image.');
  const total = r['total-clusters'] ?? 0;
  if (total > 0) lines.push(describeClusters(r, total));
  const end = r['image-end-offset'];
  if (end !== undefined) lines.push(`Image end offset: ${end}`);
  return `${lines.join('\n')}\n`;
};

const describeClusters = (r: CheckReport, total: number): string => {
  const allocated = r['allocated-clusters'] ?? 0;
  const percent = (part: number, whole: number): string =>
    `${(whole === 0 ? 0 : (part * 100) / whole).toFixed(2)}%`;
  return [
    `${allocated}/${total} = ${percent(allocated, total)} allocated`,
    `${percent(r['fragmented-clusters'] ?? 0, allocated)} fragmented`,
    `${percent(r['compressed-clusters'] ?? 0, allocated)} compressed clusters`,
  ].join(', ');
};
