import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { open, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CopyTask } from '../../../../drivers/file/copy-task.ts';
import { CopyThreads, copyThreads } from '../../../../drivers/file/copy-threads.ts';
import { CopyTurns } from '../../../../drivers/file/copy-turns.ts';
import { present } from '../../../../src/base/assert.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { HostRange } from '../../../../src/block/host-range.ts';
import { CleanupStack } from '../../../support/cleanup-stack.ts';
import { tmpfs } from '../../../support/memory-file-system.ts';
import { qemuImg } from '../../../support/qemu-img.ts';
import { testGraph } from '../../../support/test-graph.ts';
import { until } from '../../../support/until.ts';

const MIB = 1 << 20;
/** Longer than a copy of a few MiB takes, by far. */
const A_WHILE_MS = 100;

/** A copy that waits for ever does not hold up the other files of tests. */
const LIMIT = { timeout: 30_000 };

interface Scene {
  readonly threads: CopyThreads;
  readonly bytes: Buffer;
  readonly to: string;
  readonly turns: CopyTurns;
  /** The whole source; `at` of the target. */
  readonly copy: (change?: Partial<CopyTask> & { readonly at?: number }) => Promise<number | null>;
}

/** Two threads are ready. */
const scene = async (
  t: TestContext,
  options: { size?: string; sourceBytes?: number; threads?: CopyThreads } = {},
): Promise<Scene> => {
  const { size = '40m', sourceBytes = 3 * MIB, threads = new CopyThreads() } = options;
  const stack = new CleanupStack(t);
  const directory = await tmpfs(stack, size);
  const [from, to] = [join(directory, 'source'), join(directory, 'target')];
  const bytes = randomBytes(sourceBytes);
  await writeFile(from, bytes);
  await writeFile(to, '');
  const [source, target] = [await open(from, 'r'), await open(to, 'r+')];
  stack.after(() => source.close());
  stack.after(() => target.close());
  const turns = new CopyTurns();
  const asked: Promise<unknown>[] = [];
  const copy: Scene['copy'] = ({ at = 0, ...change } = {}) => {
    const task = {
      from: { fd: source.fd, offset: 0 },
      to: { fd: target.fd, offset: at },
      lengthBytes: bytes.length,
      turns: turns.shared,
      ...change,
    };
    const copied = threads.run(task, 2);
    asked.push(copied.catch(() => undefined));
    return copied;
  };
  // Before the descriptors that threads use may be others'.
  stack.after(async () => {
    turns.giveBack();
    await Promise.race([Promise.all(asked), sleep(A_WHILE_MS, undefined, { ref: false })]);
  });
  await ready(threads, copy);
  return { threads, bytes, to, turns, copy };
};

const ready = async (threads: CopyThreads, copy: Scene['copy']): Promise<void> => {
  await copy({ lengthBytes: 0 });
  await until('two threads are ready', () => threads.readyCount === 2);
};

const isPending = async (promise: Promise<unknown>): Promise<boolean> =>
  (await Promise.race([promise, sleep(A_WHILE_MS, 'pending')])) === 'pending';

const assertCopied = async ({ to, bytes }: Scene, at = 0): Promise<void> => {
  const copied = (await readFile(to)).subarray(at, at + bytes.length);
  assert.equal(Buffer.compare(copied, bytes), 0);
};

test('a copy does not wait for one that holds the lock of the file', LIMIT, async (t) => {
  const made = await scene(t);
  await truncate(made.to, 3 * MIB);
  assert.ok(made.turns.tryTake());
  assert.equal(await made.copy(), 3 * MIB);
  assert.ok(!made.turns.tryTake(), 'nor has it taken the turn after a while');
  await assertCopied(made);
});

for (const [what, fileBytes, at] of [
  ['past the end of the file', 100, 0],
  ['that does not begin with a page', 4 * MIB, 512],
] as const) {
  test(`a copy ${what} waits for its turn`, LIMIT, async (t) => {
    const made = await scene(t);
    await truncate(made.to, fileBytes);
    assert.ok(made.turns.tryTake());
    const copied = made.copy({ at, lengthBytes: 2000 });
    assert.ok(await isPending(copied));
    made.turns.giveBack();
    assert.equal(await copied, 2000);
    const bytes = (await readFile(made.to)).subarray(at, at + 2000);
    assert.equal(Buffer.compare(bytes, made.bytes.subarray(0, 2000)), 0);
  });
}

test(
  'who has its turn makes the file as long as all copies need that are under way',
  LIMIT,
  async (t) => {
    const made = await scene(t);
    made.turns.end = 9 * MIB;
    assert.equal(await made.copy(), 3 * MIB);
    assert.equal((await stat(made.to)).size, 9 * MIB);
    await assertCopied(made);
  },
);

test('a file is not made shorter', LIMIT, async (t) => {
  const made = await scene(t);
  await truncate(made.to, 8 * MIB);
  made.turns.end = 4 * MIB;
  assert.equal(await made.copy(), 3 * MIB);
  assert.equal((await stat(made.to)).size, 8 * MIB);
});

for (const isMapped of [false, true]) {
  const how = isMapped ? 'by a mapping' : 'by its turn';
  test(`where the source ends, a copy ${how} does`, LIMIT, async (t) => {
    const made = await scene(t, { sourceBytes: 2 * MIB + 1000 });
    await truncate(made.to, 4 * MIB);
    if (isMapped) {
      assert.ok(made.turns.tryTake());
      const copied = made.copy({ lengthBytes: 4 * MIB });
      assert.ok(await isPending(copied), 'it asks the other way, too');
      made.turns.giveBack();
      assert.equal(await copied, 2 * MIB + 1000);
    } else assert.equal(await made.copy({ lengthBytes: 4 * MIB }), 2 * MIB + 1000);
    await assertCopied(made);
  });

  test(`a full file system is an error of a copy ${how}`, LIMIT, async (t) => {
    const made = await scene(t, { size: '5m' });
    await truncate(made.to, 3 * MIB);
    if (isMapped) assert.ok(made.turns.tryTake());
    const copied = made.copy();
    const refused = assert.rejects(copied, { kind: 'no-space', errno: 'ENOSPC' });
    if (isMapped) {
      assert.ok(await isPending(refused), 'it asks the other way, too');
      made.turns.giveBack();
    }
    await refused;
    // Nobody keeps the turn.
    assert.ok(made.turns.tryTake());
  });
}

test('who waits for too long goes on without a turn, and leaves it free', LIMIT, async (t) => {
  const made = await scene(t);
  assert.ok(made.turns.tryTake());
  assert.equal(await made.copy(), 3 * MIB);
  assert.ok(made.turns.tryTake());
  await assertCopied(made);
});

test(
  'what two threads cannot take at once, and another file beside a busy one, is left to others',
  LIMIT,
  async (t) => {
    const made = await scene(t);
    assert.ok(made.turns.tryTake());
    const [first, second, third, fourth, fifth] = await Promise.all([
      made.copy(),
      made.copy({ at: 4 * MIB }),
      made.copy({ at: 8 * MIB }),
      made.copy({ at: 12 * MIB }),
      made.copy({ at: 16 * MIB }),
    ]);
    assert.deepEqual([first, second, third, fourth, fifth], [...Array(4).fill(3 * MIB), null]);
    const other = new CopyTurns().shared;
    const results = [
      made.copy(),
      made.copy({ at: 4 * MIB }),
      made.copy({ at: 8 * MIB, turns: other }),
    ];
    assert.deepEqual(await Promise.all(results), [3 * MIB, 3 * MIB, null]);
  },
);

test('threads end after a while without a copy, and begin again', LIMIT, async (t) => {
  const made = await scene(t, { threads: new CopyThreads({ idleMs: 1000 }) });
  assert.equal(made.threads.count, 2);
  await until('the threads are gone', () => made.threads.count === 0);
  assert.equal(await made.copy(), null);
  await ready(made.threads, made.copy);
});

test('threads that end before they are ready begin again', LIMIT, async () => {
  const threads = new CopyThreads({ idleMs: 1 });
  for (let i = 0; i < 2; i++) {
    threads.start(3);
    assert.equal(threads.count, 2);
    await until('the threads are gone', () => threads.count === 0);
  }
});

test('a thread that dies leaves its copies to others', LIMIT, async (t) => {
  const made = await scene(t);
  assert.equal(await made.copy({ turns: new SharedArrayBuffer(4) }), null);
  await ready(made.threads, made.copy);
  assert.equal(await made.copy(), 3 * MIB);
});

for (const format of ['raw', 'qcow2'] as const) {
  test(`many copies at once into ${format} on tmpfs`, LIMIT, async (t) => {
    const stack = new CleanupStack(t);
    const directory = await tmpfs(stack, '300m');
    const [from, to] = [join(directory, 'source.raw'), join(directory, `target.${format}`)];
    const bytes = randomBytes(64 * MIB);
    await writeFile(from, bytes);
    await qemuImg(['create', '-q', '-f', format, to, String(bytes.length)]);
    const graph = await testGraph({ directory });
    const source = await graph.open({ path: from, format: 'raw', readOnly: true });
    const target = await graph.open({ path: to, format, readOnly: false });
    const file = present(source.file, 'a raw image has a file');
    const copyAll = async (shift: number, end: number): Promise<void> => {
      const copies: Promise<boolean>[] = [];
      for (let at = shift; at < end; at += 2 * MIB) {
        const range = new HostRange(file, at - shift, 2 * MIB);
        copies.push(target.copyIn(guestOffset(at), range, 'write'));
      }
      assert.ok((await Promise.all(copies)).every(Boolean));
    };
    // No thread takes the first one: whether the file systems can is not known.
    await copyAll(0, 2 * MIB);
    present(target.file, 'an image has one, too').driver.expectCopies?.(3);
    await until('two threads are ready', () => copyThreads.readyCount === 2);
    const before = copyThreads.copiedBytes;
    await copyAll(2 * MIB, bytes.length);
    assert.ok(copyThreads.copiedBytes > before);
    await target.flush();
    await graph.close(source);
    await graph.close(target);
    if (format === 'qcow2') await qemuImg(['check', '-q', to]);
    await qemuImg(['convert', '-f', format, '-O', 'raw', to, `${to}.flat`]);
    const expected = Buffer.concat([bytes.subarray(0, 2 * MIB), bytes.subarray(0, 62 * MIB)]);
    assert.equal(Buffer.compare(await readFile(`${to}.flat`), expected), 0);
  });
}
