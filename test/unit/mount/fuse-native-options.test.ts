import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mountOptions } from '../../../mount/fuse-native/mount-options.ts';

const wordsOf = (options: Parameters<typeof mountOptions>[0]): string[] =>
  mountOptions(options)
    .slice('-o'.length)
    .split(/(?<!\\),/);

test('a comma in the source’s path adds no option', () => {
  const source = '/srv/a,allow_other,suid';
  const words = wordsOf({ source, readOnly: false, allowOther: false });
  assert.ok(words.includes('fsname=/srv/a\\,allow_other\\,suid'));
  assert.ok(!words.includes('allow_other'));
  assert.ok(!words.includes('suid'));
});

test('read-only and other users are asked for only when they are wanted', () => {
  const source = '/srv';
  const plain = wordsOf({ source, readOnly: false, allowOther: false });
  const both = wordsOf({ source, readOnly: true, allowOther: true });
  assert.deepEqual(
    both.filter((word) => !plain.includes(word)),
    ['allow_other', 'ro'],
  );
  assert.ok(plain.includes('default_permissions'));
  assert.ok(plain.includes('subtype=vdiskfs'));
});

test('a source of any length leaves the options within the buffer of the package', () => {
  const source = `/${'ä,'.repeat(4000)}`;
  const options = mountOptions({ source, readOnly: true, allowOther: true });
  assert.ok(Buffer.byteLength(options) < 1024, `${Buffer.byteLength(options)} bytes`);
});
