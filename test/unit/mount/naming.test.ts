import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { assignNames, MAX_NAME_BYTES, type Nameable } from '../../../mount/catalog/naming.ts';

const file = (fileName: string, more: Partial<Nameable> = {}): Nameable => ({
  fileName,
  declaredName: null,
  snapshot: null,
  kept: null,
  ...more,
});

const namesOf = (...items: Nameable[]): (string | null)[] => assignNames(items);

test('a view is called like its file with .raw for the extension', () => {
  assert.deepEqual(namesOf(file('disk.qcow2'), file('a.b.img'), file('plain'), file('x.raw')), [
    'disk.raw',
    'a.b.raw',
    'plain.raw',
    'x.raw',
  ]);
});

test('both sides of a clash get their full file names', () => {
  assert.deepEqual(namesOf(file('disk.img'), file('disk.qcow2'), file('other.qcow2')), [
    'disk.img.raw',
    'disk.qcow2.raw',
    'other.raw',
  ]);
});

test('an open view keeps its name and the newcomer gets the long one', () => {
  assert.deepEqual(namesOf(file('disk.img'), file('disk.qcow2', { kept: 'disk.raw' })), [
    'disk.img.raw',
    'disk.raw',
  ]);
});

test('a declared name is the name of the view, and others give way', () => {
  assert.deepEqual(namesOf(file('disk.qcow2'), file('blob', { declaredName: 'disk' })), [
    'disk.qcow2.raw',
    'disk.raw',
  ]);
});

test('the same file name in two sources gives two names', () => {
  const names = namesOf(file('disk.qcow2'), file('disk.qcow2'), file('disk.qcow2.raw'));
  assert.equal(new Set(names).size, 3);
  assert.ok(!names.includes(null));
});

test('what a file name cannot hold is percent-encoded, and nothing else', () => {
  const snapshot = file('disk.qcow2', { snapshot: 'before/after 100%' });
  assert.deepEqual(namesOf(snapshot), ['disk@before%2Fafter 100%.raw']);
});

test('a name never passes NAME_MAX', () => {
  const long = 'x'.repeat(MAX_NAME_BYTES);
  assert.deepEqual(namesOf(file(long)), [null]);
  const [name] = namesOf(file(`${'x'.repeat(MAX_NAME_BYTES - 6)}.qcow2`));
  assert.equal(name, `${'x'.repeat(MAX_NAME_BYTES - 6)}.raw`);
});

test('whatever the files are called, no two views share a name and no open view loses its own', () => {
  const fileName = fc
    .array(fc.constantFrom('a', 'b', '.', '.raw', '.qcow2', '.2', '@', '/'), {
      minLength: 1,
      maxLength: 5,
    })
    .map((parts) => parts.join(''));
  const item = fc.record({
    fileName,
    declaredName: fc.option(fileName),
    snapshot: fc.option(fc.constantFrom('s', 'a/b')),
  });
  fc.assert(
    fc.property(fc.array(item, { maxLength: 12 }), fc.nat(), (items, pick) => {
      const before = assignNames(items.map((i) => ({ ...i, kept: null })));
      assert.ok(!before.includes(null));
      assert.equal(new Set(before).size, items.length);
      for (const name of before) assert.ok(!name?.slice(0, -'.raw'.length).includes('/'));
      const open = items.length === 0 ? -1 : pick % items.length;
      const newcomers = items.map((i) => ({ ...i, kept: null }));
      const kept = items.map((i, index) => ({
        ...i,
        kept: index === open ? (before[index] ?? null) : null,
      }));
      const after = assignNames([...newcomers, ...kept]);
      assert.equal(new Set(after).size, 2 * items.length);
      if (open >= 0) assert.equal(after[items.length + open], before[open]);
    }),
  );
});
