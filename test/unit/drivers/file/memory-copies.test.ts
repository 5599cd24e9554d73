import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { open, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CopyTask } from '../../../../drivers/file/copy-task.ts';
import { CopyThreads } from '../../../../drivers/file/copy-threads.ts';
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

interface Scene {
  readonly threads: CopyThreads;
  readonly bytes: Buffer;
  readonly to: string;
  readonly turns: CopyTurns;
  /** The whole source; `at` of the target. Null: no thread is ready. */
  readonly copy: (change?: Partial<CopyTask> & { readonly at?: number }) => Promise<number> | null;
}

const scene = async (
  t: TestContext,
  { size = '40m', sourceBytes = 3 * MIB }: { size?: string; sourceBytes?: number } = {},
): Promise<Scene> => {
  const stack = new CleanupStack(t);
  const directory = await tmpfs(stack, size);
  const [from, to] = [join(directory, 'source'), join(directory, 'target')];
  const bytes = randomBytes(sourceBytes);
  await writeFile(from, bytes);
  await writeFile(to, '');
  const [source, target] = [await open(from, 'r'), await open(to, 'r+')];
  stack.after(() => source.close());
  stack.after(() => target.close());
  const threads = new CopyThreads({ idleMs: A_WHILE_MS });
  const turns = new CopyTurns();
  const copy: Scene['copy'] = ({ at = 0, ...change } = {}) =>
    threads.run({
      from: { fd: source.fd, offset: 0 },
      to: { fd: target.fd, offset: at },
      lengthBytes: bytes.length,
      turns: turns.shared,
      ...change,
    });
  return { threads, bytes, to, turns, copy };
};

/** The same, when a thread is ready. */
const readyScene = async (
  t: TestContext,
  options?: Parameters<typeof scene>[1],
): Promise<Scene> => {
  const made = await scene(t, options);
  assert.equal(made.copy(), null, 'no thread is ready at once');
  await until('a thread is ready', () => made.copy({ lengthBytes: 0 }) !== null);
  return made;
};

const isPending = async (promise: Promise<unknown>): Promise<boolean> =>
  (await Promise.race([promise, sleep(A_WHILE_MS, 'pending')])) === 'pending';

const assertCopied = async ({ to, bytes }: Scene, at = 0): Promise<void> => {
  const copied = (await readFile(to)).subarray(at, at + bytes.length);
  assert.equal(Buffer.compare(copied, bytes), 0);
};

test('a copy does not wait for one that holds the lock of the file', async (t) => {
  const made = await readyScene(t);
  await truncate(made.to, 3 * MIB);
  made.turns.take();
  assert.equal(await made.copy(), 3 * MIB);
  made.turns.giveBack();
  await assertCopied(made);
});

for (const [what, fileBytes, at] of [
  ['past the end of the file', 100, 0],
  ['that does not begin with a page', 4 * MIB, 512],
] as const) {
  test(`a copy ${what} waits for its turn`, { timeout: 10_000 }, async (t) => {
    const made = await readyScene(t);
    await truncate(made.to, fileBytes);
    made.turns.take();
    const copied = present(made.copy({ at, lengthBytes: 2000 }), 'a thread is ready');
    assert.ok(await isPending(copied));
    made.turns.giveBack();
    assert.equal(await copied, 2000);
    const bytes = (await readFile(made.to)).subarray(at, at + 2000);
    assert.equal(Buffer.compare(bytes, made.bytes.subarray(0, 2000)), 0);
  });
}

test('who has its turn makes the file as long as all copies need that are under way', async (t) => {
  const made = await readyScene(t);
  made.turns.end = 9 * MIB;
  assert.equal(await made.copy(), 3 * MIB);
  assert.equal((await stat(made.to)).size, 9 * MIB);
  await assertCopied(made);
});

test('a file is not made shorter', async (t) => {
  const made = await readyScene(t);
  await truncate(made.to, 8 * MIB);
  made.turns.end = 4 * MIB;
  assert.equal(await made.copy(), 3 * MIB);
  assert.equal((await stat(made.to)).size, 8 * MIB);
});

for (const isMapped of [false, true]) {
  const how = isMapped ? 'by a mapping' : 'by its turn';
  test(`where the source ends, a copy ${how} does`, { timeout: 10_000 }, async (t) => {
    const made = await readyScene(t, { sourceBytes: 2 * MIB + 1000 });
    await truncate(made.to, 4 * MIB);
    if (isMapped) {
      made.turns.take();
      const copied = present(made.copy({ lengthBytes: 4 * MIB }), 'a thread is ready');
      assert.ok(await isPending(copied), 'it asks the other way, too');
      made.turns.giveBack();
      assert.equal(await copied, 2 * MIB + 1000);
    } else assert.equal(await made.copy({ lengthBytes: 4 * MIB }), 2 * MIB + 1000);
    await assertCopied(made);
  });

  test(`a full file system is an error of a copy ${how}`, { timeout: 10_000 }, async (t) => {
    const made = await readyScene(t, { size: '5m' });
    await truncate(made.to, 3 * MIB);
    if (isMapped) made.turns.take();
    const copied = present(made.copy(), 'a thread is ready');
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

test('threads end after a while without a copy, and begin again', async (t) => {
  const made = await readyScene(t);
  assert.equal(await made.copy(), 3 * MIB);
  assert.equal(made.threads.count, 2);
  await until('the threads are gone', () => made.threads.count === 0);
  assert.equal(made.copy(), null);
  await until('a thread is ready', () => made.copy({ lengthBytes: 0 }) !== null);
});

test('a thread that dies leaves its copies to others', { timeout: 10_000 }, async (t) => {
  const made = await readyScene(t);
  const broken = present(made.copy({ turns: new SharedArrayBuffer(4) }), 'a thread is ready');
  await assert.rejects(broken, { kind: 'unsupported' });
  await until('a thread is ready', () => made.copy({ lengthBytes: 0 }) !== null);
});

for (const format of ['raw', 'qcow2'] as const) {
  test(`many copies at once into ${format} on tmpfs`, async (t) => {
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
    // The second time threads are there, and the bytes others.
    for (const shift of [0, 2 * MIB]) {
      const copies: Promise<boolean>[] = [];
      for (let at = shift; at < bytes.length; at += 2 * MIB) {
        const range = new HostRange(file, at - shift, 2 * MIB);
        copies.push(target.copyIn(guestOffset(at), range, 'write'));
      }
      assert.ok((await Promise.all(copies)).every(Boolean));
    }
    await target.flush();
    await graph.close(source);
    await graph.close(target);
    if (format === 'qcow2') await qemuImg(['check', '-q', to]);
    await qemuImg(['convert', '-f', format, '-O', 'raw', to, `${to}.flat`]);
    const expected = Buffer.concat([bytes.subarray(0, 2 * MIB), bytes.subarray(0, 62 * MIB)]);
    assert.equal(Buffer.compare(await readFile(`${to}.flat`), expected), 0);
  });
}
