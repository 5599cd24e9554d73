import assert from 'node:assert/strict';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLog } from '../../../src/base/log.ts';
import type { FileIdentity } from '../../../src/block/file-identity.ts';
import { createJournalFactory } from '../../../src/block/restart-journal-file.ts';
import { scratchDirectory } from '../../support/scratch.ts';

const FILE: FileIdentity = { path: '/images/disk.qcow2', device: 5, inode: 77, birthMs: 1.5 };
const HEADER_BYTES = 72;
const record = (text: string): Uint8Array => new TextEncoder().encode(text);
const texts = (records: readonly Uint8Array[]): string[] =>
  records.map((r) => new TextDecoder().decode(r));

test('what was appended is there for the next, in order, until a checkpoint ends', async (t) => {
  const directory = await scratchDirectory(t);
  const open = createJournalFactory({ directory, log: silentLog });
  const first = await open(FILE);
  assert.deepEqual(readdirSync(directory), [], 'nothing is made before the first record');
  first.append(record('a'));
  first.begin();
  first.append(record('b'));
  const second = await open(FILE);
  assert.deepEqual(texts(second.leftover), ['a', 'b']);
  first.end();
  assert.deepEqual(texts((await open(FILE)).leftover), ['b'], 'what came after begin stays');
  first.close();
  assert.deepEqual(readdirSync(directory), []);
});

test('a record that was torn, and what follows it, is not offered', async (t) => {
  const directory = await scratchDirectory(t);
  const open = createJournalFactory({ directory, log: silentLog });
  const journal = await open(FILE);
  for (const text of ['one', 'two', 'three']) journal.append(record(text));
  const [name] = readdirSync(directory);
  const path = join(directory, name ?? '');
  const whole = readFileSync(path);
  for (let length = whole.length - 1; length > whole.length - 12; length--) {
    writeFileSync(path, whole.subarray(0, length));
    assert.deepEqual(texts((await open(FILE)).leftover), ['one', 'two']);
  }
  const damaged = Buffer.from(whole);
  damaged[HEADER_BYTES + 8] = (damaged[HEADER_BYTES + 8] ?? 0) ^ 1;
  writeFileSync(path, damaged);
  assert.deepEqual((await open(FILE)).leftover, []);
});

test('records of another boot, or of another file, are never offered', async (t) => {
  const directory = await scratchDirectory(t);
  const journal = await createJournalFactory({ directory, log: silentLog, bootId: 'before' })(FILE);
  journal.append(record('old'));
  const open = createJournalFactory({ directory, log: silentLog, bootId: 'after' });
  assert.deepEqual((await open({ ...FILE, inode: 7 })).leftover, []);
  assert.deepEqual((await open(FILE)).leftover, []);
  assert.deepEqual(readdirSync(directory), [], 'what can never be applied is not kept');
});

test('records of a file that is gone are never offered to the one that has its inode number now', async (t) => {
  const directory = await scratchDirectory(t);
  const open = createJournalFactory({ directory, log: silentLog });
  (await open(FILE)).append(record('of the old file'));
  assert.deepEqual((await open({ ...FILE, birthMs: 1.75 })).leftover, []);
});

test('a journal that cannot be written says so, and loses nothing that it had', async (t) => {
  const directory = await scratchDirectory(t);
  const open = createJournalFactory({ directory, log: silentLog });
  const journal = await open(FILE);
  journal.append(record('kept'));
  journal.begin();
  // The next generation's file is in the way.
  writeFileSync(join(directory, '5-77.2'), 'somebody else');
  assert.throws(() => journal.append(record('lost')));
  journal.append(record('again'));
  assert.ok(texts((await open(FILE)).leftover).includes('kept'));
});
