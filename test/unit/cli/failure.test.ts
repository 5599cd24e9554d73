import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../../src/base/block-error.ts';
import { UsageError } from '../../../src/cli/command.ts';
import { describeFailure } from '../../../src/cli/failure.ts';

test('a failure of an image is one line: path, what, what to do', () => {
  const error = new BlockError({
    kind: 'locked',
    message: 'is in use',
    hint: 'close it there',
    path: '/d/a.qcow2',
  });
  assert.equal(describeFailure(error, 'info'), 'vdiskfs: /d/a.qcow2: is in use: close it there');
});

test('a failure without a file names the command', () => {
  const error = new BlockError({ kind: 'io', message: 'nothing works' });
  assert.equal(describeFailure(error, 'check'), 'vdiskfs: check: nothing works');
});

test('a system error of Node is told without its syscall', () => {
  const error = Object.assign(new Error("ENOENT: no such file or directory, open '/x'"), {
    code: 'ENOENT',
    path: '/x',
  });
  assert.equal(describeFailure(error, 'info'), 'vdiskfs: /x: no such file or directory');
});

test('bad usage points to the help of its command', () => {
  assert.equal(
    describeFailure(new UsageError('is no size', 'SIZE'), 'create'),
    'vdiskfs: SIZE: is no size: see vdiskfs create --help',
  );
  assert.equal(
    describeFailure(new UsageError('a command is missing'), null),
    'vdiskfs: a command is missing: see vdiskfs --help',
  );
});

test('a file name cannot forge a second line or drive the terminal', () => {
  const error = new BlockError({ kind: 'io', message: 'bad', path: 'a\nvdiskfs: \u001b[2J' });
  const line = describeFailure(error, null);
  assert.ok(!line.includes('\n') && !line.includes('\u001b'), line);
});
