/**
 * Mirrors between files on tmpfs, which two threads copy (drivers/file/copy-threads.ts), while guests write and discard: what is asked is
 * that the target is what the guests left, however the threads, their turns and the ends of the file meet.
 */
import assert from 'node:assert/strict';
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { copyThreads } from '../../drivers/file/copy-threads.ts';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { View } from '../../src/block/view.ts';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tmpfs } from '../support/memory-file-system.ts';
import { ended } from '../support/mirror-scene.ts';
import { MirrorStand } from '../support/mirror-stand.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { until } from '../support/until.ts';

const MIB = 1 << 20;
/** Some stretches of what is copied at once into tmpfs, and a part of one. */
const DISK_BYTES = 140 * MIB;
const GUESTS = 3;
const MAX_WRITE_BYTES = 96 << 10;
const LIMIT_MS = 600_000;

interface Run {
  readonly directory: string;
  readonly sourceFormat: string;
  readonly targetFormat: string;
  readonly run: number;
}

interface Guest {
  readonly view: View;
  /** What the disk holds. */
  readonly disk: Buffer;
  readonly seed: number;
  /** Its part of the disk: guests do not write over each other. */
  readonly start: number;
  readonly end: number;
  readonly isOver: () => boolean;
}

/** Writes and discards at random places of its part. */
const runGuest = async ({ view, disk, seed, start, end, isOver }: Guest): Promise<void> => {
  const random = seededRandom(seed);
  while (!isOver()) {
    const length = 1 + random.below(MAX_WRITE_BYTES);
    const at = start + random.below(end - start - length);
    const isDiscard = random.below(10) === 0;
    const bytes = disk.subarray(at, at + length);
    bytes.fill(isDiscard ? 0 : 1 + random.below(255));
    if (isDiscard) await view.punchHole(guestOffset(at), length);
    else await view.write(guestOffset(at), bytes);
    await turn();
  }
};

const mirrorUnderGuests = async ({
  directory,
  sourceFormat,
  targetFormat,
  run,
}: Run): Promise<void> => {
  const lengthBytes = DISK_BYTES;
  const stand = await MirrorStand.open({ directory, sourceFormat, targetFormat, lengthBytes });
  const disk = Buffer.alloc(DISK_BYTES, 7);
  await stand.view.write(guestOffset(0), disk);
  copyThreads.start(2);
  await until('two threads are ready', () => copyThreads.readyCount === 2);
  const before = copyThreads.copiedBytes;
  let isOver = false;
  const guests = Array.from({ length: GUESTS }, (_, i) =>
    runGuest({
      ...{ view: stand.view, disk, seed: SEED + run * GUESTS + i, isOver: () => isOver },
      start: Math.floor((i * DISK_BYTES) / GUESTS),
      end: Math.floor(((i + 1) * DISK_BYTES) / GUESTS),
    }),
  );
  const over = Promise.all(guests);
  try {
    const job = await stand.mirror(run % 2 === 0 ? {} : { copyMode: 'write-blocking' });
    await stand.readyOrEnded(job);
    assert.equal(job.status, 'ready', job.error ?? undefined);
    job.complete();
    await ended(job);
    assert.equal(job.error, null);
  } finally {
    isOver = true;
    await Promise.allSettled(guests);
    stand.abandon();
  }
  await over;
  await stand.view.close();
  await stand.released;
  assert.ok(copyThreads.copiedBytes > before, 'threads have copied some of it');
  if (targetFormat === 'qcow2') await qemuImg(['check', '-q', stand.target]);
  const flat = join(directory, 'flat');
  await qemuImg(['convert', '-f', targetFormat, '-O', 'raw', stand.target, flat]);
  assert.equal(Buffer.compare(await readFile(flat), disk), 0, 'what the guests left');
  for (const path of [flat, stand.source, stand.target]) await rm(path);
};

for (const sourceFormat of ['raw', 'qcow2'])
  for (const targetFormat of ['raw', 'qcow2'])
    test(`guests write while ${sourceFormat} is mirrored to ${targetFormat} on tmpfs (seed ${SEED})`, {
      timeout: LIMIT_MS,
    }, async (t) => {
      const directory = await tmpfs(new CleanupStack(t), '500m');
      for (let run = 0; run < countOf(2); run++)
        await mirrorUnderGuests({ directory, sourceFormat, targetFormat, run });
    });
