/** Requests that workers hand over: none is missed, and the event loop has its turns. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Arrivals } from '../../../../mount/kernel/arrivals.ts';

const NONE_LEFT = -1;

/** A ring as the control plane sees it. */
class Ring {
  readonly slots: number[] = [];
  isAwake = false;
  /** What comes right before it falls asleep. */
  late: number | null = null;
  /** Slots, and where it was told that none is left. */
  readonly taken: number[] = [];
  /** Called for each request. */
  arrived: (slot: number) => void = () => undefined;
  /** What is begun already needs the event loop. */
  isBusy = true;
  /** Null: it goes on by itself. */
  nowMs: number | null = null;
  /** Pieces that can be done while nothing else is to do. */
  readonly idle: (() => void)[] = [];
  readonly arrivals = new Arrivals({
    receiver: {
      next: () => this.slots.shift() ?? -1,
      wake: () => {
        this.isAwake = true;
      },
      sleep: () => {
        if (this.late !== null) this.slots.push(this.late);
        this.late = null;
        this.isAwake = false;
      },
    },
    arrived: (slot) => {
      this.taken.push(slot);
      this.arrived(slot);
    },
    noneLeft: () => {
      this.taken.push(NONE_LEFT);
    },
    isBusy: () => this.isBusy,
    now: () => this.nowMs ?? performance.now(),
    doIdleWork: () => {
      const piece = this.idle.shift();
      piece?.();
      return piece !== undefined;
    },
    yieldCore: () => undefined,
  });
}

test('what came before it fell asleep is taken, though nobody rang', () => {
  const ring = new Ring();
  ring.slots.push(1, 2);
  ring.late = 3;
  ring.arrivals.rung();
  assert.deepEqual(ring.taken, [1, 2, NONE_LEFT, 3, NONE_LEFT, NONE_LEFT]);
  assert.equal(ring.isAwake, false, 'the next one rings');
});

test('a turn ends, and says so, also where a request throws', () => {
  const ring = new Ring();
  ring.slots.push(1);
  ring.arrived = () => {
    assert.ok(ring.arrivals.isTaking);
    throw new Error('a bug');
  };
  assert.throws(() => ring.arrivals.rung(), /a bug/);
  assert.deepEqual(ring.taken, [1, NONE_LEFT]);
  assert.ok(!ring.arrivals.isTaking);
});

test('requests that make room for others without end leave the event loop its turns', async () => {
  const ring = new Ring();
  let isOver = false;
  ring.arrived = (slot) => {
    if (!isOver) ring.slots.push(slot);
  };
  ring.slots.push(1);
  ring.arrivals.rung();
  const inFirstTurn = ring.taken.length;
  assert.ok(inFirstTurn <= 65, `${inFirstTurn} in one turn`);
  assert.equal(ring.isAwake, true, 'nobody rings for what is still there');
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.ok(ring.taken.length > inFirstTurn, 'it goes on by itself');
  isOver = true;
  while (ring.isAwake) await new Promise((resolve) => setImmediate(resolve));
});

test('a turn ends also when a few requests take long', async () => {
  const ring = new Ring();
  ring.arrived = () => {
    for (const end = performance.now() + 2; performance.now() < end; );
  };
  ring.slots.push(1, 2, 3);
  ring.arrivals.rung();
  assert.deepEqual(ring.taken, [1, NONE_LEFT]);
  while (ring.isAwake) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(
    ring.taken.filter((slot) => slot !== NONE_LEFT),
    [1, 2, 3],
  );
});

test('at the end all that is left is taken in one turn', () => {
  const ring = new Ring();
  ring.slots.push(...Array.from({ length: 100 }, (_, i) => i));
  ring.arrivals.takeRest();
  assert.equal(ring.taken.length, 100);
});

test('what can wait is done after the answers, as long as nothing comes and the turn lasts', () => {
  const ring = new Ring();
  ring.nowMs = 0;
  ring.isBusy = false;
  const PIECE = -2;
  const piece = (): void => void ring.taken.push(PIECE);
  ring.idle.push(piece, () => {
    piece();
    ring.slots.push(2);
  });
  ring.idle.push(piece);
  ring.slots.push(1);
  ring.arrivals.rung();
  assert.deepEqual(ring.taken, [1, NONE_LEFT, PIECE, PIECE, 2, NONE_LEFT, PIECE, NONE_LEFT]);
  let pieces = 0;
  const slow = (): void => {
    pieces++;
    ring.nowMs = (ring.nowMs ?? 0) + 0.3;
    ring.idle.push(slow);
  };
  ring.idle.push(slow);
  ring.arrivals.rung();
  assert.equal(pieces, 4, 'in one turn');
  ring.isBusy = true;
  ring.arrivals.rung();
  assert.equal(pieces, 4, 'none while something else needs the event loop');
});
