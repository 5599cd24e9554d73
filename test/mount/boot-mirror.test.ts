/** A virtual machine whose disk moves to another file under it. */
import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { bootDisk } from '../support/boot-disk.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import { bootMachine, type RunningMachine, startMachine } from '../support/virtual-machine.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const PATIENCE_MS = 60_000;

const roundsOf = ({ lines }: RunningMachine): number =>
  lines.filter((line) => line.startsWith('rounds: ')).length;

/** Until the guest has done a few more rounds of its I/O. */
const guestGoesOn = async (machine: RunningMachine): Promise<void> => {
  const before = roundsOf(machine);
  const isDone = async (): Promise<boolean> => roundsOf(machine) >= before + 3;
  await eventually('the guest goes on', isDone, PATIENCE_MS);
};

test('a machine that writes and reads does not notice that its disk moves, and boots from where that is', async (t) => {
  const place = await placeOf(t, subject);
  const base = place.image('base.raw');
  await qemuImg(['convert', '-O', 'raw', await bootDisk(), base]);
  const overlay = place.image('machine.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', overlay]);
  const moved = join(place.root, 'moved.qcow2');
  const last = join(place.root, 'last.raw');
  const kept = ['--state-dir', join(place.root, 'state')];

  const first = await place.mount(kept);
  const view = first.path('machine.raw');
  const machine = startMachine({ disk: view, cache: 'none', busy: true });
  await guestGoesOn(machine);
  for (const how of [
    [view, moved],
    ['--mode', 'write-blocking', '--format', 'raw', view, last],
  ]) {
    const done = await vdiskfs(['mirror', '--complete', ...how], { timeoutMs: PATIENCE_MS });
    assert.equal(done.status, 0, done.stderr);
    assert.equal(done.stdout, `job machine completed\n${view} goes on over ${how.at(-1)}\n`);
    await guestGoesOn(machine);
  }
  machine.stop();
  const lines = await machine.end;
  const others = lines.filter((line) => !line.startsWith('rounds: '));
  assert.deepEqual(others, ['boots before: 0', 'kernel intact', 'written']);
  await first.unmount();
  await assertClean(overlay);
  await assertClean(moved);

  // All of it is there: what it was made from is not needed any more.
  await rm(base);
  await rm(overlay);
  await rm(moved);
  const second = await place.mount(kept);
  assert.deepEqual(await bootMachine({ disk: second.path('machine.raw'), cache: 'writeback' }), [
    'boots before: 1',
    'kernel intact',
    'data intact',
    'written',
  ]);
  await second.unmount();
});
