import assert from 'node:assert/strict';
import {
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLog } from '../../../src/base/log.ts';
import type { FileIdentity } from '../../../src/block/file-identity.ts';
import {
  createJournalFactory,
  type JournalFactoryOptions,
} from '../../../src/block/restart-journal-file.ts';
import { scratchDirectory } from '../../support/scratch.ts';

const FILE: FileIdentity = { path: '/images/disk.qcow2', device: 5, inode: 77, birthMs: 1.5 };
const HEADER_BYTES = 112;
/** Of images that stay locked. */
const journalsOf = (options: JournalFactoryOptions) => {
  const make = createJournalFactory(options);
  return (file: FileIdentity) => make(file, { tenure: 'one' });
};
const record = (text: string): Uint8Array => new TextEncoder().encode(text);
const texts = (records: readonly Uint8Array[]): string[] =>
  records.map((r) => new TextDecoder().decode(r));

test('what was appended is there for the next, in order, until a checkpoint ends', async (t) => {
  const directory = await scratchDirectory(t);
  const open = journalsOf({ directory, log: silentLog });
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
  const open = journalsOf({ directory, log: silentLog });
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
  const journal = await journalsOf({ directory, log: silentLog, bootId: 'before' })(FILE);
  journal.append(record('old'));
  const open = journalsOf({ directory, log: silentLog, bootId: 'after' });
  assert.deepEqual((await open({ ...FILE, inode: 7 })).leftover, []);
  assert.deepEqual((await open(FILE)).leftover, []);
  assert.deepEqual(readdirSync(directory), [], 'what can never be applied is not kept');
});

test('records of a file that is gone are never offered to the one that has its inode number now', async (t) => {
  const directory = await scratchDirectory(t);
  const open = journalsOf({ directory, log: silentLog });
  (await open(FILE)).append(record('of the old file'));
  assert.deepEqual((await open({ ...FILE, birthMs: 1.75 })).leftover, []);
});

test('a journal has one mark, and no other the same, as long as something of it is left', async (t) => {
  const directory = await scratchDirectory(t);
  const open = createJournalFactory({ directory, log: silentLog });
  const first = await open(FILE, { tenure: 'one' });
  assert.ok(Number.isInteger(first.mark) && first.mark >= 0 && first.mark < 2 ** 31);
  const unused = await open(FILE, { tenure: 'one' });
  assert.notEqual(unused.mark, first.mark, 'nothing of it is left');
  first.append(record('a'));
  first.begin();
  first.append(record('b'));
  const second = await open(FILE, { tenure: 'two' });
  assert.equal(second.mark, first.mark);
  second.begin();
  second.append(record('c'));
  second.end();
  assert.deepEqual(second.leftover, [], 'what is forgotten is not offered any more');
  const third = await open(FILE, { tenure: null });
  assert.deepEqual(texts(third.leftover), ['c']);
  assert.equal(third.mark, first.mark);
  third.close();
  assert.notEqual((await open(FILE, { tenure: 'one' })).mark, first.mark);
});

test('a journal that cannot be written says so, and loses nothing that it had', async (t) => {
  const directory = await scratchDirectory(t);
  const open = journalsOf({ directory, log: silentLog });
  const journal = await open(FILE);
  journal.append(record('kept'));
  journal.begin();
  // The next generation's file is in the way.
  writeFileSync(join(directory, '5-77.2'), 'somebody else');
  assert.throws(() => journal.append(record('lost')));
  journal.append(record('again'));
  assert.ok(texts((await open(FILE)).leftover).includes('kept'));
});

/** Takes so many bytes, then fails once, and takes everything afterwards. */
const failingAfter = (bytes: number) => {
  let left: number | null = bytes;
  return (fd: number, content: Uint8Array, from: number): number => {
    if (left === 0) {
      left = null;
      throw new Error('the runtime directory is full');
    }
    const part = Math.min(content.length - from, left ?? Number.POSITIVE_INFINITY);
    if (left !== null) left -= part;
    return writeSync(fd, content, from, part);
  };
};

const RECORD_BYTES = 8 + 3;

test('a record that fails at any byte is never offered, and hides no other', async (t) => {
  for (let bytes = 0; bytes < HEADER_BYTES + 3 * RECORD_BYTES; bytes++) {
    const directory = await scratchDirectory(t);
    const write = failingAfter(bytes);
    const journal = await journalsOf({ directory, log: silentLog, write })(FILE);
    const taken: string[] = [];
    for (const text of ['one', 'two', 'six', 'ten', 'end']) {
      try {
        journal.append(record(text));
        taken.push(text);
      } catch {
        // That is the one.
      }
    }
    assert.equal(taken.length, 4, `after ${bytes} bytes`);
    const { leftover } = await journalsOf({ directory, log: silentLog })(FILE);
    assert.deepEqual(texts(leftover), taken, `after ${bytes} bytes`);
    journal.close();
    assert.deepEqual(readdirSync(directory), []);
  }
});

test('a record that fails during a checkpoint takes none with it that came after the checkpoint began', async (t) => {
  const directory = await scratchDirectory(t);
  const write = failingAfter(2 * HEADER_BYTES + 2 * RECORD_BYTES + 1);
  const journal = await journalsOf({ directory, log: silentLog, write })(FILE);
  journal.append(record('old'));
  journal.begin();
  journal.append(record('one'));
  assert.throws(() => journal.append(record('two')), /full/);
  journal.append(record('six'));
  journal.end();
  const { leftover } = await journalsOf({ directory, log: silentLog })(FILE);
  assert.deepEqual(texts(leftover), ['one', 'six']);
  journal.begin();
  journal.end();
  assert.deepEqual(readdirSync(directory), []);
});

test('a record that is written byte by byte is whole, and one of which nothing is written fails', async (t) => {
  const directory = await scratchDirectory(t);
  let most = 1;
  const write = (fd: number, bytes: Uint8Array, from: number): number =>
    most === 0 ? 0 : writeSync(fd, bytes, from, most);
  const journal = await journalsOf({ directory, log: silentLog, write })(FILE);
  journal.append(record('one'));
  most = 0;
  assert.throws(() => journal.append(record('two')), /nothing was written/);
  const { leftover } = await journalsOf({ directory, log: silentLog })(FILE);
  assert.deepEqual(texts(leftover), ['one']);
});

test('what cannot be removed after a checkpoint is removed after the next', async (t) => {
  const directory = await scratchDirectory(t);
  const journal = await journalsOf({ directory, log: silentLog })(FILE);
  journal.append(record('one'));
  const [name = ''] = readdirSync(directory);
  const path = join(directory, name);
  rmSync(path);
  mkdirSync(path);
  journal.begin();
  assert.throws(() => journal.end());
  rmdirSync(path);
  writeFileSync(path, 'it is back');
  journal.begin();
  journal.end();
  assert.deepEqual(readdirSync(directory), []);
});

test('records are continued by who has the lock under which all of them were left', async (t) => {
  const directory = await scratchDirectory(t);
  const make = createJournalFactory({ directory, log: silentLog });
  const isContinuedBy = async (tenure: string | null): Promise<boolean> => {
    const { leftover, isContinued } = await make(FILE, { tenure });
    assert.ok(leftover.length > 0, 'they are offered to everybody');
    return isContinued;
  };
  const first = await make(FILE, { tenure: 'one' });
  first.append(record('under the first lock'));
  assert.equal(await isContinuedBy('one'), true);
  assert.equal(await isContinuedBy('two'), false);
  assert.equal(await isContinuedBy(null), false);
  // Whoever takes them up later and is killed has not made them his.
  (await make(FILE, { tenure: 'two' })).append(record('under the second'));
  assert.equal(await isContinuedBy('two'), false);
  const unlocked = await make({ ...FILE, inode: 78 }, { tenure: null });
  unlocked.append(record('under none'));
  assert.equal((await make({ ...FILE, inode: 78 }, { tenure: null })).isContinued, false);
});
