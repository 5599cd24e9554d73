import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../../src/base/block-error.ts';
import { createLog } from '../../../src/base/log.ts';
import { JournaledChanges } from '../../../src/block/journaled-changes.ts';
import type { RestartJournal } from '../../../src/block/restart-journal.ts';

class Stand {
  readonly records: string[] = [];
  readonly lines: string[] = [];
  /** So many more are taken. */
  room = Number.POSITIVE_INFINITY;
  /** Records that no checkpoint has covered. */
  pending = 0;
  readonly changes: JournaledChanges<string>;

  constructor(changesPerRecord?: number) {
    const pending = (): number => this.pending;
    const journal: RestartJournal = {
      leftover: [],
      isContinued: true,
      mark: 0,
      get pendingBytes() {
        return pending();
      },
      append: (record) => {
        if (this.room === 0)
          throw new BlockError({ kind: 'no-space', message: 'full', path: '/run/journal' });
        this.room--;
        this.pending++;
        this.records.push(Buffer.from(record).toString());
      },
      begin: () => void this.records.push('begin'),
      end: () => {
        this.records.push('end');
        this.pending = 0;
      },
      close: () => undefined,
    };
    const log = createLog({ level: 'info', journald: false, write: (l) => this.lines.push(l) });
    const encode = (changes: readonly string[]) => Buffer.from(changes.join('+'));
    this.changes = new JournaledChanges({
      journal,
      log,
      path: 'it',
      encode,
      ...(changesPerRecord !== undefined && { changesPerRecord }),
    });
  }
}

test('what the journal has not taken goes before what comes after it', () => {
  const stand = new Stand();
  stand.room = 0;
  assert.equal(stand.changes.tell(['a', 'b']), false);
  stand.room = 9;
  assert.equal(stand.changes.tell(['c']), true);
  assert.deepEqual(stand.records, ['a+b', 'c']);
  assert.equal(stand.changes.isBehind, false);
});

test('a record that is taken is not told again when the next one is not', () => {
  const stand = new Stand(2);
  stand.room = 1;
  assert.equal(stand.changes.tell(['a', 'b', 'c']), false);
  assert.equal(stand.changes.isBehind, true);
  assert.equal(stand.changes.offer(['x']), false, 'the order is that of the changes');
  stand.room = 9;
  assert.equal(stand.changes.offer(['d']), true);
  assert.deepEqual(stand.records, ['a+b', 'c', 'd']);
});

test('nothing is told while a checkpoint covers what was not', () => {
  const stand = new Stand();
  stand.room = 0;
  stand.changes.tell(['a']);
  stand.changes.begin();
  stand.room = 9;
  assert.equal(stand.changes.tell(['b']), false);
  assert.equal(stand.changes.offer(['x']), false);
  assert.equal(stand.changes.catchUp(), false);
  stand.changes.end();
  assert.equal(stand.changes.isBehind, false);
  assert.deepEqual(stand.records, ['begin', 'end', 'b']);
});

test('a checkpoint that has failed has covered nothing', () => {
  const stand = new Stand();
  stand.room = 0;
  stand.changes.tell(['a']);
  stand.changes.begin();
  stand.changes.tell(['b']);
  stand.changes.fail();
  assert.equal(stand.changes.isBehind, true);
  stand.room = 9;
  assert.equal(stand.changes.catchUp(), true);
  assert.deepEqual(stand.records, ['begin', 'a+b']);
});

test('what waits is told as a whole, or nothing of it', () => {
  const stand = new Stand();
  stand.room = 0;
  stand.changes.tell(['a', 'b']);
  stand.changes.tell(['c']);
  stand.room = 1;
  assert.equal(stand.changes.offer(['x']), false);
  assert.deepEqual(stand.records, ['a+b+c']);
  assert.equal(stand.changes.isBehind, false);
});

test('a checkpoint of what is told leaves out the rest, and nothing is told before one of all has covered that', () => {
  const stand = new Stand();
  stand.changes.tell(['a']);
  assert.equal(stand.changes.beginTold(), null, 'there is nothing that is not told');
  stand.room = 0;
  stand.changes.tell(['b', 'c']);
  const leftOut = stand.changes.beginTold();
  assert.deepEqual(leftOut, ['b', 'c']);
  stand.room = 9;
  assert.equal(stand.changes.tell(['d']), false);
  assert.equal(stand.changes.offer(['x']), false);
  assert.deepEqual(leftOut, ['b', 'c'], 'what came later was not there when it began');
  stand.changes.end();
  assert.equal(stand.changes.isBehind, true);
  assert.equal(stand.changes.beginTold(), null, 'the journal has nothing any more');
  stand.changes.begin();
  assert.equal(stand.changes.tell(['e']), false);
  stand.changes.end();
  assert.equal(stand.changes.isBehind, false);
  assert.deepEqual(stand.records, ['a', 'begin', 'end', 'begin', 'end', 'e']);
});

test('when a checkpoint of what is told has failed, what it left out may be told', () => {
  const stand = new Stand();
  stand.changes.tell(['a']);
  stand.room = 0;
  stand.changes.tell(['b']);
  stand.changes.beginTold();
  stand.changes.fail();
  assert.equal(stand.changes.isBehind, true);
  stand.room = 9;
  assert.equal(stand.changes.catchUp(), true);
  assert.deepEqual(stand.records, ['a', 'begin', 'b']);
});

test('the log says once that the journal cannot be written, and once that it can', () => {
  const stand = new Stand();
  stand.room = 0;
  stand.changes.tell(['a']);
  stand.changes.tell(['b']);
  stand.room = 9;
  stand.changes.tell(['c']);
  stand.changes.tell(['d']);
  assert.equal(stand.lines.length, 2);
  assert.match(stand.lines[0] ?? '', /cannot be written \(\/run\/journal: full\)/);
  assert.match(stand.lines[1] ?? '', /written again/);
});
