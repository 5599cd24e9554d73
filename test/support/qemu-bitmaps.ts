/** What QEMU sees of an image's dirty bitmaps. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { exists } from './host-files.ts';
import { qemuImg, qemuImgJson } from './qemu-img.ts';

const LISTEN_MS = 20_000;

export interface ListedBitmap {
  readonly name: string;
  readonly granularity: number;
  readonly flags: readonly string[];
}

/** As `qemu-img info` lists them. `options` stand in front (`['-U']`). */
export const listedBitmaps = async (
  image: string,
  options: readonly string[] = [],
): Promise<readonly ListedBitmap[]> => {
  const info = (await qemuImgJson('info', [...options, image])) as {
    'format-specific': { data: { bitmaps?: ListedBitmap[] } };
  };
  return info['format-specific'].data.bitmaps ?? [];
};

let exports = 0;

/**
 * The dirty ranges of a bitmap, `[start, end]` in bytes, from a read-only export of `qemu-nbd`. `scratch`: a directory for
 * its socket. Errors: what qemu-nbd says of a bitmap that it does not export.
 */
export const dirtyRanges = async (
  scratch: string,
  image: string,
  name: string,
): Promise<readonly (readonly [number, number])[]> => {
  const socket = join(scratch, `bitmap-${exports++}.sock`);
  const args = ['-r', '-k', socket, '-f', 'qcow2', '-B', name, image];
  const server = spawn('qemu-nbd', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let complaints = '';
  server.stderr.on('data', (chunk: Buffer) => {
    complaints += chunk.toString();
  });
  const ended = once(server, 'exit');
  try {
    await listening(server, socket, () => complaints);
    const source = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:${name}`;
    const map = JSON.parse(await qemuImg(['map', '--output=json', '--image-opts', source])) as {
      start: number;
      length: number;
      data: boolean;
    }[];
    // Through that option, what is dirty is shown as a hole.
    return joined(map.filter((m) => !m.data).map((m) => [m.start, m.start + m.length]));
  } finally {
    // It ends with its only client; a refused one has ended.
    if (server.exitCode === null) setTimeout(() => server.kill('SIGKILL'), 5000).unref();
    await ended;
  }
};

const listening = async (
  server: { readonly exitCode: number | null },
  socket: string,
  complaints: () => string,
): Promise<void> => {
  for (const end = Date.now() + LISTEN_MS; ; ) {
    if (server.exitCode !== null) throw new Error(`qemu-nbd: ${complaints()}`);
    if (await exists(socket)) return;
    if (Date.now() > end) throw new Error(`qemu-nbd does not listen: ${complaints()}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
};

const joined = (ranges: readonly (readonly [number, number])[]): [number, number][] => {
  const out: [number, number][] = [];
  for (const [start, end] of ranges) {
    const last = out.at(-1);
    if (last !== undefined && last[1] === start) last[1] = end;
    else out.push([start, end]);
  }
  return out;
};
