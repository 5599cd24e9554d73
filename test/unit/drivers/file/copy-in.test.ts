import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { open, readFile, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { FileLength } from '../../../../drivers/file/file-length.ts';
import { Holes } from '../../../../drivers/file/holes.ts';
import { HostCopies } from '../../../../drivers/file/host-copies.ts';
import { present } from '../../../../src/base/assert.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import type { DriverInstance } from '../../../../src/block/driver.ts';
import { HostRange } from '../../../../src/block/host-range.ts';
import type { Node } from '../../../../src/block/node.ts';
import { CleanupStack } from '../../../support/cleanup-stack.ts';
import { loopFileSystem } from '../../../support/loop-file-system.ts';
import { tmpfs } from '../../../support/memory-file-system.ts';
import { qemuImg } from '../../../support/qemu-img.ts';
import { scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

const MIB = 1 << 20;
const BYTES = 32 * MIB;
const FILE_SYSTEM_BYTES = 400 * MIB;

const freeBytes = async (directory: string): Promise<number> => {
  const handle = await open(directory);
  try {
    // What was written takes its blocks when it is written back.
    await handle.sync();
  } finally {
    await handle.close();
  }
  const { bfree, bsize } = await statfs(directory);
  return bfree * bsize;
};

for (const format of ['raw', 'qcow2'] as const) {
  for (const type of ['xfs', 'ext4'] as const) {
    const takes = type === 'xfs' ? 'takes no space for it' : 'has bytes of its own';
    test(`what the host copies into ${format} on ${type} ${takes}, and stays when the source changes`, async (t) => {
      const scratch = await scratchDirectory(t);
      const { directory, close } = await loopFileSystem(type, scratch, FILE_SYSTEM_BYTES);
      try {
        const [from, to] = [join(directory, 'source.raw'), join(directory, `target.${format}`)];
        const bytes = randomBytes(BYTES);
        await writeFile(from, bytes);
        await qemuImg(['create', '-q', '-f', format, to, String(BYTES)]);
        const graph = await testGraph({ directory });
        const source = await graph.open({ path: from, format: 'raw', readOnly: false });
        const target = await graph.open({ path: to, format, readOnly: false });
        await source.flush();
        const before = await freeBytes(directory);
        const file = present(source.file, 'a raw image has a file');
        for (let at = 0; at < BYTES; at += 4 * MIB) {
          const range = new HostRange(file, at, 4 * MIB);
          assert.equal(await target.copyIn(guestOffset(at), range, 'write'), true);
        }
        await target.flush();
        const taken = before - (await freeBytes(directory));
        if (type === 'xfs') assert.ok(taken < MIB, `${taken} bytes were taken`);
        else assert.ok(taken > BYTES - MIB, `${taken} bytes were taken`);
        await source.write(guestOffset(MIB), new Uint8Array(MIB));
        await graph.close(source);
        await graph.close(target);
        await qemuImg(['convert', '-f', format, '-O', 'raw', to, `${to}.flat`]);
        assert.equal(Buffer.compare(await readFile(`${to}.flat`), bytes), 0);
        if (format === 'qcow2') await qemuImg(['check', '-q', to]);
      } finally {
        await close();
      }
    });
  }
}

/** Keeps which ranges space was asked for: those that are copied, and not shared. */
class KeptHoles extends Holes {
  readonly reserved: [start: number, lengthBytes: number][] = [];

  override async reserve(offset: number, lengthBytes: number): Promise<void> {
    this.reserved.push([offset, lengthBytes]);
    await super.reserve(offset, lengthBytes);
  }
}

test('blocks are shared as far as they are whole, and the rest is copied', async (t) => {
  const scratch = await scratchDirectory(t);
  const { directory, close } = await loopFileSystem('xfs', scratch, FILE_SYSTEM_BYTES);
  try {
    const [from, to] = [join(directory, 'source.raw'), join(directory, 'target.raw')];
    const bytes = randomBytes(3 * MIB);
    await writeFile(from, bytes);
    const graph = await testGraph({ directory });
    const source = await graph.open({ path: from, format: 'raw', readOnly: true });
    const file = present(source.file, 'a raw image has a file');
    const handle = await open(to, 'w');
    const { dev: device } = await handle.stat();
    const not = { growsUnseen: false, takesSpaceAhead: false, isInMemory: false };
    const length = new FileLength({ handle, lengthBytes: 0, device, ...not });
    const write = async (): Promise<void> => assert.fail('it is not needed');
    const holes = new KeptHoles({ handle, path: to, length, write });
    const copies = new HostCopies({ fd: handle.fd, length, holes, isInMemory: false });
    for (const [start, end] of [
      [0, MIB],
      [MIB, MIB + 512],
      [MIB + 512, 2 * MIB],
      [2 * MIB, 3 * MIB],
    ] as const)
      await copies.copyIn(start, new HostRange(file, start, end - start));
    const parts = [
      [MIB, 512],
      [MIB + 512, MIB - 512],
    ];
    assert.deepEqual(holes.reserved, parts);
    await handle.close();
    await graph.close(source);
    assert.equal(Buffer.compare(await readFile(to), bytes), 0);
  } finally {
    await close();
  }
});

interface Pair {
  readonly directory: string;
  /** Of the source. */
  readonly file: Node;
  readonly target: DriverInstance;
  readonly to: string;
}

/** A source of 4 MiB of ones, and the file of an empty target, on a tmpfs. */
const pairOnTmpfs = async (t: TestContext, size: string): Promise<Pair> => {
  const stack = new CleanupStack(t);
  const directory = await tmpfs(stack, size);
  const [from, to] = [join(directory, 'source.raw'), join(directory, 'target.raw')];
  await writeFile(from, Buffer.alloc(4 * MIB, 1));
  await writeFile(to, '');
  const graph = await testGraph({ directory });
  const source = await graph.open({ path: from, format: 'raw', readOnly: true });
  const opened = await graph.open({ path: to, format: 'raw', readOnly: false });
  const target = present(opened.file, 'a raw image has a file').driver;
  stack.after(async () => {
    await graph.close(source);
    await graph.close(opened);
  });
  return { directory, file: present(source.file, 'it has one too'), target, to };
};

test('a range that could not be copied says nothing of the next one', async (t) => {
  const { directory, file, target } = await pairOnTmpfs(t, '6m');
  const copy = async (start: number, length: number): Promise<void> =>
    target.copyIn?.(guestOffset(0), new HostRange(file, start, length), 'write');
  await assert.rejects(copy(4 * MIB, 4096), { kind: 'unsupported' }, 'the source ends before');
  await copy(0, 4096);
  const other = join(directory, 'other');
  await assert.rejects(writeFile(other, Buffer.alloc(2 * MIB)), { code: 'ENOSPC' });
  await assert.rejects(copy(0, MIB), { kind: 'no-space' });
  await rm(other);
  await copy(0, MIB);
});

test('a copy that comes to nothing leaves no space past the end, where that would stay', async (t) => {
  const { file, target, to } = await pairOnTmpfs(t, '20m');
  const nothing = new HostRange(file, 4 * MIB, 4 * MIB);
  await assert.rejects(async () => target.copyIn?.(guestOffset(0), nothing, 'write'));
  assert.equal((await stat(to)).blocks, 0);
});
