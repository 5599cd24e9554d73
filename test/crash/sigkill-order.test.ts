/** A kill while many writes are under way: those that were answered are there, whatever began before them and has not ended. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import { delayedFile } from '../support/delayed-file.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const CLUSTER = 512;
/** More than one refcount block counts. */
const WRITES = 600;

for (const held of [0, 1, 2]) {
  test(`an answered write survives SIGKILL beside writes that have begun before it: ${held} of each 3`, async (t) => {
    const directory = await scratchDirectory(t);
    const [path, journals] = [join(directory, 'disk.qcow2'), join(directory, 'journals')];
    const options = ['-f', 'qcow2', '-o', 'cluster_size=512'];
    await qemuImg(['create', '-q', ...options, path, String(2 * WRITES * CLUSTER)]);
    const never = new Promise<void>(() => undefined);
    let isKilled = false;
    let writes = 0;
    const file = delayedFile(path, {
      before: async (operation, _, lengthBytes) => {
        const isData = operation === 'write' && lengthBytes === CLUSTER - 1;
        if (isKilled || (isData && writes++ % 3 === held)) await never;
      },
    });
    const killed = await testGraph({ directory, file, journalDirectory: journals });
    const node = await killed.open({ path, format: 'qcow2', readOnly: false });
    await node.write(guestOffset(0), Buffer.alloc(CLUSTER, 1));
    const answered = new Set<number>();
    for (let i = 1; i < WRITES; i++) {
      const written = node.write(guestOffset(i * CLUSTER), Buffer.alloc(CLUSTER - 1, 7));
      void written.then(() => answered.add(i));
      // In the order of the disk, so that it is known which are held.
      for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
    }
    while (answered.size < (WRITES - 1) * (2 / 3) - 1)
      await new Promise((resolve) => setTimeout(resolve, 5));
    isKilled = true;
    const graph = await testGraph({ directory, journalDirectory: journals });
    const next = await graph.open({ path, format: 'qcow2', readOnly: false });
    for (const i of answered) {
      const found = Buffer.alloc(CLUSTER - 1);
      await next.read(guestOffset(i * CLUSTER), found);
      assert.ok(found.equals(Buffer.alloc(CLUSTER - 1, 7)), `write ${i} of ${WRITES}`);
    }
    await graph.close(next);
    // A checkpoint that came by itself has counted what was held: leaks.
    await qemuImg(['check', path], [0, 3]);
  });
}
