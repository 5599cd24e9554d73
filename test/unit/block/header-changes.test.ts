/** Writes of a header beside one another: none undoes what another has written, whatever each has read before. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { rewriteHeaderCluster } from '../../../drivers/qcow2/header-cluster.ts';
import { HEADER, HEADER_V3_BYTES } from '../../../drivers/qcow2/layout.ts';
import { BlockError } from '../../../src/base/block-error.ts';
import { silentLog } from '../../../src/base/log.ts';
import { HeaderChanges } from '../../../src/block/header-changes.ts';
import { delayedFile, type FileOperation } from '../../support/delayed-file.ts';
import { scratchDirectory } from '../../support/scratch.ts';
import { testGraph } from '../../support/test-graph.ts';

const CLUSTER = 512;
const FAULT = { message: /the fault of this test/ };
/** Of another owner's, in the middle of what is changed. */
const BIT_AT = HEADER.incompatible + 7;

interface Subject {
  readonly path: string;
  readonly changes: HeaderChanges;
  /** Called before each operation of the file. */
  before: (operation: FileOperation, offset: number) => void | Promise<void>;
}

const opened = async (t: TestContext): Promise<Subject> => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'header');
  await writeFile(path, new Uint8Array(CLUSTER));
  const subject = {
    before: (_operation: FileOperation, _offset: number): void | Promise<void> => undefined,
  };
  const file = delayedFile(path, {
    before: async (operation, offset) => {
      await subject.before(operation, offset);
    },
  });
  const graph = await testGraph({ directory, file });
  const node = await graph.open({ path, format: 'raw', readOnly: false });
  t.after(() => graph.close(node));
  const changes = new HeaderChanges({
    file: node,
    path,
    log: silentLog,
    owes: () => undefined,
    tell: () => undefined,
    checkpoint: async () => changes.putBack(changes.owed),
  });
  return Object.assign(subject, { path, changes });
};

const setBit = (changes: HeaderChanges, bit: number): Promise<void> =>
  changes.edit(BIT_AT, 1, (view) => view.setUint8(0, view.getUint8(0) | bit));

const bitsOf = async (path: string): Promise<number> => (await readFile(path)).readUInt8(BIT_AT);

/** Both sides of the bit become others. */
const NEW = new Uint8Array(2 * BIT_AT).fill(7, 0, BIT_AT).fill(7, BIT_AT + 1);

/** Something that is begun when the file is asked for a thing the first time, and may end before that is done. */
const beside = (
  subject: Subject,
  when: (operation: FileOperation, offset: number) => boolean,
  run: () => Promise<void>,
): { readonly ended: () => Promise<void> } => {
  let running: Promise<void> | null = null;
  const { before } = subject;
  subject.before = async (operation, offset) => {
    await before(operation, offset);
    if (running !== null || !when(operation, offset)) return;
    running = run();
    // Long enough to be done when nothing holds it.
    await Promise.race([running, new Promise((resolve) => setTimeout(resolve, 50))]);
  };
  return {
    ended: async () => {
      assert.ok(running !== null, 'it has begun');
      await running;
    },
  };
};

test('a bit that is set while a change is put back stays', async (t) => {
  const subject = await opened(t);
  const { changes, path } = subject;
  let writes = 0;
  subject.before = (operation, offset) => {
    if (operation !== 'write' || offset !== 0) return;
    writes++;
    if (writes === 1) throw new BlockError({ kind: 'io', message: 'the fault of this test' });
  };
  const bit = beside(
    subject,
    (operation) => writes === 2 && operation === 'write',
    () => setBit(changes, 2),
  );
  await assert.rejects(changes.change(0, NEW), FAULT);
  await bit.ended();
  assert.equal(await bitsOf(path), 2);
  assert.equal(changes.owed, null);
});

test('a bit that is set while a checkpoint puts back what is owed stays', async (t) => {
  const subject = await opened(t);
  const { changes, path } = subject;
  let fails = true;
  subject.before = (operation, offset) => {
    if (fails && operation === 'write' && offset === 0)
      throw new BlockError({ kind: 'io', message: 'the fault of this test' });
  };
  await assert.rejects(changes.change(0, NEW), FAULT);
  fails = false;
  const bit = beside(
    subject,
    (operation) => operation === 'write',
    () => setBit(changes, 2),
  );
  await changes.putBack(changes.owed);
  await bit.ended();
  assert.equal(await bitsOf(path), 2);
});

test('two bits of a word that are set at once are both set', async (t) => {
  const subject = await opened(t);
  const { changes, path } = subject;
  const other = beside(
    subject,
    (operation, offset) => operation === 'write' && offset === BIT_AT,
    () => setBit(changes, 2),
  );
  await setBit(changes, 1);
  await other.ended();
  assert.equal(await bitsOf(path), 3);
});

test('a bit that is set while a header cluster is made anew stays', async (t) => {
  const subject = await opened(t);
  const { changes, path } = subject;
  // The name is written after the cluster was read.
  const bit = beside(
    subject,
    (operation) => operation === 'write',
    () => setBit(changes, 2),
  );
  const shape = { clusterBytes: CLUSTER, headerBytes: HEADER_V3_BYTES };
  await rewriteHeaderCluster(changes, shape, [], { filename: 'base.raw', format: 'raw' });
  await bit.ended();
  assert.equal(await bitsOf(path), 2);
  assert.equal((await readFile(path)).readUInt32BE(HEADER.backingSize), 'base.raw'.length);
});
