/** `vdiskfs qmp`: one QMP command, its answer printed as JSON. */
import { BlockError } from '../../base/block-error.ts';
import { QmpError } from '../../control/client.ts';
import { connectToMount } from '../../daemon/control-client.ts';
import { defineCommand, UsageError } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { mountpointOf } from '../mounted-device.ts';
import { printJson } from '../print.ts';

export const command = defineCommand({
  declare: (yargs) =>
    yargs
      .positional('mountpoint', { type: 'string', demandOption: true, describe: 'The mount' })
      .positional('command', {
        type: 'string',
        demandOption: true,
        describe: 'The command as JSON, or the name of one without arguments',
      })
      .example(`$0 qmp /mnt/disks query-block-jobs`, 'What works in the background')
      .example(
        `$0 qmp /mnt/disks '{"execute": "block-stream", "arguments": {"device": "vm"}}'`,
        'Begin a stream',
      ),
  run: async (options) => {
    const { name, given } = parse(options.command);
    const client = await connectToMount(await mountpointOf(options.mountpoint));
    try {
      await printJson(await client.execute(name, given));
      return EXIT.success;
    } catch (error) {
      if (!(error instanceof QmpError)) throw error;
      const message = `${name}: ${error.errorClass}: ${error.message}`;
      throw new BlockError({ kind: 'bad-request', message });
    } finally {
      client.close();
    }
  },
});

const parse = (text: string): { name: string; given: Record<string, unknown> } => {
  if (/^[A-Za-z_][\w-]*$/.test(text)) return { name: text, given: {} };
  let message: { execute?: unknown; arguments?: unknown } | null;
  try {
    message = JSON.parse(text) as { execute?: unknown; arguments?: unknown } | null;
  } catch (error) {
    throw new UsageError(`is no JSON: ${(error as Error).message}`, 'COMMAND');
  }
  const { execute, arguments: given = {} } = message ?? {};
  if (typeof execute !== 'string' || typeof given !== 'object' || given === null) {
    throw new UsageError('needs the form {"execute": NAME, "arguments": {…}}', 'COMMAND');
  }
  return { name: execute, given: given as Record<string, unknown> };
};
