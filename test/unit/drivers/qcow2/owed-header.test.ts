/**
 * Changes of the header that fail, and cannot be put back: no flush is answered as good until they are, and who takes over from an
 * engine that was killed meanwhile has what it answered.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { guestOffset } from '../../../../src/base/units.ts';
import type { Node } from '../../../../src/block/node.ts';
import type { RestartJournal } from '../../../../src/block/restart-journal.ts';
import { fullJournal } from '../../../support/full-journal.ts';
import { FAULT, type HeaderFaultOptions } from '../../../support/header-fault.ts';
import { type HeaderFaultScene, openUnderFault } from '../../../support/header-fault-scene.ts';
import { patch } from '../../../support/host-files.ts';
import { journaledImage } from '../../../support/journaled-image.ts';
import { qemuImg, qemuIo } from '../../../support/qemu-img.ts';
import { testGraph } from '../../../support/test-graph.ts';

const OWED = /cannot be put back/;
const CHECKPOINT_FAILED =
  /a checkpoint failed: .*cannot be put back.* at offset 0x[0-9a-f]+: mend .*each flush tries it again/;
const MARKS_BYTES = 512;
const LINK = { filename: 'other.raw', format: 'raw' };

/** The header is what it was when the engine that changed it ends, or is killed; or the next engine finds the new one. */
const ENDINGS = ['put back', 'taken over'] as const;
type Ending = (typeof ENDINGS)[number];

interface Change {
  readonly what: string;
  readonly clusterBytes: number;
  readonly diskBytes: number;
  /** Of the field that is written, in the header. */
  readonly at: number;
  readonly compat?: '0.10';
  readonly hasBacking?: boolean;
  readonly hasSnapshot?: boolean;
  readonly run: (node: Node) => Promise<void>;
  /** What a guest writes after it has failed: by the new fields it would not be there. */
  readonly writes: { readonly at: number };
  /** Whoever takes over finds the old fields, also where nobody could put them back. */
  readonly isTakenBack: boolean;
  /** When something that was counted for the change is leaked. */
  readonly leaks?: readonly Ending[];
}

const KIB = 1024;

/** Clusters of 512 bytes, counted by a refcount table of one cluster, end there. */
const COUNTED_BYTES = 64 * 256 * 512;

const fillCounted = async (node: Node): Promise<void> => {
  const bytes = new Uint8Array(512 * KIB).fill(3);
  // More than is counted: the table has to move.
  for (let at = 0; at < COUNTED_BYTES; at += bytes.length) await node.write(guestOffset(at), bytes);
};

const CASES: readonly Change[] = [
  {
    what: 'a larger size',
    clusterBytes: 4096,
    diskBytes: 256 * KIB,
    at: 24,
    run: (node) => node.resize(512 * KIB),
    writes: { at: 200 * KIB },
    isTakenBack: false,
  },
  {
    what: 'a smaller size',
    clusterBytes: 4096,
    diskBytes: 256 * KIB,
    at: 24,
    run: (node) => node.resize(128 * KIB),
    writes: { at: 200 * KIB },
    isTakenBack: true,
  },
  {
    what: 'a larger L1 table',
    clusterBytes: 4096,
    diskBytes: 4096 * KIB,
    at: 36,
    run: (node) => node.resize(2 ** 33),
    // In a table that only the old one names.
    writes: { at: 3000 * KIB },
    isTakenBack: true,
  },
  {
    what: 'a refcount table that moves',
    clusterBytes: 512,
    diskBytes: 16 << 20,
    at: 48,
    run: fillCounted,
    // Clusters are there that are mapped already.
    writes: { at: 4 * KIB },
    isTakenBack: false,
    leaks: ['taken over'],
  },
  {
    what: 'another backing link',
    clusterBytes: 4096,
    diskBytes: 256 * KIB,
    at: 0,
    hasBacking: true,
    run: (node) => node.changeBacking(LINK),
    writes: { at: 200 * KIB },
    isTakenBack: true,
  },
  {
    what: 'a snapshot that is applied',
    clusterBytes: 4096,
    diskBytes: 256 * KIB,
    at: 24,
    hasSnapshot: true,
    run: (node) => node.withSnapshots('apply', (snapshots) => snapshots.apply('1')),
    writes: { at: 200 * KIB },
    isTakenBack: true,
    leaks: ['put back'],
  },
  {
    what: 'a snapshot that is made',
    clusterBytes: 4096,
    diskBytes: 256 * KIB,
    at: 60,
    hasSnapshot: true,
    run: async (node) => {
      await node.withSnapshots('create', (snapshots) =>
        snapshots.create({ name: 'later', dateSeconds: 0, dateNanoseconds: 0 }),
      );
    },
    writes: { at: 4 * KIB },
    isTakenBack: true,
    leaks: ['put back'],
  },
  {
    what: 'a snapshot that is deleted',
    clusterBytes: 4096,
    diskBytes: 256 * KIB,
    at: 60,
    hasSnapshot: true,
    run: (node) => node.withSnapshots('remove', (snapshots) => snapshots.remove('1')),
    writes: { at: 4 * KIB },
    isTakenBack: true,
  },
];

/** Version 2 has no dirty bit: nobody repairs what an operation on snapshots has left. */
const CHANGES: readonly Change[] = CASES.flatMap((change) => [
  change,
  {
    ...change,
    what: `${change.what}, version 2`,
    compat: '0.10' as const,
    ...(change.leaks?.includes('put back') === true ? { leaks: ENDINGS } : {}),
  },
]);

const opened = async (
  t: TestContext,
  change: Change,
  first: HeaderFaultOptions['first'],
  journal: (made: RestartJournal) => RestartJournal = (own) => own,
): Promise<HeaderFaultScene> => {
  // No checkpoint comes by itself, also of what was killed.
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const place = await journaledImage(t, 'disk.qcow2');
  const { directory, path } = place;
  const layout = `cluster_size=${change.clusterBytes},compat=${change.compat ?? '1.1'}`;
  const options = ['-f', 'qcow2', '-o', layout];
  const base = join(directory, 'base.raw');
  for (const [name, fill] of [
    [base, 5],
    [join(directory, LINK.filename), 6],
  ] as const)
    await writeFile(name, new Uint8Array(256 * KIB).fill(fill));
  if (change.hasBacking === true) options.push('-b', base, '-F', 'raw');
  await qemuImg(['create', '-q', ...options, path, String(change.diskBytes)]);
  await qemuIo(path, ['write -P 1 0 8k'], ['-f', 'qcow2']);
  if (change.hasSnapshot === true) {
    await qemuImg(['snapshot', '-c', 's', path]);
    await qemuIo(path, ['write -P 2 0 8k'], ['-f', 'qcow2']);
  }
  return openUnderFault(place, { format: 'qcow2', headerBytes: 512, first, journal });
};

const fails = async (
  t: TestContext,
  change: Change,
  first: HeaderFaultOptions['first'],
): Promise<HeaderFaultScene> => {
  const subject = await opened(t, change, first);
  const { node, fault } = subject;
  fault.arm(change.at);
  await assert.rejects(change.run(node), FAULT);
  assert.ok(fault.isMet, 'the header was written');
  await node.write(guestOffset(change.writes.at), new Uint8Array(MARKS_BYTES).fill(9));
  return subject;
};

const fieldsIn = (image: Buffer): string => image.subarray(0, 72).toString('hex');
const fieldsOf = async (path: string): Promise<string> => fieldsIn(await readFile(path));

const holds = async (node: Node, at: number, fill: number): Promise<void> => {
  const found = new Uint8Array(MARKS_BYTES);
  await node.read(guestOffset(at), found);
  assert.deepEqual(found, new Uint8Array(MARKS_BYTES).fill(fill), `at ${at}`);
};

/** What the guest has at its beginning. */
const fillOf = ({ what, hasSnapshot }: Change): number => {
  if (what.startsWith('a refcount table')) return 3;
  return hasSnapshot === true ? 2 : 1;
};

const isRight = async (
  path: string,
  directory: string,
  change: Change,
  ending: Ending,
): Promise<void> => {
  const leaks = change.leaks?.includes(ending) === true;
  await qemuImg(['check', path], [leaks ? 3 : 0]);
  if (leaks && change.hasSnapshot === true && change.compat === undefined) {
    // Whoever opens it for writing repairs it.
    const graph = await testGraph({ directory });
    await graph.close(await graph.open({ path, format: 'qcow2', readOnly: false }));
    await qemuImg(['check', path]);
  }
  const { at } = change.writes;
  await qemuIo(path, [
    `read -P ${fillOf(change)} 0 512`,
    `read -P 9 ${at} ${MARKS_BYTES}`,
    ...(change.hasBacking === true ? ['read -P 5 100k 512'] : []),
  ]);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: true });
  await holds(node, at, 9);
  await graph.close(node);
};

const cannotFlush = async (
  { node, path, errors }: HeaderFaultScene,
  hint: RegExp,
): Promise<void> => {
  const before = await readFile(path);
  for (let i = 0; i < 2; i++) {
    await assert.rejects(node.flush(), { errno: 'EIO', path, message: OWED, hint });
    assert.ok(before.equals(await readFile(path)), 'nothing of the image is written');
  }
  assert.ok(
    errors.some((line) => OWED.test(line) && hint.test(line)),
    'the log says what to do',
  );
};

for (const change of CHANGES) {
  for (const first of ['reached', 'write'] as const) {
    test(`no flush is good until the header is put back: ${change.what}, ${first} fails`, async (t) => {
      const subject = await fails(t, change, first);
      const { node, graph, path, directory, fault } = subject;
      const before = await fieldsOf(path);
      await cannotFlush(subject, /each flush tries it again/);
      fault.end();
      await node.flush();
      if (first === 'reached') assert.notEqual(await fieldsOf(path), before);
      await holds(node, change.writes.at, 9);
      await graph.close(node);
      await isRight(path, directory, change, 'put back');
    });
  }

  // One that a snapshot writes stays when its sync fails.
  if (change.hasSnapshot !== true) {
    test(`no flush is good until the next engine has put the header back: ${change.what}, its sync fails`, async (t) => {
      const subject = await fails(t, change, 'sync');
      const { node, graph, path, directory, fault, takeOver } = subject;
      fault.end();
      await cannotFlush(subject, /vdiskfs restart MOUNTPOINT/);
      await holds(node, change.writes.at, 9);
      await assert.rejects(graph.close(node), { message: OWED });
      const next = await takeOver();
      await holds(next.node, change.writes.at, 9);
      await next.node.flush();
      await next.graph.close(next.node);
      await isRight(path, directory, change, 'put back');
    });
  }

  test(`what is owed when an engine is killed is put back by the next: ${change.what}`, async (t) => {
    const { node, takeOver, path, directory } = await fails(t, change, 'reached');
    await assert.rejects(node.flush(), OWED);
    const changed = await fieldsOf(path);
    const next = await takeOver();
    assert.equal((await fieldsOf(path)) !== changed, change.isTakenBack);
    await holds(next.node, change.writes.at, 9);
    await next.graph.close(next.node);
    await isRight(path, directory, change, 'taken over');
  });
}

const changeOf = (what: string): Change => {
  const found = CHANGES.find((change) => change.what === what);
  assert.ok(found !== undefined);
  return found;
};

test('a header that is owed is put back when the image is closed', async (t) => {
  const change = changeOf('a smaller size');
  const { node, graph, path, directory, fault } = await fails(t, change, 'reached');
  fault.end();
  await graph.close(node);
  await isRight(path, directory, change, 'put back');
});

test('closing says so when the header cannot be put back, and the next opening does it', async (t) => {
  const change = changeOf('a larger L1 table');
  const { node, graph, path, directory, errors, takeOver } = await fails(t, change, 'sync');
  await assert.rejects(graph.close(node), { message: OWED });
  assert.match(errors.join('\n'), /is closed, and .*cannot be put back/);
  const next = await takeOver();
  await next.graph.close(next.node);
  await isRight(path, directory, change, 'taken over');
});

test('a checkpoint that fails by itself says where and what to do', async (t) => {
  const { node, graph, fault, errors } = await fails(t, changeOf('a smaller size'), 'reached');
  t.mock.timers.tick(60_000);
  await assert.rejects(node.flush(), OWED);
  assert.match(errors.join('\n'), CHECKPOINT_FAILED);
  fault.end();
  await graph.close(node);
});

test('a change that comes later is made after what is owed was put back', async (t) => {
  const change = changeOf('a smaller size');
  const { node, graph, path, fault } = await fails(t, change, 'reached');
  await assert.rejects(node.resize(512 * KIB), OWED);
  fault.end();
  await node.resize(512 * KIB);
  await graph.close(node);
  assert.equal((await readFile(path)).readBigUInt64BE(24), BigInt(512 * KIB));
  await qemuImg(['check', path]);
});

test('a header that cannot be read is not changed, and nothing is owed', async (t) => {
  const { node, graph, path, fault } = await opened(t, changeOf('a smaller size'), 'reached');
  const before = await fieldsOf(path);
  fault.failReads();
  await assert.rejects(node.resize(128 * KIB), FAULT);
  assert.equal(await fieldsOf(path), before);
  await node.flush();
  fault.end();
  await graph.close(node);
  await qemuImg(['check', path]);
});

test('what was put back before a checkpoint failed is not put back once more over a later change', async (t) => {
  const change = changeOf('another backing link');
  const { node, path, fault, takeOver } = await fails(t, change, 'reached');
  // Without anything else that is dirty, so that only what is owed asks for another checkpoint.
  fault.end();
  await node.flush();
  fault.arm(change.at);
  await assert.rejects(change.run(node), FAULT);
  fault.end();
  fault.failSync(2);
  await assert.rejects(node.flush(), FAULT);
  const link = { filename: 'later.raw', format: 'raw' };
  await node.changeBacking(link);
  const changed = await fieldsOf(path);
  await writeFile(join(path, '..', link.filename), new Uint8Array(256 * KIB).fill(7));
  const next = await takeOver();
  assert.equal(await fieldsOf(path), changed);
  assert.deepEqual(next.node.driver.backingLink, link);
  await next.graph.close(next.node);
});

test('where the journal does not take what is owed, nothing is answered until it is put back', async (t) => {
  let isFull = false;
  const change = changeOf('a smaller size');
  const subject = await opened(t, change, 'reached', (made) => fullJournal(made, () => isFull));
  const { node, graph, path, directory, fault } = subject;
  fault.arm(change.at);
  isFull = true;
  await assert.rejects(change.run(node), FAULT);
  const bytes = new Uint8Array(MARKS_BYTES).fill(9);
  await assert.rejects(node.write(guestOffset(change.writes.at), bytes), { message: OWED });
  fault.end();
  await node.write(guestOffset(change.writes.at), bytes);
  await graph.close(node);
  await isRight(path, directory, change, 'put back');
});

/** The first of the L1 table that the header names. */
const clearL1Word = async (path: string): Promise<void> =>
  patch(path, Number((await readFile(path)).readBigUInt64BE(40)), new Uint8Array(8));

for (const what of [
  'a larger L1 table',
  'a snapshot that is applied',
  'a snapshot that is applied, version 2',
]) {
  test(`an L1 table that another program has used meanwhile stays, and the journal is not applied: ${what}`, async (t) => {
    const { takeOver, path, errors } = await fails(t, changeOf(what), 'reached');
    const changed = await fieldsOf(path);
    // All of it is forgotten.
    await clearL1Word(path);
    const next = await takeOver();
    assert.equal(await fieldsOf(path), changed);
    assert.match(errors.join('\n'), /another program has changed this image .*its header/);
    await next.graph.close(next.node);
  });
}
