/** When the control plane looks at the ring before it sleeps. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RingWatch } from '../../../../mount/kernel/ring-watch.ts';

/** Slots come at these moments; each look at the clock takes 10 us. */
class Scene {
  nowMs = 100;
  isBusy = false;
  yields = 0;
  arrivals: number[] = [];
  readonly watch = new RingWatch({
    next: () => {
      if ((this.arrivals[0] ?? Number.POSITIVE_INFINITY) > this.nowMs) return -1;
      this.arrivals.shift();
      return 5;
    },
    isBusy: () => this.isBusy,
    yieldCore: () => {
      this.yields++;
    },
    now: () => {
      this.nowMs += 0.01;
      return this.nowMs;
    },
  });

  /** Requests that each ring, so long after the one before. */
  ring(times: number, afterMs: number): void {
    for (let i = 0; i < times; i++) {
      this.nowMs += afterMs;
      this.watch.woken();
      assert.equal(this.watch.look(), -1);
    }
  }
}

test('it sleeps at once until eight requests in a row came soon after it had', () => {
  const scene = new Scene();
  scene.ring(50, 0.5);
  scene.ring(7, 0.04);
  assert.equal(scene.yields, 0);
  scene.nowMs += 0.04;
  scene.watch.woken();
  scene.arrivals = [scene.nowMs + 0.03];
  assert.equal(scene.watch.look(), 5, 'the ninth is seen without ringing');
  assert.ok(scene.yields > 0, 'others have the core meanwhile');
});

test('one look that was in vain, or a late request, ends the looking', () => {
  for (const isLate of [false, true]) {
    const scene = new Scene();
    scene.ring(9, 0.04);
    const seen = scene.yields;
    assert.ok(seen > 0, 'the last of them looks, in vain');
    scene.ring(7, isLate ? 1 : 0.04);
    assert.equal(scene.yields, seen);
  }
});

test('after many that came soon, one that did not is passed over, and a second one is not', () => {
  const MISSES: readonly ((scene: Scene) => void)[] = [
    // A look in vain, and the next one soon or late after that.
    (scene) => {
      assert.equal(scene.watch.look(), -1);
      scene.nowMs += 0.02;
    },
    (scene) => {
      assert.equal(scene.watch.look(), -1);
      scene.nowMs += 1;
    },
    // No look, because of other work, and a late one.
    (scene) => {
      scene.isBusy = true;
      assert.equal(scene.watch.look(), -1);
      scene.isBusy = false;
      scene.nowMs += 1;
    },
  ];
  for (const miss of MISSES) {
    const scene = new Scene();
    const isSeen = (): boolean => {
      scene.watch.woken();
      scene.arrivals = [scene.nowMs + 0.03];
      const seen = scene.watch.look();
      scene.arrivals = [];
      return seen === 5;
    };
    scene.ring(8, 0.04);
    for (let soon = 0; soon < 70; soon++) {
      scene.nowMs += 0.04;
      assert.ok(isSeen());
    }
    miss(scene);
    assert.ok(isSeen(), 'the first one');
    miss(scene);
    assert.ok(!isSeen(), 'the second one');
  }
});

test('it looks neither while something needs the event loop, nor for longer than a turn', () => {
  const scene = new Scene();
  scene.ring(8, 0.04);
  scene.nowMs += 0.04;
  scene.watch.woken();
  scene.isBusy = true;
  assert.equal(scene.watch.look(), -1);
  scene.isBusy = false;
  let found = 0;
  for (; found < 1000; found++) {
    scene.arrivals = [scene.nowMs + 0.02];
    if (scene.watch.look() < 0) break;
  }
  assert.ok(found > 5 && found < 60, `${found} requests in one turn`);
});
