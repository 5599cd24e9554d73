/** Running the guest that is killed, and what its image must hold afterwards. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { seededRandom } from '../../src/base/random.ts';
import { LANES, nextOperation, type Operation } from './sigkill-operations.ts';

const GUEST = fileURLToPath(new URL('./sigkill-guest.js', import.meta.url));

/** Begun and answered operations of each lane. */
export interface Progress {
  readonly begun: number[];
  readonly done: number[];
}

/** Starts the guest and kills it `afterMs` after it has opened the image. */
export const runAndKill = (args: readonly string[], afterMs: number): Promise<Progress> =>
  new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [GUEST, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    let complaints = '';
    let armed = false;
    child.stderr.on('data', (chunk: Buffer) => {
      complaints += chunk.toString('utf8');
    });
    child.stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString('utf8');
      if (armed || !text.startsWith('open\n')) return;
      armed = true;
      setTimeout(() => child.kill('SIGKILL'), afterMs);
    });
    child.once('error', reject);
    child.once('close', (code, signal) => {
      if (signal !== 'SIGKILL') reject(new Error(`the guest ended with ${code}: ${complaints}`));
      else resolve(progressOf(text));
    });
  });

const progressOf = (text: string): Progress => {
  const begun = new Array<number>(LANES).fill(0);
  const done = new Array<number>(LANES).fill(0);
  for (const line of text.split('\n')) {
    const [what, lane, index] = line.split(' ');
    if (what === 'begin') begun[Number(lane)] = Number(index) + 1;
    if (what === 'done') done[Number(lane)] = Number(index) + 1;
  }
  return { begun, done };
};

/** The content that must be there; what was under way in each lane may be there too. */
export const expected = (
  start: Uint8Array,
  seed: number,
  progress: Progress,
): { content: Uint8Array; open: Operation[] } => {
  const content = Uint8Array.from(start);
  const open: Operation[] = [];
  for (let lane = 0; lane < LANES; lane++) {
    const random = seededRandom(seed + lane);
    for (let i = 0; i < (progress.begun[lane] ?? 0); i++) {
      const op = nextOperation(random, lane, start.length);
      if (i < (progress.done[lane] ?? 0)) content.set(op.bytes, op.offset);
      else open.push(op);
    }
  }
  return { content, open };
};

export const settle = (
  content: Uint8Array,
  open: readonly Operation[],
  found: Uint8Array,
  what: string,
): void => {
  for (let at = 0; at < content.length; at++) {
    if (found[at] === content[at]) continue;
    const isOpen = open.some(
      (o) =>
        at >= o.offset && at < o.offset + o.bytes.length && o.bytes[at - o.offset] === found[at],
    );
    assert.ok(isOpen, `${what}: byte ${at} is ${found[at]}, answered as ${content[at]}`);
  }
};
