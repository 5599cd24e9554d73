import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IN, OPCODE } from '../../../../mount/kernel/abi.ts';
import { FuseRequest, REQUEST_AT, regionOf } from '../../../../mount/kernel/request.ts';
import { RequestQueue } from '../../../../mount/kernel/request-queue.ts';

const requestOf = (nodeId: number, unique: number, opcode: number = OPCODE.READ): FuseRequest => {
  const region = regionOf(new Uint8Array(16_384));
  region.view.setUint32(REQUEST_AT + IN.length, 80, true);
  region.view.setUint32(REQUEST_AT + IN.opcode, opcode, true);
  region.view.setUint32(REQUEST_AT + IN.unique, unique, true);
  region.view.setUint32(REQUEST_AT + IN.nodeId, nodeId, true);
  return new FuseRequest(region, unique);
};

interface Fixture {
  readonly queue: RequestQueue;
  readonly started: FuseRequest[];
  readonly detached: FuseRequest[];
}

const fixture = (perView: number, inSlots: number): Fixture => {
  const started: FuseRequest[] = [];
  const detached: FuseRequest[] = [];
  const queue: RequestQueue = new RequestQueue({
    perView,
    inSlots,
    start: (r) => started.push(r),
    detach: (r) => {
      r.detach();
      detached.push(r);
      queue.leftSlot();
    },
    refuse: () => assert.fail('nothing is refused here'),
  });
  return { queue, started, detached };
};

test('a view has its share at once, the rest waits outside of slots, in order', () => {
  const { queue, started, detached } = fixture(2, 100);
  const requests = Array.from({ length: 5 }, (_, i) => requestOf(7, i));
  for (const r of requests) queue.add(r);
  assert.deepEqual(started, requests.slice(0, 2));
  assert.deepEqual(detached, requests.slice(2));
  const other = requestOf(8, 50);
  queue.add(other);
  assert.equal(started.at(-1), other, 'another view does not wait');
  for (const r of requests) {
    queue.ended(r);
    assert.ok(started.length <= 6);
  }
  assert.deepEqual(
    started.filter((r) => r.nodeId === 7),
    requests,
  );
  assert.equal(queue.waiting, 0);
});

test('requests never hold more slots than are to spare', () => {
  const { queue, started, detached } = fixture(100, 3);
  for (let i = 0; i < 6; i++) queue.add(requestOf(i, i));
  assert.equal(started.length, 6, 'they are served all the same');
  assert.equal(detached.length, 3);
  // One whose answer waits lies in its slot still.
  queue.ended(started[0] as FuseRequest);
  queue.add(requestOf(10, 10));
  assert.equal(detached.length, 4);
  queue.leftSlot();
  queue.add(requestOf(11, 11));
  assert.equal(detached.length, 4);
});

test('a waiting request is found by both halves of its unique, once', () => {
  const { queue } = fixture(1, 100);
  queue.add(requestOf(7, 1));
  const waiting = requestOf(7, 2);
  queue.add(waiting);
  assert.equal(queue.removeWaiting(2, 1), null);
  assert.equal(queue.removeWaiting(1, 0), null, 'one that is served is not waiting');
  assert.equal(queue.removeWaiting(2, 0), waiting);
  assert.equal(queue.removeWaiting(2, 0), null);
});

test('thousands that wait, and are answered as soon as they are started, do not start inside of each other', async () => {
  const COUNT = 4000;
  const order: number[] = [];
  let depth = 0;
  const queue: RequestQueue = new RequestQueue({
    perView: 1,
    inSlots: 100,
    start: (request) => {
      order.push(request.uniqueLow);
      if (request.uniqueLow === 0) return;
      depth++;
      assert.equal(depth, 1, 'one at a time');
      queue.ended(request);
      depth--;
    },
    detach: (request) => {
      request.detach();
      queue.leftSlot();
    },
    refuse: () => assert.fail('nothing is refused here'),
  });
  const requests = Array.from({ length: COUNT }, (_, i) => requestOf(7, i));
  for (const request of requests) queue.add(request);
  queue.ended(requests[0] as FuseRequest);
  assert.ok(order.length < COUNT, 'the event loop has its turn in between');
  while (order.length < COUNT) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(
    order,
    requests.map((_, i) => i),
  );
  assert.equal(queue.waiting, 0);
});
