/** SIGKILL of the engine at any moment: every answered write is there when the image is opened again, and the image is sound. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { expected, runAndKill, settle } from './sigkill-judge.ts';

const DISK_BYTES = 2 << 20;
const KILLS = countOf(6);

for (const options of [
  'cluster_size=4k',
  'cluster_size=64k,refcount_bits=8',
  'cluster_size=512,compat=0.10',
  'cluster_size=16k,extended_l2=on',
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
