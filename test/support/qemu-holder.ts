/** An image that QEMU keeps open. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Cleanup } from './scratch.ts';

/** Has qemu-io hold an image open, for writing unless `options` say `-r`, until test `t` ends. */
export const holdWithQemu = async (
  t: Cleanup,
  image: string,
  options: readonly string[] = [],
): Promise<void> => {
  const child = spawn('qemu-io', [...options, image], { stdio: ['pipe', 'pipe', 'pipe'] });
  const ended = once(child, 'exit');
  t.after(async () => {
    child.stdin.end('quit\n');
    await ended;
  });
  const prompt = new Promise<void>((resolve, reject) => {
    let text = '';
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      if (text.includes('qemu-io>')) resolve();
    });
    child.stderr.on('data', (chunk: Buffer) => reject(new Error(`qemu-io: ${chunk.toString()}`)));
    child.on('error', reject);
  });
  await prompt;
};
