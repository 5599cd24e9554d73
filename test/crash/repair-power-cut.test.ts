import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { imageAfterCut, type Survivors } from '../support/power-cut.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { FileLog, recordingFile } from '../support/recording-file.ts';
import { SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const COPIED = 1n << 63n;

const offsetAt = (image: Buffer, at: number): number =>
  Number(image.readBigUInt64BE(at) & OFFSET_MASK);

/** Dirty, with refcounts too low and too high, and COPIED flags wrong both ways. */
const damagedImage = async (path: string): Promise<Buffer> => {
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', path, '1M']);
  await qemuIo(path, ['write -P 1 0 64k']);
  await qemuImg(['snapshot', '-c', 'one', path]);
  await qemuIo(path, ['write -P 2 8k 32k']);
  const bytes = await readFile(path);
  const block = offsetAt(bytes, offsetAt(bytes, 48));
  const l2 = offsetAt(bytes, offsetAt(bytes, 40));
  for (const index of [0, 2, 3, 11]) {
    const at = l2 + index * 8;
    bytes.writeBigUInt64BE(bytes.readBigUInt64BE(at) ^ COPIED, at);
  }
  for (const [index, refcount] of [
    [4, 0],
    [5, 3],
    [12, 1],
    [13, 5],
  ] as const) {
    const cluster = offsetAt(bytes, l2 + index * 8) / 4096;
    bytes.writeUInt16BE(refcount, block + cluster * 2);
  }
  bytes.writeUInt8(1, 79);
  await writeFile(path, bytes);
  return bytes;
};

test('a repair that a power cut ends anywhere is finished by the next one, with all content', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  const start = await damagedImage(path);
  const before = join(directory, 'before.raw');
  await qemuImg(['convert', '-O', 'raw', '-U', path, before]);
  const log = new FileLog();
  const graph = await testGraph({ directory, file: recordingFile({ path, log }) });
  await graph.close(await graph.open({ path, format: 'qcow2', readOnly: false }));
  await qemuImg(['check', path]);
  assert.ok(log.changes.length >= 5, `${log.changes.length} changes`);
  const cut = join(directory, 'cut.qcow2');
  const random = seededRandom(SEED);
  for (let events = 0; events <= log.events; events++) {
    for (const survivors of ['none', 'all', random] satisfies Survivors[]) {
      await writeFile(cut, imageAfterCut(start, log, events, survivors));
      const again = await testGraph({ directory });
      await again.close(await again.open({ path: cut, format: 'qcow2', readOnly: false }));
      await qemuImg(['check', cut]);
      await qemuImg(['compare', '-f', 'qcow2', '-F', 'raw', cut, before]);
    }
  }
});
