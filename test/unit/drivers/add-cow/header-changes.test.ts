/** Changes of the header that meet a checkpoint, or a journal that was written under the old one. */
import assert from 'node:assert/strict';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { silentLog } from '../../../../src/base/log.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { decodeAddCow, writeAddCow } from '../../../support/add-cow-file.ts';
import { delayedFile } from '../../../support/delayed-file.ts';
import { scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

const CLUSTER = 4096;
const CLUSTERS = 64;
/** Of the header's compatible features. */
const FEATURES_AT = 32;

interface Place {
  readonly directory: string;
  readonly path: string;
  readonly journals: string;
}

const made = async (t: TestContext, bits: readonly boolean[]): Promise<Place> => {
  // No checkpoint comes by itself, also of what was killed.
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const directory = await scratchDirectory(t);
  const [path, journals] = [join(directory, 'disk.add-cow'), join(directory, 'journals')];
  await mkdir(journals);
  await writeFile(join(directory, 'base.raw'), Buffer.alloc(bits.length * CLUSTER, 1));
  await writeFile(join(directory, 'disk.raw'), Buffer.alloc(bits.length * CLUSTER, 2));
  await writeAddCow(path, {
    clusterBytes: CLUSTER,
    backing: { name: 'base.raw', format: 'raw' },
    image: { name: 'disk.raw', format: 'raw' },
    isAllAllocated: false,
    bits,
  });
  return { directory, path, journals };
};

const filled = (fill: number): Uint8Array => new Uint8Array(CLUSTER).fill(fill);

test('a disk that grows in the moment in which it becomes complete has the bits of what is added', async (t) => {
  const { directory, path } = await made(
    t,
    Array.from({ length: 8 }, (_, i) => i > 0),
  );
  let goOn = (): void => undefined;
  let isSaying = (): void => undefined;
  const said = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const saying = new Promise<void>((resolve) => {
    isSaying = resolve;
  });
  const file = delayedFile(path, {
    before: async (operation, offset) => {
      if (operation !== 'write' || offset !== FEATURES_AT) return;
      isSaying();
      await said;
    },
  });
  const graph = await testGraph({ directory, file });
  const node = await graph.open({ path, format: 'add-cow', readOnly: false });
  await node.write(guestOffset(0), filled(3));
  const flushed = node.flush();
  await saying;
  const grown = node.resize(16 * CLUSTER);
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  goOn();
  await Promise.all([flushed, grown]);
  await node.write(guestOffset(12 * CLUSTER), filled(4));
  await graph.close(node);
  const now = decodeAddCow(await readFile(path), 16 * CLUSTER);
  assert.ok(now.isAllAllocated);
  assert.deepEqual(now.bits, Array(16).fill(true));
});

test('what is answered after the backing link has changed survives SIGKILL, whenever the flush before it came', async (t) => {
  const { directory, path, journals } = await made(t, Array(CLUSTERS).fill(false));
  const errors: string[] = [];
  const log = { ...silentLog, error: (_: string, message: string) => errors.push(message) };
  for (let i = 0; i + 1 < CLUSTERS; i += 2) {
    const graph = await testGraph({ directory, journalDirectory: journals, log });
    const node = await graph.open({ path, format: 'add-cow', readOnly: false });
    if (i > 0) {
      const found = filled(0);
      await node.read(guestOffset((i - 1) * CLUSTER), found);
      assert.deepEqual(found, filled(6));
    }
    const written = node.write(guestOffset(i * CLUSTER), filled(5));
    for (let turn = 0; turn < i / 2; turn++) await null;
    await Promise.all([written, node.flush()]);
    await node.changeBacking({ filename: `./${'/'.repeat(i / 2)}base.raw`, format: 'raw' });
    await node.write(guestOffset((i + 1) * CLUSTER), filled(6));
  }
  assert.deepEqual(errors, []);
});
