import assert from 'node:assert/strict';
import { closeSync, fstatSync, openSync } from 'node:fs';
import { test } from 'node:test';
import { createLog, isJournalStream } from '../../../src/base/log.ts';

test('each event is one line, whatever its text holds, and less urgent ones are left out', () => {
  const lines: string[] = [];
  const log = createLog({ level: 'warning', journald: false, write: (l) => lines.push(l) });
  log.info('disk.raw', 'not told');
  log.warning('a\nerror b: forged', 'x\x1b[31m\r\n<0>y');
  assert.deepEqual(lines, ['warning a\\x0aerror b: forged: x\\x1b[31m\\x0d\\x0a<0>y\n']);
});

test('for journald a line begins with its priority', () => {
  const lines: string[] = [];
  const log = createLog({ level: 'debug', journald: true, write: (l) => lines.push(l) });
  log.error('a', 'b');
  log.warning('a', 'b');
  log.info('a', 'b');
  log.debug('a', 'b');
  assert.deepEqual(lines, ['<3>a: b\n', '<4>a: b\n', '<6>a: b\n', '<7>a: b\n']);
});

test('only the stream that JOURNAL_STREAM names is journald', () => {
  const fd = openSync('/dev/null', 'w');
  try {
    const { dev, ino } = fstatSync(fd);
    assert.equal(isJournalStream(`${dev}:${ino}`, fd), true);
    assert.equal(isJournalStream(`${dev}:${ino + 1}`, fd), false);
    assert.equal(isJournalStream(undefined, fd), false);
    assert.equal(isJournalStream('garbage', fd), false);
    assert.equal(isJournalStream(`${dev}:${ino}`, 1_000_000), false);
  } finally {
    closeSync(fd);
  }
});
