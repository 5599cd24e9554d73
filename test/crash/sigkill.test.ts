/** SIGKILL of the engine at any moment: every answered write is there when the image is opened again, and the image is sound. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { LANES, nextOperation, type Operation } from './sigkill-operations.ts';

const DISK_BYTES = 2 << 20;
const KILLS = countOf(6);
const GUEST = fileURLToPath(new URL('./sigkill-guest.js', import.meta.url));

/** Begun and answered operations of each lane. */
interface Progress {
  readonly begun: number[];
  readonly done: number[];
}

/** Starts the guest and kills it `afterMs` after it has opened the image. */
const runAndKill = (args: readonly string[], afterMs: number): Promise<Progress> =>
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
const expected = (
  start: Uint8Array,
  seed: number,
  progress: Progress,
): { content: Uint8Array; open: Operation[] } => {
  const content = Uint8Array.from(start);
  const open: Operation[] = [];
  for (let lane = 0; lane < LANES; lane++) {
    const random = seededRandom(seed + lane);
    for (let i = 0; i < (progress.begun[lane] ?? 0); i++) {
      const op = nextOperation(random, lane, DISK_BYTES);
      if (i < (progress.done[lane] ?? 0)) content.set(op.bytes, op.offset);
      else open.push(op);
    }
  }
  return { content, open };
};

const settle = (
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

for (const options of [
  'cluster_size=4k',
  'cluster_size=64k,refcount_bits=8',
  'cluster_size=512,compat=0.10',
]) {
  test(`every answered write survives SIGKILL (${options})`, async (t) => {
    const directory = await scratchDirectory(t);
    const journals = join(directory, 'journals');
    await mkdir(journals);
    const backing = join(directory, 'base.raw');
    let content: Uint8Array = new Uint8Array(DISK_BYTES);
    for (let i = 0; i < DISK_BYTES / 2; i++) content[i] = 1 + (i % 251);
    await writeFile(backing, content.subarray(0, DISK_BYTES / 2));
    const image = join(directory, 'disk.qcow2');
    await qemuImg([
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      options,
      '-b',
      backing,
      '-F',
      'raw',
      image,
      String(DISK_BYTES),
    ]);
    const random = seededRandom(SEED);
    for (let kill = 0; kill < KILLS; kill++) {
      const seed = SEED + kill * 101;
      const what = `seed ${SEED}, kill ${kill} of ${options}`;
      const progress = await runAndKill(
        [image, directory, journals, String(seed)],
        random.below(120),
      );
      // A crash of the process that takes the journal up: it is taken up again.
      if (kill % 3 === 2)
        await runAndKill([image, directory, journals, String(seed)], 0).catch(() => undefined);
      const { content: answered, open } = expected(content, seed, progress);
      const graph = await testGraph({ directory, journalDirectory: journals });
      // Also who only reads sees what was answered: as the backing image of another, say.
      const node = await graph.open({ path: image, format: 'qcow2', readOnly: kill % 2 === 1 });
      const found = new Uint8Array(DISK_BYTES);
      await node.read(guestOffset(0), found);
      await graph.close(node);
      if (kill % 3 !== 2) settle(answered, open, found, what);
      await qemuImg(['check', '-q', '-f', 'qcow2', image], [0, 3]);
      assert.deepEqual(await readdir(journals), [], `${what}: a clean close leaves no journal`);
      const flat = join(directory, 'flat.raw');
      await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', image, flat]);
      assert.ok(
        Buffer.compare(await readFile(flat), found) === 0,
        `${what}: QEMU reads what we read`,
      );
      content = found;
    }
  });
}
