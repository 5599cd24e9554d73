/** Mirrors, one promise at a time: error policies, flushes, copy modes, sync modes, ends. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DirtyBitmap } from '../../src/block/dirty-bitmap.ts';
import type { Node } from '../../src/block/node.ts';
import { BitmapFile } from '../../src/job/bitmap-file.ts';
import type { Job } from '../../src/job/job.ts';
import { delayedFile, type FileOperation } from '../support/delayed-file.ts';
import { MirrorStand } from '../support/mirror-stand.ts';
import { assertClean, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

interface Scene {
  readonly stand: MirrorStand;
  /** What happens before an operation on the source's or the target's file. */
  on: { source: Hook; target: Hook };
}

type Hook = (operation: FileOperation, offset: number) => Promise<void>;

const nothing: Hook = async () => undefined;

const scene = async (
  t: Cleanup,
  formats: {
    readonly source?: string;
    readonly target?: string;
    readonly lengthBytes?: number;
  } = {},
): Promise<Scene> => {
  const directory = await scratchDirectory(t);
  const { source = 'raw', target = 'raw', lengthBytes = 8 * MIB } = formats;
  const on = { source: nothing, target: nothing };
  const of = (which: 'source' | 'target') => ({
    before: (operation: FileOperation, offset: number) => on[which](operation, offset),
  });
  const file = delayedFile(
    join(directory, `source.${source}`),
    of('source'),
    delayedFile(join(directory, `target.${target}`), of('target')),
  );
  const options = { directory, sourceFormat: source, targetFormat: target, lengthBytes, file };
  const stand = await MirrorStand.open(options);
  t.after(async () => stand.abandon());
  return { stand, on };
};

const put = (stand: MirrorStand, at: number, length: number, fill: number): Promise<void> =>
  stand.view.write(guestOffset(at), Buffer.alloc(length, fill));

const fault = (kind: 'io' | 'no-space' = 'io'): BlockError =>
  new BlockError({ kind, message: 'the fault of this test' });

/** The first `count` of an operation from now on fail. */
const failing = (operation: FileOperation, count: number, kind: 'io' | 'no-space' = 'io'): Hook => {
  let left = count;
  return async (seen) => {
    if (seen === operation && left-- > 0) throw fault(kind);
  };
};

const assertSame = async ({ source, target, view }: MirrorStand): Promise<void> => {
  await view.close();
  await qemuImg(['compare', source, target]);
};

const until = async (what: string, holds: () => boolean, limitMs = 10_000): Promise<void> => {
  for (const end = Date.now() + limitMs; !holds(); ) {
    if (Date.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`);
    await sleep(5);
  }
};

const ended = (job: Job): Promise<void> =>
  until('the job has ended', () => job.status === 'concluded');

const errorsOf = (stand: MirrorStand): readonly unknown[] =>
  stand.events.filter(({ name }) => name === 'BLOCK_JOB_ERROR').map(({ data }) => data);

for (const side of ['source', 'target'] as const) {
  const operation = side === 'source' ? 'read' : 'write';
  const policy = side === 'source' ? 'onSourceError' : 'onTargetError';

  test(`${side} error, report: the job ends with it, and the source is what it was`, async (t) => {
    const { stand, on } = await scene(t);
    await put(stand, 0, 2 * MIB, 1);
    on[side] = failing(operation, 1);
    const job = await stand.mirror({ [policy]: 'report' });
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/);
    assert.deepEqual(errorsOf(stand)[0], { device: 'disk', operation, action: 'report' });
    assert.equal(stand.root.path, stand.source);
    on[side] = nothing;
    const seen = Buffer.alloc(2 * MIB);
    await stand.view.read(guestOffset(0), seen);
    assert.ok(seen.every((byte) => byte === 1));
    await stand.view.close();
  });

  test(`${side} error, ignore: what has failed stays dirty and is copied later`, async (t) => {
    const { stand, on } = await scene(t);
    await put(stand, 0, 4 * MIB, 1);
    on[side] = failing(operation, 3);
    const job = await stand.mirror({ [policy]: 'ignore' });
    await stand.readyOrEnded(job);
    assert.equal(job.status, 'ready');
    assert.ok(errorsOf(stand).length >= 3);
    assert.equal(job.blockJobInfo()['io-status'], 'ok');
    job.cancel({ force: false });
    await ended(job);
    assert.equal(job.error, null);
    await assertSame(stand);
  });

  test(`${side} error, stop: the job waits, is resumed, and copies what has failed`, async (t) => {
    const { stand, on } = await scene(t);
    await put(stand, 0, 4 * MIB, 1);
    on[side] = failing(operation, 2);
    const job = await stand.mirror({ [policy]: 'stop' });
    await until('it is paused', () => job.status === 'paused');
    assert.equal(job.blockJobInfo()['io-status'], 'failed');
    assert.deepEqual(errorsOf(stand)[0], { device: 'disk', operation, action: 'stop' });
    // The second one fails when the first has paused the job, or after it.
    await until('it is ready', () => {
      if (job.status === 'paused') job.resume();
      return job.status === 'ready';
    });
    job.complete();
    await ended(job);
    assert.equal(job.error, null);
    await assertSame(stand);
  });

  test(`${side} error, enospc: only a full disk lets it wait`, async (t) => {
    const { stand, on } = await scene(t);
    await put(stand, 0, 2 * MIB, 1);
    on[side] = failing(operation, 1, 'no-space');
    const job = await stand.mirror({ [policy]: 'enospc' });
    await until('it is paused', () => job.status === 'paused');
    assert.equal(job.blockJobInfo()['io-status'], 'nospace');
    on[side] = failing(operation, 1, 'io');
    job.resume();
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/);
    await stand.view.close();
  });
}

test('a flush of the target that fails before it is ready is an error of the job, whatever the policy', async (t) => {
  for (const policy of ['report', 'ignore', 'stop'] as const) {
    const { stand, on } = await scene(t);
    await put(stand, 0, MIB, 1);
    on.target = failing('flush', 1);
    const job = await stand.mirror({ onTargetError: policy });
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/, policy);
    assert.ok(!stand.names().includes('BLOCK_JOB_READY'), 'it was never ready');
    await stand.view.close();
  }
});

for (const verb of ['complete', 'cancel'] as const) {
  test(`a flush of the target that fails at ${verb} is an error, and there is no pivot`, async (t) => {
    const { stand, on } = await scene(t);
    await put(stand, 0, MIB, 1);
    const job = await stand.mirror();
    await stand.readyOrEnded(job);
    on.target = failing('flush', 1);
    if (verb === 'complete') job.complete();
    else job.cancel({ force: false });
    await ended(job);
    assert.match(job.error ?? '', /the fault of this test/);
    assert.equal(stand.root.path, stand.source);
    on.target = nothing;
    await stand.view.close();
  });
}

/** Writes granule after granule, as fast as it is let, until it is stopped. */
const restlessGuest = (stand: MirrorStand): { stop: () => Promise<number> } => {
  let isOver = false;
  const granules = stand.root.lengthBytes / (64 * KIB);
  const writing = (async () => {
    let writes = 0;
    while (!isOver) {
      await put(stand, ((writes * 7919) % granules) * 64 * KIB, 64 * KIB, 1 + (writes % 250));
      writes++;
      if (writes % 16 === 0) await sleep(1);
    }
    return writes;
  })();
  return {
    stop: () => {
      isOver = true;
      return writing;
    },
  };
};

/** One write after the other, each 20 ms. */
const slowTarget = (): Hook => {
  let before = Promise.resolve();
  return async (operation) => {
    if (operation !== 'write') return;
    before = before.then(() => sleep(20));
    await before;
  };
};

test('a guest faster than the target keeps a mirror from its end, until it is write-blocking', async (t) => {
  const { stand, on } = await scene(t, { lengthBytes: 32 * MIB });
  await put(stand, 0, 32 * MIB, 1);
  on.target = slowTarget();
  const guest = restlessGuest(stand);
  t.after(() => guest.stop());
  const job = await stand.mirror({ granularityBytes: 64 * KIB });
  await sleep(700);
  assert.equal(job.status, 'running', 'the guest is faster');
  job.change({ copyMode: 'write-blocking' });
  await until('it is ready', () => job.status === 'ready', 20_000);
  await until('it is in step', () => job.blockJobInfo()['actively-synced'] === true);
  job.complete();
  await until('it has ended', () => job.status === 'concluded');
  const writes = await guest.stop();
  assert.ok(writes > 10);
  assert.equal(job.error, null);
  assert.equal(stand.root.path, stand.target);
  await stand.view.close();
});

for (const force of [false, true]) {
  test(`a ${force ? 'forced ' : ''}cancel is seen although the guest never stops`, async (t) => {
    const { stand, on } = await scene(t);
    const job = await stand.mirror({ granularityBytes: 64 * KIB });
    await stand.readyOrEnded(job);
    on.target = slowTarget();
    const guest = restlessGuest(stand);
    t.after(() => guest.stop());
    await sleep(300);
    assert.equal(job.status, 'ready');
    const begun = performance.now();
    job.cancel({ force });
    await until('it has ended', () => job.status === 'concluded');
    assert.ok(performance.now() - begun < 5000);
    await guest.stop();
    assert.equal(job.error, force ? 'Operation canceled' : null);
    assert.equal(stand.root.path, stand.source);
    await stand.view.close();
  });
}

test('a forced cancel lets a guest go that waits for a target which does not answer', async (t) => {
  const { stand, on } = await scene(t);
  const job = await stand.mirror({ copyMode: 'write-blocking' });
  await stand.readyOrEnded(job);
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  on.target = async (operation) => {
    if (operation === 'write') await answered;
  };
  let isWritten = false;
  const write = put(stand, 0, 4 * KIB, 9).then(() => {
    isWritten = true;
  });
  await sleep(50);
  assert.equal(isWritten, false, 'write-blocking');
  job.cancel({ force: true });
  await write;
  answer();
  await ended(job);
  await stand.view.close();
});

test('a forced cancel does not wait for a target that does not answer', async (t) => {
  const { stand, on } = await scene(t);
  await put(stand, 0, 4 * MIB, 1);
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  on.target = async (operation) => {
    if (operation === 'write') await answered;
  };
  const job = await stand.mirror();
  await sleep(50);
  job.cancel({ force: true });
  await until('it has ended', () => job.status === 'concluded', 1000);
  assert.equal(job.error, 'Operation canceled');
  let isClosed = false;
  const closed = stand.released.then(() => {
    isClosed = true;
  });
  await sleep(50);
  assert.equal(isClosed, false, 'the target is still there: it writes');
  answer();
  await closed;
  await stand.view.close();
});

test('a guest is not held by a flush that a target does not answer, once the job is given up', async (t) => {
  const { stand, on } = await scene(t);
  const job = await stand.mirror();
  await stand.readyOrEnded(job);
  let answer = (): void => undefined;
  const answered = new Promise<void>((resolve) => {
    answer = resolve;
  });
  let flushes = 0;
  on.target = async (operation) => {
    // The first one is done while the guest goes on, the second while it is held.
    if (operation === 'flush' && ++flushes === 2) await answered;
  };
  job.complete();
  await until('the guest is held', () => flushes === 2);
  const write = put(stand, 0, 4 * KIB, 1);
  job.cancel({ force: true });
  await write;
  await until('it has ended', () => job.status === 'concluded', 1000);
  assert.equal(stand.root.path, stand.source);
  answer();
  await stand.released;
  await stand.view.close();
});

test('write-blocking: an engine that dies while the target is written knows what it lacks', async (t) => {
  const { stand, on } = await scene(t);
  const path = join(stand.source, '..', 'bits');
  const scope = { instance: 'this', source: stand.source, target: stand.target };
  const dirty = (): number => {
    const loaded = BitmapFile.load(path, { ...scope, lengthBytes: stand.root.lengthBytes });
    loaded?.file.close();
    return loaded?.content.dirtyBytes ?? -1;
  };
  const kept = {
    resumed: null,
    create: (content: DirtyBitmap) => BitmapFile.create(path, scope, content),
    outlives: () => false,
  };
  await put(stand, 0, MIB, 1);
  const job = await stand.mirror({ copyMode: 'write-blocking', kept });
  await stand.readyOrEnded(job);
  assert.equal(dirty(), 0);
  const seen: number[] = [];
  on.target = async (operation) => {
    if (operation === 'write') seen.push(dirty());
  };
  on.source = async (operation) => {
    if (operation === 'write') seen.push(dirty());
  };
  await put(stand, 70 * KIB, 4 * KIB, 2);
  assert.deepEqual(seen, [64 * KIB, 64 * KIB], 'before the source is written, and the target');
  assert.equal(dirty(), 0);
  job.cancel({ force: true });
  await ended(job);
  assert.equal(dirty(), -1, 'it is gone with the job');
  await stand.view.close();
});

test('write-blocking: a write that fails at the target is answered, dirty, and copied later', async (t) => {
  const { stand, on } = await scene(t);
  const job = await stand.mirror({ copyMode: 'write-blocking', onTargetError: 'ignore' });
  await stand.readyOrEnded(job);
  on.target = failing('write', 1);
  await put(stand, 100 * KIB, 8 * KIB, 3);
  assert.equal(errorsOf(stand).length, 1);
  await until('it is in step again', () => job.blockJobInfo()['actively-synced'] === true);
  job.cancel({ force: false });
  await ended(job);
  assert.equal(job.error, null);
  await assertSame(stand);
});

test('write-blocking: what was answered is in the target already', async (t) => {
  const { stand } = await scene(t, { target: 'qcow2' });
  const job = await stand.mirror({ copyMode: 'write-blocking' });
  await stand.readyOrEnded(job);
  for (let i = 0; i < 20; i++) {
    await put(stand, i * 300 * KIB, 1000 + i, 1 + i);
    const seen = Buffer.alloc(1000 + i);
    await (stand.targetNode as Node).read(guestOffset(i * 300 * KIB), seen);
    assert.ok(
      seen.every((byte) => byte === 1 + i),
      `write ${i}`,
    );
    assert.equal(job.blockJobInfo()['actively-synced'], true);
  }
  job.complete();
  await ended(job);
  await stand.view.close();
  await assertClean(stand.target);
});

test('zeros stay holes, and an existing target is zeroed where it has to be', async (t) => {
  for (const targetIsZero of [true, false]) {
    const { stand } = await scene(t, { target: 'qcow2', lengthBytes: 64 * MIB });
    if (!targetIsZero) await dirtyTarget(stand);
    await put(stand, 3 * MIB, 64 * KIB, 5);
    await put(stand, 40 * MIB, 64 * KIB, 6);
    const job = await stand.mirror({ targetIsZero });
    await stand.readyOrEnded(job);
    job.cancel({ force: false });
    await ended(job);
    assert.equal(job.error, null);
    await assertSame(stand);
    const map = (await qemuImgJson('map', [stand.target])) as { data: boolean; length: number }[];
    const data = map.filter((run) => run.data).reduce((sum, run) => sum + run.length, 0);
    assert.equal(data, 128 * KIB);
    await assertClean(stand.target);
  }
});

/** Somebody's old content. */
const dirtyTarget = async ({ graph, target }: MirrorStand): Promise<void> => {
  const node = await graph.open({ path: target, format: 'qcow2', readOnly: false });
  await node.write(guestOffset(10 * MIB), Buffer.alloc(MIB, 0xee));
  await node.write(guestOffset(3 * MIB), Buffer.alloc(MIB, 0xee));
  await graph.close(node);
};

for (const mode of ['on-success', 'never', 'always'] as const) {
  test(`sync bitmap copies what the bitmap has; ${mode}: what is left in it`, async (t) => {
    for (const fails of [false, true]) {
      const { stand, on } = await scene(t);
      await put(stand, 0, MIB, 1);
      const { root } = stand;
      const bitmap = await root.dirtyBitmaps.start(64 * KIB);
      await put(stand, 2 * MIB, 64 * KIB, 3);
      await put(stand, 4 * MIB, 64 * KIB, 3);
      bitmap.user = "job 'disk'";
      let writes = 0;
      if (fails) {
        on.target = async (operation) => {
          if (operation === 'write' && ++writes === 2) throw fault();
        };
      }
      const job = await stand.mirror({ sync: 'bitmap', bitmap, bitmapMode: mode });
      await stand.readyOrEnded(job);
      if (!fails) job.cancel({ force: false });
      await ended(job);
      assert.equal(job.error === null, !fails);
      assert.equal(bitmap.user, null);
      // In all, what was dirty; `always` gives back only what was not copied.
      const left = fails
        ? mode === 'always'
          ? 64 * KIB
          : 128 * KIB
        : mode === 'never'
          ? 128 * KIB
          : 0;
      assert.equal(bitmap.content.dirtyBytes, left);
      const target = await readFile(stand.target);
      assert.equal(target[0], 0, 'what was not dirty is not copied');
      if (!fails) assert.equal(target[2 * MIB], 3);
      await stand.view.close();
    }
  });
}

for (const end of ['hangs', 'fails'] as const) {
  test(`always: what is on its way to a target that ${end} when the job is cancelled is left in the bitmap`, async (t) => {
    const { stand, on } = await scene(t);
    const { root } = stand;
    const bitmap = await root.dirtyBitmaps.start(64 * KIB);
    await put(stand, 2 * MIB, 64 * KIB, 3);
    bitmap.user = "job 'disk'";
    let begun = (): void => undefined;
    const isWriting = new Promise<void>((resolve) => {
      begun = resolve;
    });
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    on.target = async (operation) => {
      if (operation !== 'write') return;
      begun();
      await held;
      throw fault();
    };
    const job = await stand.mirror({ sync: 'bitmap', bitmap, bitmapMode: 'always' });
    await isWriting;
    assert.equal(job.blockJobInfo().offset, 0);
    job.cancel({ force: true });
    if (end === 'fails') release();
    await ended(job);
    assert.ok(bitmap.content.nextDirty(0, 16 * MIB) !== null, 'it is not in the target');
    assert.equal(bitmap.content.dirtyBytes, 64 * KIB);
    release();
    await stand.view.close();
  });
}

test('a disk that grows meanwhile grows its target', async (t) => {
  const { stand } = await scene(t, { target: 'qcow2' });
  await put(stand, 0, MIB, 1);
  const job = await stand.mirror({ copyMode: 'write-blocking' });
  await stand.readyOrEnded(job);
  await put(stand, 9 * MIB + 5, 507, 2);
  job.complete();
  await ended(job);
  assert.equal(job.error, null);
  assert.equal(stand.root.lengthBytes, 9 * MIB + 512);
  await stand.view.close();
  const seen = join(stand.target, '..', 'seen');
  await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', stand.target, seen]);
  const bytes = await readFile(seen);
  assert.ok(bytes.subarray(9 * MIB + 5, 9 * MIB + 512).every((byte) => byte === 2));
});

test('a disk of an odd size moves to a raw file, but not to a format of whole sectors', async (t) => {
  for (const target of ['raw', 'qcow2']) {
    const { stand } = await scene(t, { target, lengthBytes: MIB });
    await put(stand, 0, MIB + 100, 1);
    const job = await stand.mirror();
    await stand.readyOrEnded(job);
    if (target === 'raw') job.complete();
    else {
      assert.throws(() => job.complete(), /has 1049088 bytes, and the disk 1048676/);
      job.cancel({ force: false });
    }
    await ended(job);
    assert.equal(job.error, null);
    assert.equal(stand.root.lengthBytes, MIB + 100);
    await stand.view.close();
  }
});

test('auto-finalize off: the guest goes on while it is pending, and the pivot has all of it', async (t) => {
  const { stand } = await scene(t);
  await put(stand, 0, MIB, 1);
  const job = await stand.mirror({ autoFinalize: false });
  await stand.readyOrEnded(job);
  job.complete();
  await until('it is pending', () => job.status === 'pending');
  await put(stand, 0, 2 * MIB, 7);
  assert.equal(stand.root.path, stand.source);
  job.finalize();
  await ended(job);
  assert.equal(job.error, null);
  assert.equal(stand.root.path, stand.target);
  await assertSame(stand);
});

test('copies of cached pages let others have their turn', async (t) => {
  const directory = await scratchDirectory(t);
  const lengthBytes = 128 * MIB;
  const options = { directory, sourceFormat: 'raw', targetFormat: 'raw', lengthBytes };
  const stand = await MirrorStand.open(options);
  t.after(async () => stand.abandon());
  // Every other granule: pieces that are copied at once.
  for (let at = 0; at < lengthBytes; at += 128 * KIB) await put(stand, at, 64 * KIB, 1);
  let longestMs = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    longestMs = Math.max(longestMs, now - last);
    last = now;
  }, 1);
  t.after(() => clearInterval(timer));
  await sleep(20);
  longestMs = 0;
  const job = await stand.mirror();
  await stand.readyOrEnded(job);
  assert.equal(job.status, 'ready');
  assert.ok(longestMs < 250, `nobody else had a turn for ${longestMs} ms`);
  job.cancel({ force: true });
  await ended(job);
  await stand.view.close();
});
