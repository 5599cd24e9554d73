/** `vdiskfs monitor`: QEMU's monitor for people. Lines from a terminal, with a prompt, or from a pipe. */
import { createInterface } from 'node:readline/promises';
import { connectToMount } from '../../daemon/control-client.ts';
import { defineCommand } from '../command.ts';
import { EXIT } from '../exit-codes.ts';
import { mountpointOf } from '../mounted-device.ts';
import { print } from '../print.ts';

const PROMPT = '(vdiskfs) ';

export const command = defineCommand({
  declare: (yargs) =>
    yargs
      .positional('mountpoint', { type: 'string', demandOption: true, describe: 'The mount' })
      .example('$0 monitor /mnt/disks', 'A prompt; help lists the commands')
      .example('echo info block | $0 monitor /mnt/disks', 'One command'),
  run: async (options) => {
    const client = await connectToMount(await mountpointOf(options.mountpoint));
    const isTerminal = process.stdin.isTTY === true;
    const input = createInterface({
      input: process.stdin,
      ...(isTerminal ? { output: process.stdout, prompt: PROMPT } : {}),
    });
    try {
      if (isTerminal) input.prompt();
      for await (const line of input) {
        const answer = await client.execute('human-monitor-command', { 'command-line': line });
        if (!(await print(String(answer).replaceAll('\r\n', '\n')))) break;
        if (line.trim() === 'quit') break;
        if (isTerminal) input.prompt();
      }
      return EXIT.success;
    } finally {
      input.close();
      client.close();
    }
  },
});
