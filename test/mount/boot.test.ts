/** A virtual machine whose disk is a view. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { bootDisk } from '../support/boot-disk.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { bootMachine } from '../support/virtual-machine.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

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
    assert.deepEqual(await bootMachine({ disk: second.path('machine.raw'), cache }), [
      'boots before: 1',
      'kernel intact',
      'data intact',
      'written',
    ]);
    await second.unmount();
    await assertClean(overlay);

    // The base is as it was: everything went to the overlay.
    const untouched = join(place.root, 'untouched.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', base, untouched]);
    await qemuImg(['compare', await bootDisk(), untouched]);
  });
}
