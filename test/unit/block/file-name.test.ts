import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BlockError } from '../../../src/base/block-error.ts';
import { readFileName } from '../../../src/block/file-name.ts';
import { countOf, SEED } from '../../support/run-parameters.ts';

const PATH = '/images/top.qcow2';
const json = (value: unknown): string => `json:${JSON.stringify(value)}`;

test('paths, file: and both forms of json: are read', () => {
  const path = (name: string, format: string | null = null) => ({ name, isPath: true, format });
  const nested = { driver: 'qcow2', file: { driver: 'file', filename: 'a:b' } };
  const flat = { driver: 'qcow2', 'file.driver': 'file', 'file.filename': '/x/y' };
  const quiet = {
    'file.filename': 'a',
    'file.locking': 'off',
    'read-only': true,
    'node-name': 'n',
  };
  const cases: readonly [string, ReturnType<typeof readFileName>][] = [
    ['base.img', { name: 'base.img', isPath: false, format: null }],
    ['nbd:host:1', { name: 'nbd:host:1', isPath: false, format: null }],
    ['file:a:b.img', path('a:b.img')],
    [json(nested), path('a:b', 'qcow2')],
    [json(flat), path('/x/y', 'qcow2')],
    [json({ ...quiet, cache: { direct: true, 'no-flush': false } }), path('a')],
    [
      json({ driver: 'raw', file: { driver: 'host_device', filename: '/dev/sda' } }),
      path('/dev/sda', 'raw'),
    ],
    [json({ driver: 'file', filename: 'b' }), path('b', 'raw')],
    [
      json({ 'file.driver': 'https', 'file.url': 'https://h/d' }),
      { name: 'https://h/d', isPath: false, format: null },
    ],
  ];
  for (const [name, expected] of cases) assert.deepEqual(readFileName(name, PATH), expected, name);
});

test('what is not understood is refused by its name', () => {
  const file = { driver: 'file', filename: 'a' };
  const cases: readonly [string, RegExp][] = [
    ['json:', /is not JSON/],
    ['json:[1]', /is no object/],
    ['json:null', /is no object/],
    [`json:${'['.repeat(4000)}`, /is not JSON/],
    [json({ x: 'y'.repeat(5000) }), /longer than 4096 bytes/],
    [json({ a: { b: { c: { d: { e: 1 } } } } }), /nested deeper than 4/],
    [json({ file, 'file.filename': 'b' }), /has 'file\.filename' twice/],
    [json({ driver: 'qcow2' }), /has no 'file\.filename'/],
    [json({ driver: 'qcow2', file: 'node0' }), /option 'file' is not supported/],
    [json({ driver: 'qcow2', file, backing: null }), /option 'backing' is not supported/],
    [json({ driver: 'raw', file, offset: 512 }), /option 'offset' is not supported/],
    [
      json({ driver: 'qcow2', file: { driver: 'rbd', pool: 'p' } }),
      /driver 'rbd' is not supported/,
    ],
    [json({ 'file.driver': 'nbd', 'file.path': '/s' }), /driver 'nbd' is not supported/],
    [json({ driver: 7, file }), /'driver' is no text/],
    [json({ 'file.filename': ['a'] }), /'file\.filename' is no text/],
    ['json:{"__proto__":{"filename":"a"}}', /option '__proto__\.filename' is not supported/],
  ];
  for (const [name, message] of cases) {
    assert.throws(
      () => readFileName(name, PATH),
      (error: unknown) => error instanceof BlockError && message.test(error.message),
      name,
    );
  }
});

test('any json: name is read or refused, never more', () => {
  const key = fc.constantFrom(
    'driver',
    'file',
    'filename',
    'file.filename',
    'url',
    'x',
    '__proto__',
  );
  const value = fc.letrec((tie) => ({
    any: fc.oneof({ maxDepth: 5 }, fc.jsonValue(), fc.constantFrom('file', 'raw'), tie('object')),
    object: fc.dictionary(key, tie('any'), { maxKeys: 5 }),
  })).object;
  fc.assert(
    fc.property(
      fc.oneof(
        value.map(json),
        fc.string().map((s) => `json:${s}`),
      ),
      (name) => {
        try {
          assert.notEqual(readFileName(name, PATH).name, '');
        } catch (error) {
          assert.ok(error instanceof BlockError, String(error));
        }
      },
    ),
    { seed: SEED, numRuns: countOf(500) },
  );
});
