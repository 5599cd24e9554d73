import assert from 'node:assert/strict';
import { pbkdf2 } from 'node:crypto';
import { appendFileSync, statSync } from 'node:fs';
import { appendFile, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { present } from '../../../../src/base/assert.ts';
import { BlockError } from '../../../../src/base/block-error.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import type { Graph } from '../../../../src/block/graph.ts';
import type { Node } from '../../../../src/block/node.ts';
import { ramfs, tmpfs } from '../../../support/memory-file-system.ts';
import { scratchDirectory } from '../../../support/scratch.ts';
import { type TestGraphOptions, testGraph } from '../../../support/test-graph.ts';

interface Opened {
  readonly path: string;
  readonly graph: Graph;
  readonly node: Node;
  /** Of the image. */
  readonly file: Node;
}

/** A raw image of one page of ones, open. */
const opened = async (
  t: TestContext,
  options: Pick<TestGraphOptions, 'growsHereAlone'> = {},
  place: Promise<string> = scratchDirectory(t),
): Promise<Opened> => {
  const directory = await place;
  const path = join(directory, 'disk.raw');
  await writeFile(path, Buffer.alloc(4096, 1));
  const graph = await testGraph({ directory, ...options });
  const node = await graph.open({ path, format: 'raw', readOnly: false });
  return { path, graph, node, file: present(node.file, 'a raw image has a file') };
};

// As the data plane's workers do it, in a cluster whose end lies past the end of the file.
test('what was written past the known end is read, and no punch cuts it off', async (t) => {
  const { path, graph, node, file } = await opened(t);
  await appendFile(path, Buffer.alloc(8192, 2));
  const read = new Uint8Array(16_384);
  await file.readClipped(guestOffset(0), read);
  assert.deepEqual(
    [read[4095], read[4096], read[12_287], read[12_288]],
    [1, 2, 2, 0],
    'the end is looked for again',
  );
  await appendFile(path, Buffer.alloc(4096, 3));
  await file.driver.discard?.(guestOffset(8192), 6144);
  assert.equal((await stat(path)).size, 16_384);
  await graph.close(node);
});

/** Asynchronous calls to the host wait until this has ended. */
const allThreadsBusy = async (): Promise<void> => {
  const work = (): Promise<Buffer> => promisify(pbkdf2)('', '', 300_000, 64, 'sha512');
  await Promise.all(Array.from({ length: 8 }, work));
};

test('a punch past the end makes the file longer, and cuts nothing off that is written meanwhile', async (t) => {
  const { path, graph, node, file } = await opened(t);
  const { driver } = file;
  const busy = allThreadsBusy();
  const punched = driver.discard?.(guestOffset(8192), 4096);
  appendFileSync(path, Buffer.alloc(64_000, 2));
  await Promise.all([busy, punched]);
  assert.equal((await stat(path)).size, 68_096);
  await driver.discard?.(guestOffset(70_000), 1000);
  assert.equal((await stat(path)).size, 71_000);
  await graph.close(node);
});

test('a file system without fallocate(2): a punch past the end cuts nothing off either, and zeroes what is inside', async (t) => {
  const { path, graph, node, file } = await opened(t, {}, ramfs(t));
  const { driver } = file;
  const busy = allThreadsBusy();
  const punched = driver.discard?.(guestOffset(8192), 4096);
  appendFileSync(path, Buffer.alloc(64_000, 2));
  await Promise.all([busy, punched]);
  const content = await readFile(path);
  assert.equal(content.length, 68_096);
  assert.ok(content.subarray(4096, 8192).every((byte) => byte === 2));
  assert.ok(content.subarray(12_288).every((byte) => byte === 2));
  await driver.discard?.(guestOffset(68_000), 3000);
  const longer = await readFile(path);
  assert.equal(longer.length, 71_000);
  assert.ok(longer.subarray(68_000).every((byte) => byte === 0));
  await graph.close(node);
});

test('on a full file system what is unmapped past the end is zeroed inside, and is no error', async (t) => {
  const { path, graph, node, file } = await opened(t, {}, tmpfs(t, '64k'));
  const { driver } = file;
  await assert.rejects(writeFile(`${path}.other`, Buffer.alloc(65_536, 9)), { code: 'ENOSPC' });
  // A part of the page alone: no space comes free by it.
  await driver.discard?.(guestOffset(1000), 8000);
  await driver.writeZeroes?.(guestOffset(1_000_000), 1000, { unmap: true });
  const content = await readFile(path);
  assert.deepEqual([content.length, content[999]], [4096, 1]);
  assert.ok(content.subarray(1000).every((byte) => byte === 0));
  const zeros = driver.writeZeroes?.(guestOffset(1000), 8000, { unmap: false });
  await assert.rejects(present(zeros, 'it writes zeros'), { code: 'ENOSPC' });
  await graph.close(node);
});

test('a file that is closed late is not touched any more: its lock may be given back', async (t) => {
  const { path, graph, node, file } = await opened(t, { growsHereAlone: true });
  await node.write(guestOffset(0), new Uint8Array(4096));
  const release = file.lateClose.hold();
  await graph.close(node);
  const { ctimeMs } = statSync(path);
  await sleep(20);
  release();
  await sleep(100);
  assert.equal(statSync(path).ctimeMs, ctimeMs);
});

test('after a sync that has failed there is nothing to sync by', async (t) => {
  const { graph, node, file } = await opened(t);
  const { driver } = file;
  await driver.flush();
  assert.notEqual(driver.syncFd, undefined);
  driver.syncHasFailed?.(new BlockError({ kind: 'io', message: 'the disk is gone' }));
  assert.equal(driver.syncFd, undefined);
  await assert.rejects(driver.flush(), /the disk is gone/);
  await graph.close(node).catch(() => undefined);
});
