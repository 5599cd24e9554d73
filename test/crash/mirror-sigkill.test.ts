/**
 * SIGKILL of the engine at any moment of a pivot, under a guest that writes: whichever of the two images the view goes on over,
 * it has everything that was answered, and the one that is left behind is whole.
 */
import assert from 'node:assert/strict';
import { mkdir, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { type ControlMount, controlMount } from '../control/control-mount.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { run } from '../support/vdiskfs.ts';

const MIB = 1 << 20;
const SIZE_MIB = 8;
const BLOCK_BYTES = 4096;
const BLOCKS = (SIZE_MIB * MIB) / BLOCK_BYTES;

/** Writes one block after the other somewhere, each with a number of its own, until it is stopped. */
class Guest {
  readonly #random: Random;
  readonly #path: string;
  readonly expected = new Map<number, number>();
  #isOver = false;
  #writing: Promise<void> = Promise.resolve();
  writes = 0;

  constructor(path: string, random: Random) {
    this.#path = path;
    this.#random = random;
  }

  start(): void {
    this.#isOver = false;
    this.#writing = this.#write();
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#writing;
  }

  async #write(): Promise<void> {
    const file = await open(this.#path, 'r+');
    try {
      while (!this.#isOver) {
        const block = this.#random.below(BLOCKS);
        const bytes = Buffer.alloc(BLOCK_BYTES);
        bytes.writeUInt32LE(++this.writes, 0);
        bytes.writeUInt32LE(this.writes, BLOCK_BYTES - 4);
        await file.write(bytes, 0, bytes.length, block * BLOCK_BYTES);
        this.expected.set(block, this.writes);
        if (this.writes % 4 === 0) await file.datasync();
      }
      await file.datasync();
    } finally {
      await file.close();
    }
  }
}

const assertContent = (bytes: Buffer, guest: Guest, what: string): void => {
  for (const [block, number] of guest.expected) {
    const at = block * BLOCK_BYTES;
    const seen = [bytes.readUInt32LE(at), bytes.readUInt32LE(at + BLOCK_BYTES - 4)];
    assert.deepEqual(seen, [number, number], `block ${block}, ${what}`);
  }
};

interface ViewStatus {
  readonly name: string;
  readonly path: string;
}

const pathOf = async (m: ControlMount): Promise<string> => {
  const { views } = (await vdiskfsJson(['status', m.mountpoint])) as { views: ViewStatus[] };
  const view = views.find(({ name }) => name === 'vm.raw');
  assert.ok(view !== undefined, 'the view is there');
  return view.path;
};

const settleJobs = async (m: ControlMount): Promise<void> => {
  const c = await m.qmp();
  await eventually('no job is left', async () => {
    const jobs = (await c.execute('query-jobs')) as { status: string }[];
    const isReady = jobs.some(({ status }) => status === 'ready');
    if (isReady) await c.execute('job-complete', { id: 'vm' }).catch(() => undefined);
    return jobs.length === 0;
  });
  c.close();
};

/** More of them in one mount would be taken for an image that engines die of. */
const KILLS = 4;

for (let round = 0; round < countOf(1); round++) {
  const seed = SEED + round;
  test(`every answered write survives SIGKILL in a mirror and its pivot (seed ${seed})`, (t) =>
    killAndJudge(t, seed));
}

const killAndJudge = async (t: TestContext, seed: number): Promise<void> => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const random = seededRandom(seed);
  const directory = join(m.root, 'elsewhere');
  await mkdir(directory);
  const guest = new Guest(m.view, random);
  const copy = join(m.root, 'copy');
  const outcomes = new Set<string>();
  const assertView = async (what: string): Promise<void> => {
    await run('dd', [`if=${m.view}`, `of=${copy}`, 'bs=1M', 'iflag=direct']);
    assertContent(await readFile(copy), guest, what);
  };
  for (let kill = 0; kill < KILLS; kill++) {
    const before = await pathOf(m);
    const target = join(directory, `disk${kill}.qcow2`);
    const what = `kill ${kill} of seed ${seed}`;
    const c = await m.qmp();
    await c.execute('drive-mirror', {
      device: 'vm',
      target,
      sync: 'full',
      format: 'qcow2',
      'copy-mode': kill % 2 === 0 ? 'background' : 'write-blocking',
    });
    guest.start();
    const pid = await m.enginePid();
    // In the first phase, or in the pivot.
    if (kill % 4 === 3) await sleep(random.below(60));
    else {
      await c.event('BLOCK_JOB_READY');
      await sleep(20);
      c.socket.write('{"execute": "job-complete", "arguments": {"id": "vm"}}');
      await sleep(random.below(45));
    }
    process.kill(pid, 'SIGKILL');
    await sleep(300);
    await guest.stop();
    c.close();
    const now = await pathOf(m);
    assert.ok(now === before || now === target, what);
    outcomes.add(now === target ? 'pivot' : 'none');
    await assertView(what);
    // One that had not pivoted goes on: its target lacks nothing at its end.
    await settleJobs(m);
    assert.equal(await pathOf(m), target, what);
    await assertView(`${what}, at the end`);
  }
  const last = await pathOf(m);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await assertClean(last);
  await qemuImg(['convert', '-O', 'raw', last, copy]);
  assertContent(await readFile(copy), guest, 'in the image');
  t.diagnostic(`killed before and after pivots: ${[...outcomes].join(', ')}`);
};
