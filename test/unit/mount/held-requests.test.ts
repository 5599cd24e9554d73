/** Which requests are held while a view is handed over, phase by phase. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  IN,
  OPCODE,
  READ_IN,
  SETATTR,
  SETATTR_IN,
  WRITE_CACHE,
  WRITE_IN,
} from '../../../mount/kernel/abi.ts';
import { HeldRequests } from '../../../mount/kernel/held-requests.ts';
import {
  FuseRequest,
  REQUEST_AT,
  REQUEST_BODY_AT,
  regionOf,
} from '../../../mount/kernel/request.ts';
import type { BlockError } from '../../../src/base/block-error.ts';

const VIEW = 7;
const OTHER = 8;
let nextUnique = 1;

const request = (
  opcode: number,
  fields: Readonly<Record<number, number>> = {},
  nodeId = VIEW,
): FuseRequest => {
  const region = regionOf(new Uint8Array(8192));
  const header = (field: number, value: number): void =>
    region.view.setUint32(REQUEST_AT + field, value, true);
  header(IN.length, 80);
  header(IN.opcode, opcode);
  header(IN.unique, nextUnique++);
  header(IN.nodeId, nodeId);
  for (const [field, value] of Object.entries(fields))
    region.view.setUint32(REQUEST_BODY_AT + Number(field), value, true);
  return new FuseRequest(region, 0);
};

const read = (offset: number, size: number): FuseRequest =>
  request(OPCODE.READ, { [READ_IN.offset]: offset, [READ_IN.size]: size });
const write = (flags = 0): FuseRequest => request(OPCODE.WRITE, { [WRITE_IN.writeFlags]: flags });

const heldRequests = (isHeld = false) => {
  const seen: { aside: FuseRequest[]; again: FuseRequest[]; failed: BlockError[] } = {
    aside: [],
    again: [],
    failed: [],
  };
  const held = new HeldRequests({
    isHeld: (nodeId) => isHeld && nodeId === VIEW,
    putAside: (r) => seen.aside.push(r),
    fail: (_, error) => seen.failed.push(error),
    failAside: (_, error) => seen.failed.push(error),
    again: (r) => seen.again.push(r),
  });
  return { held, seen };
};

test('a view that is held keeps requests on its content, of it alone, and gives them back in order', () => {
  const { held, seen } = heldRequests(true);
  const first = read(0, 4096);
  const second = write();
  assert.equal(held.takes(first), true);
  assert.equal(held.takes(second), true);
  assert.equal(held.takes(request(OPCODE.SETATTR, { [SETATTR_IN.valid]: SETATTR.SIZE })), true);
  for (const served of [
    request(OPCODE.GETATTR),
    request(OPCODE.OPEN),
    request(OPCODE.SETATTR, { [SETATTR_IN.valid]: SETATTR.MTIME }),
    request(OPCODE.READ, {}, OTHER),
  ])
    assert.equal(held.takes(served), false);
  assert.equal(held.remove(second.uniqueLow, second.uniqueHigh), second);
  assert.equal(held.remove(second.uniqueLow, second.uniqueHigh), null);
  held.takeUp(VIEW, { fresh: false });
  assert.deepEqual(
    seen.again.map((r) => r.opcode),
    [OPCODE.READ, OPCODE.SETATTR],
  );
});

test('writes of pages are let through while pages are dropped, and fail when the content is another one', () => {
  const { held, seen } = heldRequests();
  held.watch(VIEW, []);
  assert.equal(held.takes(write()), false);
  held.nextRound(VIEW);
  assert.equal(held.takes(write()), true);
  assert.equal(held.takes(write(WRITE_CACHE)), false);
  held.enter(VIEW, 'held');
  assert.equal(held.takes(write(WRITE_CACHE)), true);
  held.enter(VIEW, 'settling');
  held.takeUp(VIEW, { fresh: true });
  assert.equal(seen.again.length, 1, 'the write that somebody waits for');
  assert.equal(held.takes(write(WRITE_CACHE)), true);
  assert.equal(held.takes(write()), false);
  assert.deepEqual(
    seen.failed.map((e) => e.errno),
    ['EIO', 'EIO'],
  );
  held.enter(VIEW, null);
  assert.equal(held.takes(write(WRITE_CACHE)), false);
});

test('what is read while pages are dropped is dropped in the next round, until nothing was', () => {
  const { held } = heldRequests();
  held.watch(VIEW, [read(65_536, 4096)]);
  assert.equal(held.takes(read(0, 4096)), false);
  assert.equal(held.takes(read(4096, 8192)), false);
  assert.deepEqual(held.nextRound(VIEW), [
    { start: 0, end: 12_288 },
    { start: 65_536, end: 69_632 },
  ]);
  assert.equal(held.takes(read(131_072, 4096)), true, 'no page that is being dropped');
  assert.equal(held.takes(read(8192, 4096)), false, 'the dropping waits for it');
  assert.deepEqual(held.nextRound(VIEW), [{ start: 8192, end: 12_288 }]);
  assert.equal(held.takes(read(0, 4096)), true);
  assert.deepEqual(held.nextRound(VIEW), []);
  assert.equal(held.takes(read(8192, 4096)), true);
});
