/** A virtual machine whose disk is a view. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { bootDisk } from '../support/boot-disk.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import { bootMachine } from '../support/virtual-machine.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const BETWEEN_SWAPS_MS = 500;

/** An upgrade in place. */
const swapEngine = async (mountpoint: string): Promise<void> => {
  const done = await vdiskfs(['restart', mountpoint], { timeoutMs: 60_000 });
  assert.equal(done.status, 0, done.stderr);
};

/** Again and again until the work has ended; how many times. */
const whileRunning = async (
  work: Promise<unknown>,
  again: () => Promise<void>,
): Promise<number> => {
  let isRunning = true;
  const end = (): void => {
    isRunning = false;
  };
  void work.then(end, end);
  let times = 0;
  for (; isRunning; times++) {
    await sleep(BETWEEN_SWAPS_MS);
    if (isRunning) await again();
  }
  return times;
};

const BASE_AND_OVERLAY = ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw'];

for (const cache of ['none', 'writeback'] as const) {
  test(`a machine boots from a view, and its second boot finds what the first wrote (cache=${cache})`, async (t) => {
    const place = await placeOf(t, subject);
    const base = place.image('base.raw');
    await qemuImg(['convert', '-O', 'raw', await bootDisk(), base]);
    const overlay = place.image('machine.qcow2');
    await qemuImg([...BASE_AND_OVERLAY, overlay]);

    const first = await place.mount();
    const disk = first.path('machine.raw');
    assert.deepEqual(await bootMachine({ disk, cache }), [
      'boots before: 0',
      'kernel intact',
      'written',
    ]);
    await first.unmount();
    await assertClean(overlay);

    const second = await place.mount();
    const booting = bootMachine({ disk: second.path('machine.raw'), cache });
    const swaps = whileRunning(booting, () => swapEngine(second.mountpoint));
    assert.deepEqual(await booting, ['boots before: 1', 'kernel intact', 'data intact', 'written']);
    const engines = await swaps;
    t.diagnostic(`${engines} swaps of the engine during the second boot`);
    assert.ok(engines >= 2, `${engines} swaps`);
    await second.unmount();
    await assertClean(overlay);

    // The base is as it was: everything went to the overlay.
    const untouched = join(place.root, 'untouched.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', base, untouched]);
    await qemuImg(['compare', await bootDisk(), untouched]);
  });
}
