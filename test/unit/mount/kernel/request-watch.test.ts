/** When a worker looks for its next request before it sleeps, who parks meanwhile, and what brings those back. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { createSharedWatch, RequestWatch } from '../../../../mount/kernel/request-watch.ts';

const GLANCES = 50;
const NEVER = Number.POSITIVE_INFINITY;
/** Longer than a test may take. */
const FOR_EVER_MS = 60_000;
const SOON_MS = 20_000;

/** Worker 0 of some. */
class Scene {
  readonly shared = createSharedWatch();
  readonly words = new Int32Array(this.shared);
  readonly watch: RequestWatch;
  yields = 0;
  /** The next request is there after so many yields. */
  #pendingIn = NEVER;

  constructor(workers = 1) {
    this.watch = new RequestWatch({
      shared: this.shared,
      worker: 0,
      workers,
      isPending: () => this.#pendingIn <= 0,
      yieldCore: () => {
        this.yields++;
        this.#pendingIn--;
      },
    });
  }

  get looker(): number {
    return Atomics.load(this.words, 0);
  }

  get parked(): number {
    return Atomics.load(this.words, 3);
  }

  get rest(): number {
    return Atomics.load(this.words, 4);
  }

  /** True: it was found by looking. `isFollowed`: the one behind it is there when it is read. */
  request(pendingIn: number, isFollowed = false): boolean {
    this.#pendingIn = pendingIn;
    this.watch.begin();
    const isFound = this.#pendingIn <= 0;
    this.#pendingIn = isFollowed ? 0 : NEVER;
    this.watch.received();
    return isFound;
  }

  /** How many of the requests that follow are not looked for. */
  resting(): number {
    for (let count = 0; ; count++) {
      const before = this.yields;
      this.request(NEVER);
      if (this.yields > before) return count;
    }
  }
}

test('it looks for a request that comes soon, and others have its core meanwhile', () => {
  const scene = new Scene();
  assert.ok(scene.request(3));
  assert.equal(scene.yields, 3);
  assert.ok(scene.request(GLANCES - 1));
  assert.equal(scene.looker, 1, 'and it goes on looking');
});

test('after looks in vain it rests, longer each time, until one was not', () => {
  const scene = new Scene();
  assert.ok(!scene.request(GLANCES + 1));
  assert.equal(scene.looker, 0);
  const rests = Array.from({ length: 9 }, () => scene.resting());
  assert.deepEqual(rests, [8, 16, 32, 64, 128, 256, 512, 1024, 1024]);
  for (let count = 0; !scene.request(1); count++) assert.ok(count < 1025);
  assert.ok(!scene.request(NEVER));
  assert.equal(scene.resting(), 8);
});

test('a request that was handed over ends the looking for some', () => {
  const scene = new Scene();
  scene.request(1);
  scene.watch.handedOver();
  assert.equal(scene.looker, 0);
  assert.equal(scene.resting(), 8);
});

test('when a second request is there, or it may wait, nobody looks or parks for thousands', () => {
  for (const sign of ['follower', 'wait'] as const) {
    const scene = new Scene(2);
    Atomics.store(scene.words, 3, 1);
    assert.ok(scene.request(1, sign === 'follower'));
    if (sign === 'wait') scene.watch.disperse();
    assert.equal(scene.looker, 0);
    assert.equal(scene.rest, 8192);
    Atomics.store(scene.words, 0, 2);
    const before = scene.yields;
    for (let i = 0; i < 8192; i++) scene.request(1);
    assert.equal(scene.yields, before, 'it reads at once, whoever looks');
    assert.equal(scene.rest, 0);
  }
});

test('who does not look changes nothing when it may wait', () => {
  const scene = new Scene(2);
  Atomics.store(scene.words, 0, 2);
  scene.watch.disperse();
  scene.watch.handedOver();
  assert.deepEqual([scene.looker, scene.rest], [2, 0]);
});

test('it leaves some requests to those that sleep in their reads, and looks all the same when they do not come out', () => {
  const scene = new Scene(3);
  const found = Array.from({ length: 20 }, () => scene.request(1));
  assert.equal(found.indexOf(true), 3 * 4);
  assert.ok(found.slice(12).every((isFound) => isFound));
  const together = new Scene(3);
  Atomics.store(together.words, 3, 2);
  assert.ok(together.request(1), 'the others are parked');
});

test('deposals are forgotten after thousands that it has found', () => {
  const scene = new Scene();
  Atomics.store(scene.words, 5, 3);
  for (let i = 0; i < 4095; i++) scene.request(1);
  assert.equal(Atomics.load(scene.words, 5), 3);
  scene.request(1);
  assert.equal(Atomics.load(scene.words, 5), 0);
});

const PARKS = `
const { parentPort, workerData } = require('node:worker_threads');
import(workerData.module).then(({ RequestWatch }) => {
  const never = () => false;
  new RequestWatch({ ...workerData, isPending: never, yieldCore: () => undefined }).begin();
  parentPort.postMessage('reads');
});`;

interface Parker {
  readonly reads: () => boolean;
}

/** Another worker, in a thread, that is about to read while worker 0 looks. Resolves when it is parked. */
const parker = async (
  t: TestContext,
  scene: Scene,
  options: { readonly worker: number; readonly workers: number; readonly parkMs: number },
): Promise<Parker> => {
  const module = new URL('../../../../mount/kernel/request-watch.js', import.meta.url).href;
  const before = scene.parked;
  const workerData = { module, shared: scene.shared, ...options };
  const thread = new Worker(PARKS, { eval: true, workerData });
  t.after(async () => void (await thread.terminate()));
  let reads = false;
  thread.once('message', () => {
    reads = true;
  });
  await until('it is parked, or was', () => reads || scene.parked > before);
  return { reads: () => reads };
};

const until = async (what: string, isSo: () => boolean): Promise<void> => {
  for (const end = Date.now() + SOON_MS; !isSo(); await sleep(1))
    assert.ok(Date.now() < end, `not within ${SOON_MS} ms: ${what}`);
};

const CALLS_BACK: readonly (readonly [string, (scene: Scene) => void])[] = [
  ['may wait for something else', ({ watch }) => watch.disperse()],
  ['has handed a request over', ({ watch }) => watch.handedOver()],
  ['has looked in vain', (scene) => void scene.request(NEVER)],
  ['has got a request, and another one is there', (scene) => void scene.request(1, true)],
];

for (const [what, act] of CALLS_BACK) {
  test(`one that is parked reads when the one that looks ${what}`, async (t) => {
    const scene = new Scene(2);
    scene.request(1);
    assert.equal(scene.looker, 1);
    const { reads } = await parker(t, scene, { worker: 1, workers: 2, parkMs: FOR_EVER_MS });
    await sleep(50);
    assert.ok(!reads() && scene.parked === 1, 'it stays parked');
    act(scene);
    await until('it reads', reads);
    assert.equal(scene.parked, 0);
  });
}

test('one that has not looked for so long is deposed, for longer each time, and all that are parked read', async (t) => {
  for (const [deposals, rest] of [
    [0, 256],
    [2, 1024],
    [9, 8192],
  ] as const) {
    const scene = new Scene(3);
    scene.request(1);
    Atomics.store(scene.words, 5, deposals);
    const patient = await parker(t, scene, { worker: 1, workers: 3, parkMs: FOR_EVER_MS });
    const other = await parker(t, scene, { worker: 2, workers: 3, parkMs: 20 });
    await until('both read', () => patient.reads() && other.reads());
    assert.deepEqual([scene.looker, scene.rest], [0, rest]);
    assert.equal(Atomics.load(scene.words, 5), deposals + 1);
  }
});

test('one that looks is not deposed, however long it does', async (t) => {
  const scene = new Scene(2);
  scene.request(1);
  const { reads } = await parker(t, scene, { worker: 1, workers: 2, parkMs: 1000 });
  for (const end = Date.now() + 2500; Date.now() < end; await sleep(5)) scene.request(1);
  assert.ok(!reads());
  assert.equal(scene.looker, 1);
});
