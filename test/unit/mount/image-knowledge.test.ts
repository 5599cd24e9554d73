/** What is known of an image: what scans, openings and closings find beside each other. */
import assert from 'node:assert/strict';
import { appendFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { statHostFile } from '../../../mount/catalog/host-file.ts';
import { ImageKnowledge } from '../../../mount/catalog/image-knowledge.ts';
import type { Inspection } from '../../../mount/catalog/inspection.ts';
import type { Candidate } from '../../../mount/catalog/listing.ts';
import { BlockError, type BlockErrorKind } from '../../../src/base/block-error.ts';
import type { ImageDescription } from '../../../src/block/image-description.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';

const DESCRIPTION = {
  virtualSizeBytes: 1000,
  corrupt: false,
  dirty: true,
} as unknown as ImageDescription;

const inspectionOf = (change: Partial<Inspection> = {}): Inspection => ({
  driver: null,
  declaredFormat: 'stub',
  description: DESCRIPTION,
  chain: [],
  dataFiles: [],
  error: null,
  ...change,
});

const failure = (kind: BlockErrorKind): BlockError => new BlockError({ kind, message: 'x' });

const layerOf = async (path: string): Promise<Inspection['dataFiles'][number]> => {
  const { identity, stamp } = await statHostFile(path);
  return { path, identity, stamp, format: 'raw', remote: null, allocatedBytes: 0 };
};

const candidateOf = async (path: string, target?: string): Promise<Candidate> => {
  const host = await statHostFile(path);
  const plain = { host, fileName: 'disk.stub', named: false, declaredName: null };
  if (target === undefined) return plain;
  const names = { fileName: 'disk.stub', named: false, declaredName: null };
  const record = { original: path, key: 'key', target, format: 'stub', ...names };
  return { ...plain, standIn: { record, missing: null } };
};

interface Scene {
  readonly path: string;
  readonly directory: string;
  readonly before: Inspection;
  readonly knowledge: ImageKnowledge;
  /** As a scan sees it now. */
  readonly seen: () => Promise<Candidate>;
}

const sceneIn = async (t: Cleanup): Promise<Scene> => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.stub');
  await writeFile(path, 'image');
  const before = inspectionOf();
  const candidate = await candidateOf(path);
  const knowledge = new ImageKnowledge({ candidate, inspection: before, openError: null });
  return { path, directory, before, knowledge, seen: () => candidateOf(path) };
};

const SHUT = { isOpen: false };

test('what a scan has seen of the file before we looked at it counts for nothing', async (t) => {
  const { path, knowledge, seen } = await sceneIn(t);
  const sinceMs = performance.now();
  const early = await seen();
  await appendFile(path, ' that we have written');
  await knowledge.adoptOwnChanges();
  const { stamp } = await statHostFile(path);
  assert.notEqual(early.host.stamp, stamp);
  assert.equal(knowledge.host.stamp, stamp);
  assert.equal(knowledge.latest(early, sinceMs).host.stamp, stamp);
  const inspection = inspectionOf();
  const inspectionBefore = knowledge.inspection;
  knowledge.adopt({ candidate: early, inspection, inspectionBefore, sinceMs }, SHUT);
  assert.equal(knowledge.host.stamp, stamp);
  assert.equal(knowledge.inspection, inspection, 'the header was read since');
});

test('a scan that began after we looked at it knows the file better', async (t) => {
  const { path, knowledge, seen } = await sceneIn(t);
  await knowledge.adoptOwnChanges();
  await appendFile(path, ' that somebody else has written');
  const sinceMs = performance.now() + 1;
  const candidate = await seen();
  assert.equal(knowledge.latest(candidate, sinceMs), candidate);
  const found = { candidate, inspection: inspectionOf(), inspectionBefore: null, sinceMs };
  knowledge.adopt(found, SHUT);
  assert.equal(knowledge.host.stamp, candidate.host.stamp);
});

test('another file under the name, and the file under another name, are what the scan has seen', async (t) => {
  const { path, directory, knowledge } = await sceneIn(t);
  const sinceMs = performance.now();
  await knowledge.adoptOwnChanges();
  const moved = join(directory, 'moved.stub');
  await rename(path, moved);
  await writeFile(path, 'another');
  for (const candidate of [await candidateOf(path), await candidateOf(moved)])
    assert.equal(knowledge.latest(candidate, sinceMs), candidate);
});

test('what was learnt of the image while a scan read its header stays', async (t) => {
  const { before, knowledge, seen } = await sceneIn(t);
  const sinceMs = performance.now();
  const candidate = await seen();
  knowledge.closed({ virtualSizeBytes: 4000, isCorrupt: true });
  const inspection = inspectionOf();
  knowledge.adopt({ candidate, inspection, inspectionBefore: before, sinceMs }, SHUT);
  assert.equal(knowledge.inspection.description?.virtualSizeBytes, 4000);
  assert.equal(knowledge.inspection.description?.corrupt, true);
});

test('a scan that has begun before a pivot changes nothing', async (t) => {
  const { directory, before, knowledge, seen } = await sceneIn(t);
  const sinceMs = performance.now();
  const candidate = await seen();
  const target = join(directory, 'target.stub');
  await writeFile(target, 'target');
  const pivoted = await candidateOf(target, target);
  knowledge.become(pivoted, before);
  const inspection = inspectionOf({ declaredFormat: 'other' });
  knowledge.adopt({ candidate, inspection, inspectionBefore: before, sinceMs }, SHUT);
  assert.equal(knowledge.candidate, pivoted);
  assert.equal(knowledge.inspection, before);
});

test('another file is not adopted while the image is open', async (t) => {
  const { path, directory, before, knowledge, seen } = await sceneIn(t);
  const own = knowledge.candidate;
  await rename(path, join(directory, 'away'));
  await writeFile(path, 'another');
  const candidate = await seen();
  const found = { candidate, inspection: before, inspectionBefore: before, sinceMs: 0 };
  knowledge.adopt(found, { isOpen: true });
  assert.equal(knowledge.candidate, own);
  knowledge.adopt(found, SHUT);
  assert.equal(knowledge.candidate, candidate);
});

test('what we did to the files is ours; another file in their place is not', async (t) => {
  const { path, directory, knowledge } = await sceneIn(t);
  const names = ['kept.dat', 'replaced.dat'].map((name) => join(directory, name));
  const [kept = '', replaced = ''] = names;
  for (const name of names) await writeFile(name, 'data');
  const dataFiles = [await layerOf(kept), await layerOf(replaced)];
  knowledge.learn(inspectionOf({ dataFiles }));
  assert.equal(await knowledge.hasSameDataFiles(), true);
  await appendFile(kept, ' more');
  assert.equal(await knowledge.hasSameDataFiles(), false);
  await knowledge.adoptOwnChanges();
  assert.equal(await knowledge.hasSameDataFiles(), true);
  const { host } = knowledge;
  for (const name of [path, replaced]) {
    await writeFile(`${name}.new`, 'another');
    await rename(`${name}.new`, name);
  }
  await knowledge.adoptOwnChanges();
  assert.equal(knowledge.host, host);
  assert.equal(knowledge.inspection.dataFiles[1]?.stamp, dataFiles[1]?.stamp);
  assert.equal(await knowledge.hasSameDataFiles(), false);
});

test('an opening that fails is kept while the file is the same, and only when it says something of the image', async (t) => {
  const { path, before, knowledge, seen } = await sceneIn(t);
  knowledge.openFailed(failure('busy'));
  assert.equal(knowledge.openError, null);
  const lasting = failure('invalid-image');
  knowledge.openFailed(lasting);
  const sinceMs = performance.now();
  const adopt = async (): Promise<void> => {
    const inspectionBefore = before;
    const candidate = await seen();
    knowledge.adopt({ candidate, inspection: before, inspectionBefore, sinceMs }, SHUT);
  };
  await adopt();
  knowledge.retry(await statHostFile(path));
  assert.deepEqual(knowledge.openError, lasting);
  await appendFile(path, ' and mended');
  knowledge.retry(await statHostFile(path));
  assert.equal(knowledge.openError, null);
  knowledge.openFailed(failure('not-found'));
  knowledge.opened();
  assert.equal(knowledge.openError, null);
});

test('a scan that finds the file changed forgets why it did not open', async (t) => {
  const { path, before, knowledge, seen } = await sceneIn(t);
  knowledge.openFailed(failure('invalid-image'));
  await appendFile(path, ' and mended');
  const candidate = await seen();
  const found = { candidate, inspection: before, inspectionBefore: before, sinceMs: 0 };
  knowledge.adopt(found, SHUT);
  assert.equal(knowledge.openError, null);
});

test('a header is read again a second after the last time, or when the file has changed', async (t) => {
  const { path, knowledge } = await sceneIn(t);
  const host = await statHostFile(path);
  let nowMs = 10_000;
  t.mock.method(performance, 'now', () => nowMs);
  knowledge.retry(host);
  nowMs += 1000;
  assert.equal(knowledge.isWorthRetry(host), false);
  nowMs++;
  assert.equal(knowledge.isWorthRetry(host), true);
  knowledge.retry(host);
  await appendFile(path, ' and mended');
  assert.equal(knowledge.isWorthRetry(await statHostFile(path)), true);
});

test('an image that cannot be read for the moment is still made of what it was made of', async (t) => {
  const { path, knowledge } = await sceneIn(t);
  const chain = [await layerOf(path)];
  knowledge.learn(inspectionOf({ chain }));
  const error = failure('io');
  knowledge.learn(inspectionOf({ error, description: null }));
  assert.equal(knowledge.inspection.error, error);
  assert.equal(knowledge.inspection.chain, chain);
  knowledge.learnAnew(inspectionOf({ error }));
  assert.deepEqual(knowledge.inspection.chain, [], 'it may be made of something else now');
});

test('why it did not open, and not for writing, is forgotten when it is had from another host, and at a pivot', async (t) => {
  const { path, before, knowledge } = await sceneIn(t);
  const { host, candidate } = knowledge;
  for (const begin of [
    () => knowledge.beginAnew(host),
    () => knowledge.become(candidate, before),
  ]) {
    knowledge.openFailed(failure('unsupported'));
    knowledge.doesNotOpenForWriting('no');
    const { stamp } = await statHostFile(path);
    assert.deepEqual(knowledge.unwritable, { stamp, reason: 'no' });
    begin();
    assert.equal(knowledge.openError, null);
    assert.equal(knowledge.unwritable, null);
  }
});

test('what is known of a header follows what is done to the image; where none was read, nothing is made up', async (t) => {
  const { knowledge } = await sceneIn(t);
  knowledge.openedForWriting();
  knowledge.closed({ virtualSizeBytes: 2000, isCorrupt: false });
  knowledge.snapshotsChanged([]);
  const now = { ...DESCRIPTION, dirty: false, virtualSizeBytes: 2000, snapshots: [] };
  assert.deepEqual(knowledge.inspection.description, now);
  knowledge.closed({ virtualSizeBytes: 2000, isCorrupt: true });
  knowledge.closed({ virtualSizeBytes: 2000, isCorrupt: false });
  assert.equal(knowledge.inspection.description?.corrupt, true, 'until somebody repairs it');
  knowledge.learn(inspectionOf({ description: null }));
  knowledge.openedForWriting();
  knowledge.closed({ virtualSizeBytes: 3000, isCorrupt: true });
  knowledge.snapshotsChanged([]);
  assert.equal(knowledge.inspection.description, null);
});
