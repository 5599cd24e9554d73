import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { open, readFile, statfs, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { present } from '../../../../src/base/assert.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { HostRange } from '../../../../src/block/host-range.ts';
import { loopFileSystem } from '../../../support/loop-file-system.ts';
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

test('blocks are shared as far as they are whole, and the rest is copied', async (t) => {
  const scratch = await scratchDirectory(t);
  const { directory, close } = await loopFileSystem('xfs', scratch, FILE_SYSTEM_BYTES);
  try {
    const [from, to] = [join(directory, 'source.raw'), join(directory, 'target.raw')];
    const bytes = randomBytes(3 * MIB);
    await writeFile(from, bytes);
    await writeFile(to, '');
    await truncate(to, 3 * MIB);
    const graph = await testGraph({ directory });
    const source = await graph.open({ path: from, format: 'raw', readOnly: true });
    const target = await graph.open({ path: to, format: 'raw', readOnly: false });
    const file = present(source.file, 'a raw image has a file');
    for (const [start, end] of [
      [0, MIB],
      [MIB, MIB + 512],
      [MIB + 512, 2 * MIB],
      [2 * MIB, 3 * MIB],
    ] as const) {
      const range = new HostRange(file, start, end - start);
      assert.equal(await target.copyIn(guestOffset(start), range, 'write'), true);
    }
    await graph.close(source);
    await graph.close(target);
    assert.equal(Buffer.compare(await readFile(to), bytes), 0);
  } finally {
    await close();
  }
});
