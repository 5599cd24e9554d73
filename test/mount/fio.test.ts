/** fio's own verification of what it wrote, eight jobs at once, with holes punched beside them; also while engines die. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { whileKilling } from '../support/engine-killer.ts';
import { tool } from '../support/file-tools.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { countOf } from '../support/run-parameters.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const JOBS = 8;
const JOB_MIB = 4;
const PUNCHED_AT = 64 << 20;
const PUNCHED_BYTES = 16 << 20;

const jobFile = (path: string, engine: string): string =>
  `[global]
filename=${path}
rw=randwrite
bs=4k
size=${JOB_MIB}m
offset_increment=${JOB_MIB}m
numjobs=${JOBS}
loops=2
verify=crc32c
verify_fatal=1
verify_state_save=0
${engine}
[x]
`;

interface Case {
  readonly name: string;
  readonly engine: string;
  readonly kills: number;
}

const CASES: readonly Case[] = [
  { name: 'direct, depth 16', engine: 'direct=1\nioengine=libaio\niodepth=16', kills: 0 },
  { name: 'buffered', engine: 'direct=0\nioengine=psync', kills: 0 },
  {
    name: 'direct, while the engine is killed',
    engine: 'direct=1\nioengine=libaio\niodepth=16',
    kills: countOf(4),
  },
];

for (const c of CASES) {
  test(`what fio wrote is what it reads: ${c.name}`, async (t) => {
    const place = await placeOf(t, subject);
    await writeFile(place.image('base.raw'), new Uint8Array(96 << 20).fill(0x5a));
    const image = place.image('disk.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', image]);
    const mounted = await place.mount();
    const path = mounted.path('disk.raw');
    const job = join(place.root, 'job.fio');
    await writeFile(job, jobFile(path, c.engine));
    let running = true;
    const run = async (): Promise<void> => void (await tool('fio', [job], 600_000));
    const fio = whileKilling(mounted, { kills: c.kills }, run).finally(() => {
      running = false;
    });
    const punching = (async () => {
      while (running) {
        await tool('fallocate', [
          '-p',
          '-o',
          String(PUNCHED_AT),
          '-l',
          String(PUNCHED_BYTES),
          path,
        ]);
        await sleep(30);
      }
    })();
    await fio;
    await punching;
    await mounted.unmount();
    await assertClean(image);
    const flat = join(place.root, 'flat.raw');
    await qemuImg(['convert', '-O', 'raw', image, flat]);
    const zeros = await tool('cmp', [
      '-n',
      String(PUNCHED_BYTES),
      '-i',
      `${PUNCHED_AT}:0`,
      flat,
      '/dev/zero',
    ]);
    assert.equal(zeros, '');
  });
}
