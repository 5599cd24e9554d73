/** SIGKILL of the engine at any moment: every answered write of an add-cow image is there when it is opened again. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import { guestOf, readAddCow, writeAddCow } from '../support/add-cow-file.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { expected, runAndKill, settle } from './sigkill-judge.ts';

const DISK_BYTES = 2 << 20;
const KILLS = countOf(5);

for (const { clusterBytes, format } of [
  { clusterBytes: 4096, format: 'raw' },
  { clusterBytes: 16_384, format: 'qcow2' },
]) {
  test(`every answered write survives SIGKILL (clusters of ${clusterBytes}, ${format} image file)`, async (t) => {
    const directory = await scratchDirectory(t);
    const journals = join(directory, 'journals');
    await mkdir(journals);
    let content: Uint8Array = new Uint8Array(DISK_BYTES);
    for (let i = 0; i < DISK_BYTES / 2; i++) content[i] = 1 + (i % 251);
    const base = content;
    await writeFile(join(directory, 'base.raw'), base.subarray(0, DISK_BYTES / 2));
    const data = join(directory, 'data');
    if (format === 'qcow2')
      await qemuImg(['create', '-q', '-f', 'qcow2', data, String(DISK_BYTES)]);
    else {
      await writeFile(data, '');
      await truncate(data, DISK_BYTES);
    }
    const image = join(directory, 'disk.add-cow');
    await writeAddCow(image, {
      clusterBytes,
      backing: { name: 'base.raw', format: 'raw' },
      image: { name: 'data', format },
      isAllAllocated: false,
      bits: new Array<boolean>(DISK_BYTES / clusterBytes).fill(false),
    });
    const random = seededRandom(SEED);
    for (let kill = 0; kill < KILLS; kill++) {
      const seed = SEED + kill * 101;
      const what = `seed ${SEED}, kill ${kill}, ${format}`;
      const args = [image, directory, journals, String(seed)];
      const progress = await runAndKill(args, random.below(120));
      const { content: answered, open } = expected(content, seed, progress);
      const graph = await testGraph({ directory, journalDirectory: journals });
      // Also who only reads sees what was answered.
      const node = await graph.open({ path: image, format: null, readOnly: kill % 2 === 1 });
      const found = new Uint8Array(DISK_BYTES);
      await node.read(guestOffset(0), found);
      await graph.close(node);
      settle(answered, open, found, what);
      assert.deepEqual(await readdir(journals), [], `${what}: a clean close leaves no journal`);
      let flat = data;
      if (format === 'qcow2') {
        await assertClean(data);
        flat = join(directory, 'flat.raw');
        await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', data, flat]);
      }
      const seen = guestOf(await readAddCow(image, DISK_BYTES), await readFile(flat), base);
      assert.ok(Buffer.compare(seen, found) === 0, `${what}: the files hold what we read`);
      content = found;
    }
  });
}
