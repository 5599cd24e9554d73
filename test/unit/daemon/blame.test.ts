/** Who is blamed for deaths of engines, and who is not. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Task } from '../../../src/daemon/black-box.ts';
import { Blame } from '../../../src/daemon/blame.ts';

const task = (id: string, nodeId: number | null, path: string | null = null): Task => ({
  id,
  nodeId,
  path,
  name: `view of ${id}`,
});

const MINUTE = 60_000;

test('two deaths within a minute make the next engine careful, and a minute without one does not', () => {
  const blame = new Blame();
  assert.equal(blame.isCareful(0), false);
  assert.equal(blame.died({ nowMs: 0, how: 'SIGABRT', tasks: null }), null);
  assert.equal(blame.isCareful(1), false);
  assert.equal(blame.died({ nowMs: 1000, how: 'SIGABRT', tasks: null }), null);
  assert.equal(blame.isCareful(1001), true);
  assert.equal(blame.isCareful(1000 + MINUTE), false);
});

test('what is in flight at three crashes in a row is to blame, the last that began before the others', () => {
  const blame = new Blame();
  const tasks = [task('open 3', 3), task('request 0:7', 4)];
  const died = (now: readonly Task[]) => blame.died({ nowMs: 0, how: 'SIGABRT', tasks: now });
  assert.equal(died(tasks), null);
  assert.equal(died(tasks), null);
  assert.equal(died(tasks)?.nodeId, 4);
  assert.deepEqual(blame.blocked, { nodeIds: [4], paths: [] });
  assert.equal(died([task('look /x', null, '/x')]), null);
  assert.equal(died([task('look /x', null, '/x')]), null);
  assert.equal(died([task('look /x', null, '/x')])?.path, '/x');
  assert.deepEqual(blame.blocked, { nodeIds: [4], paths: ['/x'] });
  blame.forgive();
  assert.deepEqual(blame.blocked, { nodeIds: [], paths: [] });
});

test('SIGKILL comes from elsewhere as a rule: it takes eight', () => {
  const blame = new Blame();
  const tasks = [task('request 0:7', 4)];
  for (let i = 1; i < 8; i++)
    assert.equal(blame.died({ nowMs: i, how: 'SIGKILL', tasks }), null, `death ${i}`);
  assert.equal(blame.died({ nowMs: 8, how: 'SIGKILL', tasks })?.nodeId, 4);
});

test('who kills while requests get on blames nobody', () => {
  const blame = new Blame();
  for (let i = 0; i < 100; i++) {
    // Each request comes along at two deaths at most.
    const tasks = [task(`request 0:${i}`, 4), task(`request 0:${i + 1}`, 4)];
    assert.equal(blame.died({ nowMs: i, how: 'SIGABRT', tasks }), null);
  }
  assert.equal(blame.suspects([task('request 0:100', 4)]), true);
  assert.equal(blame.suspects([task('request 0:50', 4)]), false);
  blame.lives();
  assert.equal(blame.suspects([task('request 0:100', 4)]), false);
});
