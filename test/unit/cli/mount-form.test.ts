import assert from 'node:assert/strict';
import { test } from 'node:test';
import { neededBy } from '../../../src/cli/mount-form.ts';

test('only what looks like a mount is begun before its line is read', () => {
  const cases: [string, ReturnType<typeof neededBy>][] = [
    ['mount images /mnt', 'supervisor'],
    ['mount --read-only images /mnt', 'supervisor'],
    ['/images /mnt -o ro', 'supervisor'],
    ['-o ro /images /mnt', 'supervisor'],
    ['mount --foreground images /mnt', 'engine'],
    ['mount -f images /mnt', 'engine'],
    ['mount --help', null],
    ['mount -h images /mnt', null],
    ['--version', null],
    ['status', null],
    ['info mount', null],
    ['snapshot -c mount /images/disk.qcow2', null],
    ['', null],
  ];
  for (const [line, needed] of cases)
    assert.equal(neededBy(line.split(' ').filter((w) => w !== '')), needed, line);
});

test('an engine is not begun in the place of a supervisor that has left its descriptors', () => {
  process.env['LISTEN_FDS'] = '1';
  try {
    assert.equal(neededBy(['mount', '-f', 'images', '/mnt']), null);
  } finally {
    delete process.env['LISTEN_FDS'];
  }
});
