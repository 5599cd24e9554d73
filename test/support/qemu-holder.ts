/** An image that QEMU keeps open. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Cleanup } from './scratch.ts';

/**
 * Has qemu-io hold an image open, for writing unless `options` say `-r`, until test `t` ends or the function that this
 * returns is called.
 */
export const holdWithQemu = async (
  t: Cleanup,
  image: string,
  options: readonly string[] = [],
): Promise<() => Promise<void>> => {
  const child = spawn('qemu-io', [...options, image], { stdio: ['pipe', 'pipe', 'pipe'] });
  const ended = once(child, 'exit');
  const release = async (): Promise<void> => {
    if (!child.stdin.writableEnded) child.stdin.end('quit\n');
    await ended;
  };
  t.after(release);
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
  return release;
};
