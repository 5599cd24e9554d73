/** Changes of the header that meet a checkpoint, or a journal that was written under the old one. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { type TestContext, test } from 'node:test';
import { BlockError } from '../../../../src/base/block-error.ts';
import { silentLog } from '../../../../src/base/log.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { decodeAddCow, writeAddCowOverRaw } from '../../../support/add-cow-file.ts';
import { delayedFile, type FileOperation } from '../../../support/delayed-file.ts';
import { type JournaledImage, journaledImage } from '../../../support/journaled-image.ts';
import { testGraph } from '../../../support/test-graph.ts';

const CLUSTER = 4096;
const CLUSTERS = 64;
/** Of the header's compatible features. */
const FEATURES_AT = 32;

const made = async (t: TestContext, bits: readonly boolean[]): Promise<JournaledImage> => {
  // No checkpoint comes by itself, also of what was killed.
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const place = await journaledImage(t, 'disk.add-cow');
  await writeAddCowOverRaw(place.path, CLUSTER, bits);
  return place;
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

/** Whether an operation fails, of those that come once the header is being written. */
interface Fault {
  readonly what: string;
  readonly fails: (step: {
    readonly operation: FileOperation;
    readonly offset: number;
    readonly isHeader: boolean;
    readonly isOwnFile: boolean;
  }) => boolean;
}

const changeFailing = async (
  t: TestContext,
  { fails }: Fault,
): Promise<{ inMemory: unknown; inFile: unknown; error: unknown }> => {
  const { directory, path } = await made(t, Array(8).fill(false));
  let writes = 0;
  const file = delayedFile(null, {
    before: async (operation, offset, _length, of) => {
      const isOwnFile = of === path;
      const isHeader = isOwnFile && operation === 'write' && offset === 0;
      if (isHeader) writes++;
      if (writes !== 1 || !fails({ operation, offset, isHeader, isOwnFile })) return;
      throw new BlockError({ kind: 'io', message: 'the fault of this test' });
    },
  });
  const graph = await testGraph({ directory, file });
  const node = await graph.open({ path, format: 'add-cow', readOnly: false });
  const error = await node.changeBacking(null).then(
    () => null,
    (failure: unknown) => failure,
  );
  assert.ok(writes > 0);
  const inMemory = node.driver.backingLink;
  // What fails there has to fail no more.
  writes = 2;
  await graph.close(node);
  const plain = await testGraph({ directory });
  const again = await plain.open({ path, format: 'add-cow', readOnly: true });
  const inFile = again.driver.backingLink;
  await plain.close(again);
  return { inMemory, inFile, error };
};

const OLD_LINK = { filename: 'base.raw', format: 'raw' };

for (const fault of [
  { what: 'the write of the header', fails: ({ isHeader }) => isHeader },
  { what: 'the flush after it', fails: ({ operation }) => operation === 'flush' },
] satisfies Fault[]) {
  test(`a backing link that cannot be changed is the old one in memory and file: ${fault.what}`, async (t) => {
    const { inMemory, inFile, error } = await changeFailing(t, fault);
    assert.match(String(error), /the fault of this test/);
    assert.deepEqual([inMemory, inFile], [OLD_LINK, OLD_LINK]);
  });
}

for (const fault of [
  {
    what: 'clearing the old name',
    fails: ({ isOwnFile, operation, offset }) =>
      isOwnFile && operation === 'write' && offset >= 76 && offset < CLUSTER,
  },
  { what: 'zeros for what is not there', fails: ({ isOwnFile }) => !isOwnFile },
  {
    what: 'its bits',
    fails: ({ isOwnFile, operation, offset }) =>
      isOwnFile && operation === 'write' && offset >= CLUSTER,
  },
] satisfies Fault[]) {
  test(`a backing link that has changed is the new one in memory and file, whatever fails then: ${fault.what}`, async (t) => {
    const { inMemory, inFile, error } = await changeFailing(t, fault);
    assert.equal(error, null);
    assert.deepEqual([inMemory, inFile], [null, null]);
  });
}
