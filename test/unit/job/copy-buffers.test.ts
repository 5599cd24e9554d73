import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { CopyBuffers } from '../../../src/job/copy-buffers.ts';
import { CopyMemory } from '../../../src/job/copy-memory.ts';

const PIECE = 1 << 10;
const PIECES = 8;
const ALL = PIECES * PIECE;

/** Copies that are in flight until they are let go. */
class Held {
  readonly buffers: CopyBuffers;
  readonly #ends: (() => void)[] = [];
  readonly #pending: Promise<void>[] = [];
  bytes = 0;

  constructor(memory: CopyMemory) {
    this.buffers = new CopyBuffers(memory, PIECE);
  }

  begin(lengthBytes = PIECE): void {
    const copy = this.buffers.with(lengthBytes, async (bytes) => {
      this.bytes += bytes.length;
      await new Promise<void>((resolve) => this.#ends.push(resolve));
      this.bytes -= bytes.length;
    });
    this.#pending.push(copy);
  }

  /** The copy that is longest in flight. */
  async endOne(): Promise<void> {
    this.#ends.shift()?.();
    await turn();
  }

  async endAll(): Promise<void> {
    while (this.bytes > 0) await this.endOne();
    await Promise.all(this.#pending);
  }
}

test('jobs that copy at once share the memory of one, and each gets on', async () => {
  const memory = new CopyMemory(ALL);
  const jobs = Array.from({ length: 4 }, () => new Held(memory));
  const [first, ...others] = jobs as [Held, ...Held[]];
  for (let i = 0; i < 2 * PIECES; i++) first.begin();
  await turn();
  assert.equal(first.bytes, ALL, 'alone it has all of it');
  for (const job of others) for (let i = 0; i < 2 * PIECES; i++) job.begin();
  for (let i = 0; i < PIECES; i++) {
    for (const job of jobs) {
      assert.ok(job.bytes > 0, 'nobody waits for another');
      await job.endOne();
    }
    // Until the first has given back what is others' now.
    if (i < PIECES - 3) continue;
    const all = jobs.reduce((sum, { bytes }) => sum + bytes, 0);
    assert.ok(all <= ALL, `${all} bytes`);
  }
  for (const job of jobs) await job.endAll();
  assert.equal(first.buffers.copiesAtOnce, PIECES, 'alone again');
});

test('there is room for one piece, however many copy, and however large it is', async () => {
  const memory = new CopyMemory(ALL);
  const jobs = Array.from({ length: 3 * PIECES }, () => new Held(memory));
  for (const job of jobs) {
    assert.ok(job.buffers.copiesAtOnce >= 1);
    job.begin();
  }
  for (const job of jobs) job.begin();
  const [one] = jobs as [Held];
  await turn();
  assert.equal(one.bytes, PIECE);
  for (const job of jobs) await job.endAll();
  one.begin(3 * ALL);
  one.begin();
  await turn();
  assert.equal(one.bytes, 3 * ALL, 'alone');
  await one.endOne();
  assert.equal(one.bytes, PIECE);
  await one.endAll();
});

test('a copy that fails gives its memory back', async () => {
  const buffers = new CopyBuffers(new CopyMemory(PIECE), PIECE);
  const failing = buffers.with(PIECE, async () => {
    throw new Error('as asked for');
  });
  await assert.rejects(failing, /as asked for/);
  assert.equal(await buffers.with(PIECE, async ({ length }) => length), PIECE);
});
