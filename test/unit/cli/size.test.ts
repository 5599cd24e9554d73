import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatSize } from '../../../src/base/size.ts';
import { UsageError } from '../../../src/cli/command.ts';
import { parseSize } from '../../../src/cli/size.ts';

test('sizes are powers of 1024, in either case', () => {
  const cases: [string, number][] = [
    ['0', 0],
    ['512', 512],
    ['64k', 65536],
    ['64K', 65536],
    ['8M', 8 * 1024 ** 2],
    ['10G', 10 * 1024 ** 3],
    ['1T', 1024 ** 4],
    ['7p', 7 * 1024 ** 5],
    ['512b', 512],
    ['1.5k', 1536],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
  ];
  for (const [text, bytes] of cases) assert.equal(parseSize(text, 'SIZE'), bytes, text);
});

test('what is no size is refused, naming the argument and the text', () => {
  for (const text of ['', 'k', '-1', '1 k', '1kk', '0x10', '1e3', 'ten', '1.5', '.5k', '1.k']) {
    assert.throws(
      () => parseSize(text, '--speed'),
      (e) => e instanceof UsageError && e.subject === '--speed' && e.message.includes(`'${text}'`),
      text,
    );
  }
});

test('a size past 2^53 - 1 is refused, not rounded', () => {
  for (const text of ['8P', '1E', '9007199254740992', '99999999999999999999T']) {
    assert.throws(() => parseSize(text, 'SIZE'), /2\^53/, text);
  }
});

test('sizes are shown as qemu-img shows them', () => {
  const cases: [number, string][] = [
    [0, '0 B'],
    [512, '512 B'],
    [999, '999 B'],
    [1000, '0.977 KiB'],
    [196616, '192 KiB'],
    [1024 ** 2, '1 MiB'],
    [1.5 * 1024 ** 3, '1.5 GiB'],
    [1000 * 1024, '0.977 MiB'],
    [10 * 1024 ** 4, '10 TiB'],
  ];
  for (const [bytes, text] of cases) assert.equal(formatSize(bytes), text);
});
