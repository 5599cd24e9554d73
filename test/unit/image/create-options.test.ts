import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drivers } from '../../../drivers/index.ts';
import type { DriverDescriptor } from '../../../src/block/driver.ts';
import { DriverRegistry } from '../../../src/block/registry.ts';
import { checkOptions, splitOptions } from '../../../src/image/create-options.ts';

const raw = new DriverRegistry(drivers).format('raw');
const format: DriverDescriptor = {
  ...raw,
  name: 'sample',
  createOptions: [
    { name: 'cluster_size', type: 'size', help: '' },
    { name: 'bits', type: 'number', help: '' },
    { name: 'lazy', type: 'boolean', help: '' },
    { name: 'compat', type: 'choice', choices: ['0.10', '1.1'], help: '' },
    { name: 'label', type: 'string', help: '' },
  ],
};

test('options split at commas, a doubled comma stays, a bare name switches on', () => {
  assert.deepEqual(splitOptions('a=1,b=x,,y=z,c'), [
    ['a', '1'],
    ['b', 'x,y=z'],
    ['c', 'on'],
  ]);
  assert.throws(() => splitOptions('a=1,'), /part without a name/);
  assert.throws(() => splitOptions('=1'), /part without a name/);
});

test('values are checked by type, and the last of several counts', () => {
  const given = splitOptions('cluster_size=64k,bits=7,lazy=yes,compat=1.1,label=a,bits=8');
  assert.deepEqual(Object.fromEntries(checkOptions(given, format)), {
    cluster_size: '65536',
    bits: '8',
    lazy: 'on',
    compat: '1.1',
    label: 'a',
  });
});

test('a wrong option is refused with its name, its value and what may be', () => {
  const cases: [string, RegExp][] = [
    ['colour=red', /sample has no option 'colour'/],
    ['cluster_size=huge', /'cluster_size': 'huge' is not a size/],
    ['bits=-1', /'bits': '-1' is no number/],
    ['bits=1e3', /'bits'/],
    ['lazy=maybe', /'lazy': 'maybe' is not on or off/],
    ['compat=2', /'compat': '2' is not one of 0\.10, 1\.1/],
  ];
  for (const [text, message] of cases) {
    assert.throws(() => checkOptions(splitOptions(text), format), message);
  }
  assert.throws(() => checkOptions([['x', '1']], raw), /raw has no option 'x'/);
});
