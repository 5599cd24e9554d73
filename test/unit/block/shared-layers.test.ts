/** Layers that several chains use: opened once, and never given to somebody while the last user closes them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Node } from '../../../src/block/node.ts';
import { SharedLayers } from '../../../src/block/shared-layers.ts';
import { stub } from '../../support/stub-format.ts';

const opened = async (): Promise<Node> =>
  new Node({ name: 'base', path: '/base', descriptor: stub, readOnly: true, file: null });

test('a layer is opened once for all who use it, and the last one closes it', async () => {
  const layers = new SharedLayers();
  const [a, b] = await Promise.all([
    layers.use('1:2', null, opened),
    layers.use('1:2', null, opened),
  ]);
  assert.equal(a, b);
  assert.notEqual(a, await layers.use('1:2', 'raw', opened), 'another format is another layer');
  layers.useToo(a);
  assert.deepEqual([layers.letGo(a), layers.letGo(a), layers.letGo(a)], [false, false, true]);
  assert.notEqual(a, await layers.use('1:2', null, opened), 'what is closed is opened anew');
});

test('who asks for a layer in the turn in which the last user lets it go does not get what is closed', async () => {
  const layers = new SharedLayers();
  const first = await layers.use('1:2', null, opened);
  const before = layers.use('1:2', null, opened);
  assert.equal(layers.letGo(first), false, 'somebody had asked for it');
  assert.equal(await before, first);

  assert.equal(layers.letGo(first), true);
  const after = layers.use('1:2', null, opened);
  assert.notEqual(await after, first);
});

test('a layer that did not open is tried again', async () => {
  const layers = new SharedLayers();
  const fails = (): Promise<Node> => Promise.reject(new Error('refused'));
  const both = [layers.use('1:2', null, fails), layers.use('1:2', null, opened)];
  for (const one of both) await assert.rejects(one, /refused/);
  const node = await layers.use('1:2', null, opened);
  assert.equal(layers.letGo(node), true);
});
