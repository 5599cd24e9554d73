/** Engines are killed at random moments, again and again; who works in the mount sees pauses, and nothing else. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { bootDisk } from '../support/boot-disk.ts';
import { whileKilling } from '../support/engine-killer.ts';
import { tool } from '../support/file-tools.ts';
import { attachLoop, mountFileSystem } from '../support/loop-device.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { bootMachine } from '../support/virtual-machine.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const FEW = 4;
/** 20 in the soak. */
const KILLS = countOf(FEW);
/** A boot takes its time. */
const BOOT_KILLS = KILLS > FEW ? KILLS : 1;
/** Of engines below a machine: its firmware waits for a disk for 5 s and no longer, so that pauses are kept short. */
const LONGEST_LIFE_MS = 8000;
const PATIENCE_MS = 600_000;

test(`ext4 on a loop device, buffered, under ${KILLS} kills: fio finds what it wrote (seed ${SEED})`, async (t) => {
  const place = await placeOf(t, subject);
  const image = place.image('disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '128M']);
  const mounted = await place.mount();
  const loop = await attachLoop(place.cleanup, mounted.path('disk.raw'), { directIo: false });
  await tool('mkfs.ext4', ['-q', loop.path]);
  const guest = join(place.root, 'guest');
  const unmountGuest = await mountFileSystem(place.cleanup, loop.path, guest);
  const turns = await whileKilling(mounted, { kills: KILLS }, async (turn) => {
    await tool(
      'fio',
      [
        '--name=x',
        `--filename=${join(guest, `file${turn % 4}`)}`,
        '--rw=randwrite',
        '--bsrange=512-32k',
        '--size=8m',
        '--ioengine=psync',
        '--fsync=64',
        '--verify=crc32c',
        '--verify_fatal=1',
        '--verify_state_save=0',
        `--randseed=${SEED + turn}`,
      ],
      PATIENCE_MS,
    );
  });
  t.diagnostic(`fio ran ${turns} times`);
  await unmountGuest();
  await tool('e2fsck', ['-f', '-n', loop.path], PATIENCE_MS);
  await loop.detach();
  await mounted.unmount();
  await assertClean(image);
});

test(`a machine boots, writes and finds what it wrote, under ${BOOT_KILLS} kills (seed ${SEED})`, async (t) => {
  const place = await placeOf(t, subject);
  const base = place.image('base.raw');
  await qemuImg(['convert', '-O', 'raw', await bootDisk(), base]);
  const overlay = place.image('machine.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', overlay]);
  const mounted = await place.mount();
  const disk = mounted.path('machine.raw');
  const killing = { kills: BOOT_KILLS, longestLifeMs: LONGEST_LIFE_MS };
  const boots = await whileKilling(mounted, killing, async (turn) => {
    const cache = turn % 2 === 0 ? 'none' : 'writeback';
    const expected = [
      `boots before: ${turn}`,
      'kernel intact',
      ...(turn === 0 ? [] : ['data intact']),
      'written',
    ];
    assert.deepEqual(await bootMachine({ disk, cache, limitMs: PATIENCE_MS }), expected);
  });
  t.diagnostic(`${boots} boots`);
  await mounted.unmount();
  await assertClean(overlay);
});
