import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { asciiJson, type JsonItem, JsonStream } from '../../../src/control/json-stream.ts';
import { countOf, SEED } from '../../support/run-parameters.ts';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const values = (items: readonly JsonItem[]): unknown[] =>
  items.map((item) => ('error' in item ? item.error : item.value));

test('objects need no separators, and may come in pieces', () => {
  const stream = new JsonStream();
  const text = '{"a":1}{"b":{"c":[2]}} \r\n"x" {"d":"}{"}';
  const items = [...bytes(text)].flatMap((b) => stream.push(Uint8Array.of(b)));
  assert.deepEqual(values(items), [{ a: 1 }, { b: { c: [2] } }, 'x', { d: '}{' }]);
});

test("single quotes work as QEMU's parser takes them", () => {
  const stream = new JsonStream();
  const items = stream.push(bytes(`{'execute': 'a"b', 'x': 'it\\'s', "y": "o'k"}`));
  assert.deepEqual(values(items), [{ execute: 'a"b', x: "it's", y: "o'k" }]);
});

test('garbage is an error, and a byte 0xff or the next object goes on', () => {
  const stream = new JsonStream();
  assert.deepEqual(values(stream.push(bytes('hello {"a":1}'))), ['JSON parse error', { a: 1 }]);
  assert.deepEqual(stream.push(bytes('{"broken": ')), []);
  assert.deepEqual(values(stream.push(Uint8Array.of(0xff, ...bytes('{"b":2}')))), [{ b: 2 }]);
  assert.deepEqual(values(stream.push(Uint8Array.of(0x22, 0xc3, 0x28, 0x22))), [
    'JSON parse error',
  ]);
});

test('a message that is too long or too deep is one error, and the next line is read', () => {
  const long = new JsonStream();
  const chunk = new Uint8Array(1 << 16).fill(0x61);
  let errors = values(long.push(bytes('{"a":"')));
  for (let i = 0; i < 100; i++) errors = [...errors, ...values(long.push(chunk))];
  assert.equal(errors.length, 1);
  assert.deepEqual(values(long.push(bytes('"}\n{"b":1}'))), [{ b: 1 }]);
  const deep = new JsonStream();
  assert.equal(values(deep.push(bytes('['.repeat(100_000)))).length, 1);
  assert.deepEqual(values(deep.push(bytes('\n{"b":1}'))), [{ b: 1 }]);
});

test('whatever bytes come, nothing is thrown, and an object after a reset is understood', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (noise) => {
      const stream = new JsonStream();
      stream.push(noise);
      const items = stream.push(Uint8Array.of(0xff, ...bytes('{"ok":true}')));
      assert.deepEqual(values(items), [{ ok: true }]);
    }),
    { seed: SEED, numRuns: countOf(500) },
  );
});

test('what is written is ASCII, and reads back the same', () => {
  fc.assert(
    fc.property(fc.json(), fc.boolean(), (text, inPieces) => {
      const message = { value: JSON.parse(text) as unknown };
      const line = bytes(`${asciiJson(message)}\r\n`);
      assert.ok(line.every((b) => b < 128));
      const stream = new JsonStream();
      const items = inPieces
        ? [...line].flatMap((b) => stream.push(Uint8Array.of(b)))
        : stream.push(line);
      // JSON has no -0 and may hold "__proto__" as a key: compared as text.
      assert.equal(JSON.stringify(values(items)[0]), JSON.stringify(message));
    }),
    { seed: SEED, numRuns: countOf(300) },
  );
});
