/** Writes that are done in one turn of the event loop: when they are, and that nothing is left of one that is not. */
import assert from 'node:assert/strict';
import { closeSync, openSync, writeSync } from 'node:fs';
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { present } from '../../../../src/base/assert.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import type { Node } from '../../../../src/block/node.ts';
import { delayedFile, type Interference } from '../../../support/delayed-file.ts';
import { qemuImg } from '../../../support/qemu-img.ts';
import { scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

const CLUSTER = 65_536;
const PAGE = 4096;
const DISK_BYTES = 16 * CLUSTER;

class Subject {
  readonly root: Node;
  readonly journals: string;
  readonly #expected: Buffer;
  readonly #close: () => Promise<void>;
  readonly path: string;

  constructor(parts: {
    root: Node;
    path: string;
    journals: string;
    expected: Buffer;
    close: () => Promise<void>;
  }) {
    this.root = parts.root;
    this.journals = parts.journals;
    this.path = parts.path;
    this.#expected = parts.expected;
    this.#close = parts.close;
  }

  /** An image over a backing file of 0xbb, which lacks the last cluster. */
  static async open(t: TestContext, host: Interference): Promise<Subject> {
    const directory = await scratchDirectory(t);
    const [path, backing] = [join(directory, 'top.qcow2'), join(directory, 'base.raw')];
    const journals = join(directory, 'journals');
    await writeFile(backing, Buffer.alloc(DISK_BYTES - CLUSTER, 0xbb));
    await qemuImg([
      ...['create', '-q', '-f', 'qcow2', '-b', backing, '-F', 'raw'],
      ...[path, String(DISK_BYTES)],
    ]);
    const file = delayedFile(path, host);
    const graph = await testGraph({ directory, file, journalDirectory: journals });
    const root = await graph.open({ path, format: 'qcow2', readOnly: false });
    const expected = Buffer.alloc(DISK_BYTES, 0xbb).fill(0, DISK_BYTES - CLUSTER);
    const close = (): Promise<void> => graph.close(root);
    const subject = new Subject({ root, path, journals, expected, close });
    // The first write makes the image ready for others, and its L2 table.
    await subject.write(0, PAGE, 1);
    return subject;
  }

  /** `along`: what the cluster reads as comes with the write. */
  atOnce(offset: number, lengthBytes: number, fill: number, along = false): boolean {
    const bytes = Buffer.alloc(lengthBytes, fill);
    const start = offset - (offset % CLUSTER);
    const cluster = along ? Buffer.from(this.#expected.subarray(start, start + CLUSTER)) : null;
    const isDone = this.root.driver.writeAtOnce?.(guestOffset(offset), bytes, cluster) === true;
    if (isDone) bytes.copy(this.#expected, offset);
    return isDone;
  }

  /** A host that was slow is left alone for a while: then what could be done at once is not. */
  async soon(offset: number, lengthBytes: number, fill: number, what: string): Promise<void> {
    for (let tries = 0; !this.atOnce(offset, lengthBytes, fill); tries++) {
      assert.ok(tries < 100, what);
      await sleep(100);
    }
  }

  async write(offset: number, lengthBytes: number, fill: number): Promise<void> {
    const bytes = Buffer.alloc(lengthBytes, fill);
    await this.root.write(guestOffset(offset), bytes);
    bytes.copy(this.#expected, offset);
  }

  async judge(t: TestContext): Promise<void> {
    await this.#close();
    await qemuImg(['check', this.path]);
    const expected = join(await scratchDirectory(t), 'expected');
    await writeFile(expected, this.#expected);
    await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', expected, this.path]);
  }
}

const quick: Interference = { before: async () => undefined, atOnce: () => true };

test('a write is done at once: new, over backing, of a snapshot, in place', async (t) => {
  const subject = await Subject.open(t, quick);
  await subject.soon(2 * CLUSTER + PAGE, PAGE, 2, 'over the backing');
  await subject.soon(2 * CLUSTER, PAGE, 3, 'in place');
  await subject.soon(3 * CLUSTER, CLUSTER, 4, 'all of a cluster');
  await subject.soon(15 * CLUSTER + PAGE, PAGE, 5, 'past the backing');
  await subject.root.writeZeroes(guestOffset(15 * CLUSTER), CLUSTER, { unmap: false });
  await subject.soon(15 * CLUSTER + PAGE, PAGE, 5, 'where zeros have a place');
  await subject.soon(5 * CLUSTER - PAGE, 2 * PAGE, 6, 'parts of two clusters');
  await subject.soon(7 * CLUSTER - PAGE, 4 * CLUSTER, 7, 'clusters side by side');
  await subject.root.withSnapshots('create', (s) =>
    s.create({ name: 's', dateSeconds: 1, dateNanoseconds: 0 }),
  );
  assert.ok(!subject.atOnce(2 * CLUSTER, PAGE, 7), 'not while its table is shared');
  await subject.write(9 * CLUSTER, PAGE, 8);
  await subject.soon(2 * CLUSTER, PAGE, 7, 'what the snapshot has');
  await subject.judge(t);
});

test('a cluster that comes along with its write is not read again', async (t) => {
  const subject = await Subject.open(t, quick);
  const backing = present(subject.root.backing, 'an overlay has a backing');
  assert.ok(subject.root.driver.copiesAtOnce);
  await subject.soon(2 * CLUSTER + PAGE, PAGE, 2, 'the host is quick');
  const { reads } = backing.statistics;
  for (const [i, at] of [3, 5, 7].entries())
    assert.ok(subject.atOnce(at * CLUSTER + i * PAGE, PAGE, 3 + i, true), `cluster ${at}`);
  assert.equal(backing.statistics.reads, reads);
  assert.ok(subject.atOnce(9 * CLUSTER, PAGE, 9, false));
  assert.equal(backing.statistics.reads, reads + 1);
  assert.ok(subject.atOnce(3 * CLUSTER + 5 * PAGE, PAGE, 10, true), 'in place: of no use');
  await subject.judge(t);
});

test('a write whose cluster is being changed waits for its turn', async (t) => {
  let open = (): void => undefined;
  const gate = new Promise<void>((resolve) => {
    open = resolve;
  });
  let isHeld = false;
  let isQuick = true;
  const subject = await Subject.open(t, {
    before: async (operation) => {
      if (operation === 'write' && isHeld) await gate;
    },
    atOnce: () => isQuick,
  });
  isHeld = true;
  isQuick = false;
  const slow = subject.write(4 * CLUSTER, 2 * CLUSTER, 9);
  await sleep(20);
  isQuick = true;
  assert.ok(!subject.atOnce(5 * CLUSTER, PAGE, 10), 'a range that is locked');
  await subject.soon(6 * CLUSTER, PAGE, 11, 'its neighbour is free');
  open();
  await slow;
  await subject.write(5 * CLUSTER, PAGE, 10);
  await subject.judge(t);
});

test('a host that is full, or writes a part, is met by the usual way, and leaves nothing', async (t) => {
  let mood: 'well' | 'full' | 'short' = 'well';
  let path = '';
  const subject = await Subject.open(t, {
    ...quick,
    atOnce: (operation, offset, lengthBytes) => {
      if (operation === 'read' || mood === 'well') return true;
      if (mood === 'full') throw Object.assign(new Error('full'), { code: 'ENOSPC', errno: -28 });
      // What came to the file before the host gave up.
      const host = openSync(path, 'r+');
      writeSync(host, Buffer.alloc(lengthBytes / 2, 0xee), 0, lengthBytes / 2, offset);
      closeSync(host);
      return false;
    },
  });
  path = subject.path;
  mood = 'full';
  assert.ok(!subject.atOnce(CLUSTER, PAGE, 1), 'over the backing');
  assert.ok(!subject.atOnce(4 * CLUSTER, 4 * CLUSTER, 2), 'four clusters');
  mood = 'short';
  assert.ok(!subject.atOnce(9 * CLUSTER, CLUSTER, 3));
  mood = 'well';
  await subject.soon(15 * CLUSTER + PAGE, PAGE, 4, 'a place that was written is no hole');
  await subject.write(4 * CLUSTER, 4 * CLUSTER, 2);
  await subject.judge(t);
});

test('nothing is left of a write whose data, or whose journal, cannot be written at once', async (t) => {
  let isQuick = true;
  const subject = await Subject.open(t, { ...quick, atOnce: () => isQuick });
  isQuick = false;
  assert.ok(!subject.atOnce(7 * CLUSTER, CLUSTER, 12), 'data');
  isQuick = true;
  // Its journal is empty then, and the next record makes a file.
  await subject.root.flush();
  await rm(subject.journals, { recursive: true });
  await writeFile(subject.journals, 'in the way');
  assert.ok(!subject.atOnce(8 * CLUSTER, CLUSTER, 13), 'journal');
  await rm(subject.journals);
  await subject.write(10 * CLUSTER, CLUSTER, 14);
  await subject.judge(t);
});
