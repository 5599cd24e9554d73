/** On files of the directory for temporary files, and of a tmpfs. */
import assert from 'node:assert/strict';
import { type Stats, statSync } from 'node:fs';
import { readFile, stat, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { file } from '../../../../drivers/file/index.ts';
import { giveBackSpaceOf } from '../../../../drivers/file/space-ahead.ts';
import { present } from '../../../../src/base/assert.ts';
import { idleWork } from '../../../../src/base/idle-work.ts';
import { silentLog } from '../../../../src/base/log.ts';
import { seededRandom } from '../../../../src/base/random.ts';
import { guestOffset, hostOffset } from '../../../../src/base/units.ts';
import type { DriverInstance, OpenPathRequest } from '../../../../src/block/driver.ts';
import { HostRange } from '../../../../src/block/host-range.ts';
import { FALLOC, fallocate } from '../../../../src/os/file-ranges.ts';
import { tmpfs } from '../../../support/memory-file-system.ts';
import { countOf, SEED } from '../../../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

const MIB = 1 << 20;

const open = (path: string, more: Partial<OpenPathRequest> = {}): Promise<DriverInstance> =>
  present(
    file.openPath?.({
      path,
      readOnly: false,
      create: false,
      cache: 'writeback',
      log: silentLog,
      growsHereAlone: true,
      ...more,
    }),
    'it opens paths',
  );

const write = async (opened: DriverInstance, offset: number, bytes: Uint8Array): Promise<void> => {
  await opened.write?.(guestOffset(offset), bytes);
};

/** Writes from one length to another, in whole MiB; a turn of the event loop for each lets the other thread go on. */
const grow = async (opened: DriverInstance, from: number, to: number): Promise<void> => {
  for (let at = from; at < to; at += MIB) {
    await write(opened, at, new Uint8Array(MIB).fill(1 + ((at / MIB) % 250)));
    await sleep(2);
  }
};

/** What the file takes past its end. The file system's own tables are in it, and XFS takes space by itself until the close. */
const aheadIn = ({ size, blocks }: Stats): number => blocks * 512 - Math.ceil(size / 4096) * 4096;
const aheadOf = async (path: string): Promise<number> => aheadIn(await stat(path));
const TABLES = { disk: 64 << 10, tmpfs: 0 } as const;

/** On a busy machine taking is behind for a while. */
const someAhead = async (path: string): Promise<number> => {
  let ahead = await aheadOf(path);
  for (let i = 0; i < 500 && ahead < MIB / 2; i++) {
    await sleep(2);
    ahead = await aheadOf(path);
  }
  assert.ok(ahead >= MIB / 2, `${ahead} bytes`);
  return ahead;
};

for (const place of ['disk', 'tmpfs'] as const) {
  describe(`space ahead of a writer: ${place}`, () => {
    const made = async (t: Cleanup): Promise<string> => {
      const directory = place === 'disk' ? await scratchDirectory(t) : await tmpfs(t, '300m');
      const path = join(directory, 'image');
      await writeFile(path, '');
      return path;
    };

    test('a file that grows has some, its length does not tell, and it is given back at close', async (t) => {
      const path = await made(t);
      const opened = await open(path);
      await grow(opened, 0, 32 * MIB);
      const { size } = await stat(path);
      assert.deepEqual([size, opened.lengthBytes], [32 * MIB, 32 * MIB]);
      const ahead = await someAhead(path);
      assert.ok(ahead <= 4 * MIB + TABLES[place], `${ahead} bytes`);
      await opened.close();
      assert.equal((await stat(path)).size, size);
      assert.ok((await aheadOf(path)) <= TABLES[place]);
    });

    test('nothing is taken while it is given back', async (t) => {
      const path = await made(t);
      const opened = await open(path);
      const { dev } = await stat(path);
      for (let to = 32 * MIB; to <= 48 * MIB; to += MIB) {
        await grow(opened, to === 32 * MIB ? 0 : to - MIB, to);
        // There is something to take again at once.
        await write(opened, to, new Uint8Array(MIB).fill(1));
        await write(opened, to, new Uint8Array(MIB).fill(2));
        await giveBackSpaceOf(dev);
        assert.ok((await aheadOf(path)) <= TABLES[place]);
      }
      await opened.close();
    });

    test('it is given back when the file has not grown for a while, and taken again', async (t) => {
      const path = await made(t);
      const opened = await open(path);
      await grow(opened, 0, 32 * MIB);
      await someAhead(path);
      for (let i = 0; i < 100 && (await aheadOf(path)) > TABLES[place]; i++) {
        await write(opened, 0, new Uint8Array(4096));
        await sleep(100);
      }
      assert.ok((await aheadOf(path)) <= TABLES[place], 'writes below the end do not keep it');
      await grow(opened, 32 * MIB, 36 * MIB);
      await someAhead(path);
      await opened.close();
      assert.equal((await stat(path)).size, 36 * MIB);
    });

    test('what a killed engine left is given back by the next opening that writes', async (t) => {
      const path = await made(t);
      await writeFile(path, Buffer.alloc(MIB, 1));
      const killed = await open(path, { growsHereAlone: false });
      const fd = present(killed.hostFd, 'a file of the host has a descriptor');
      await fallocate(fd, FALLOC.KEEP_SIZE, MIB, 8 * MIB);
      await killed.close();
      assert.ok((await aheadOf(path)) >= 8 * MIB, 'not by one that may not');
      const looks = await open(path, { readOnly: true });
      await looks.close();
      assert.ok((await aheadOf(path)) >= 8 * MIB);
      const writes = await open(path);
      await write(writes, 0, new Uint8Array(4096).fill(2));
      await writes.close();
      assert.ok((await aheadOf(path)) <= TABLES[place]);
      assert.equal((await readFile(path)).length, MIB);
    });
  });
}

test('nobody else may make it longer: without that nothing is taken', async (t) => {
  const path = join(await tmpfs(t, '100m'), 'image');
  for (const more of [{ growsHereAlone: false }, { cache: 'none' }] as const) {
    await writeFile(path, '');
    const opened = await open(path, more);
    await grow(opened, 0, 32 * MIB);
    assert.equal(await aheadOf(path), 0);
    await opened.close();
  }
});

test('what was to be taken when it was given back is not taken before what is free is known', async (t) => {
  const path = join(await tmpfs(t, '300m'), 'image');
  await writeFile(path, '');
  const opened = await open(path);
  await grow(opened, 0, 32 * MIB);
  await someAhead(path);
  // All this is done first, one in a turn of the event loop.
  for (let i = 0; i < 20_000; i++) idleWork.offer(() => undefined);
  await write(opened, 32 * MIB, new Uint8Array(MIB).fill(1));
  await giveBackSpaceOf((await stat(path)).dev);
  assert.equal(await aheadOf(path), 0);
  while (idleWork.doOne());
  assert.equal(aheadIn(statSync(path)), 0);
  await grow(opened, 33 * MIB, 36 * MIB);
  await someAhead(path);
  await opened.close();
});

test('workers may write past the end, or there is space ahead', async (t) => {
  const path = join(await tmpfs(t, '100m'), 'image');
  await writeFile(path, '');
  const opened = await open(path);
  const lend = (end: number): boolean | undefined => opened.lend?.(hostOffset(end));
  assert.equal(lend(40 * MIB), true);
  await grow(opened, 0, 32 * MIB);
  assert.equal(await aheadOf(path), 0, 'not while they may');
  await grow(opened, 32 * MIB, 48 * MIB);
  assert.ok((await aheadOf(path)) > 0);
  assert.equal(lend(48 * MIB), true, 'below the end they always may');
  assert.equal(lend(48 * MIB + 1), false);
  // The file is cut below what they were let write: nothing is cut off behind that any more.
  await opened.resize?.(47 * MIB);
  await write(opened, 47 * MIB, new Uint8Array(4096));
  assert.equal(await giveBackSpaceOf((await stat(path)).dev), false);
  await opened.close();
  assert.equal(await aheadOf(path), 0);
});

test('a full file system gives writers what was taken ahead', async (t) => {
  const directory = await tmpfs(t, '64m');
  const [growing, other] = [join(directory, 'growing'), join(directory, 'other')];
  await writeFile(growing, '');
  await writeFile(other, '');
  const first = await open(growing);
  const second = await open(other, { growsHereAlone: false });
  await grow(first, 0, 24 * MIB);
  let size = 24 * MIB;
  // On a busy machine the writer may just have used up what there was.
  for (; (await aheadOf(growing)) < MIB / 2; size += MIB) {
    assert.ok(size < 40 * MIB, 'some is taken ahead');
    await grow(first, size, size + MIB);
  }
  let length = 0;
  const fill = async (): Promise<void> => {
    // Not in step with what is free.
    for (; ; length += 40_960) await write(second, length, new Uint8Array(40_960).fill(9));
  };
  await assert.rejects(fill, { code: 'ENOSPC' });
  assert.equal(await aheadOf(growing), 0);
  const { bavail, bsize } = await statfs(directory);
  assert.ok(bavail * bsize < 40_960, `${bavail * bsize} bytes were kept from it`);
  await second.close();
  await first.close();
  const content = await readFile(growing);
  assert.equal(content.length, size);
  for (let i = 0; i < size / MIB; i++) {
    const piece = content.subarray(i * MIB, (i + 1) * MIB);
    assert.ok(piece.every((byte) => byte === 1 + i));
  }
  assert.ok((await readFile(other)).subarray(0, length).every((byte) => byte === 9));
});

test(`growth that meets giving back loses nothing (seed ${SEED})`, async (t) => {
  const path = join(await tmpfs(t, '600m'), 'image');
  await writeFile(path, '');
  const { dev } = await stat(path);
  const random = seededRandom(SEED);
  const opened = await open(path);
  const pieces: { offset: number; bytes: Buffer }[] = [];
  let length = 0;
  let given = 0;
  for (let round = 0; round < countOf(150); round++) {
    const work: Promise<unknown>[] = [];
    const pass = async (): Promise<void> => {
      if (await giveBackSpaceOf(dev)) given++;
    };
    for (let i = 0; i < 4; i++) {
      // Long ones are another thread's, short ones are done at once.
      const bytes = Buffer.alloc(4096 * (1 + random.below(200)), 1 + (pieces.length % 255));
      pieces.push({ offset: length, bytes });
      work.push(write(opened, length, bytes));
      length += bytes.length;
      if (random.below(2) === 0) work.push(pass());
    }
    await Promise.all(work);
    assert.equal((await stat(path)).size, length, `round ${round}`);
    if (random.below(10) === 0) {
      const last = present(pieces.pop(), 'there is one');
      length = last.offset;
      await Promise.all([pass(), opened.resize?.(length)]);
      assert.equal((await stat(path)).size, length, 'cut');
    }
  }
  assert.ok(given > 10, `given back ${given} times`);
  await opened.close();
  const content = await readFile(path);
  for (const { offset, bytes } of pieces)
    assert.ok(content.subarray(offset, offset + bytes.length).equals(bytes), `at ${offset}`);
});

test('what is copied into tmpfs keeps the end from being given back, wherever it lies', async (t) => {
  const directory = await tmpfs(t, '400m');
  const [from, to] = [join(directory, 'source'), join(directory, 'image')];
  await writeFile(from, Buffer.alloc(96 * MIB, 9));
  await writeFile(to, Buffer.alloc(96 * MIB, 1));
  const graph = await testGraph({ directory });
  const source = await graph.open({ path: from, format: 'raw', readOnly: true });
  const range = new HostRange(present(source.file, 'a raw image has a file'), 0, 96 * MIB);
  const opened = await open(to);
  await grow(opened, 96 * MIB, 128 * MIB);
  await someAhead(to);
  const order: string[] = [];
  const copied = opened.copyIn?.(guestOffset(0), range, 'write').then(() => order.push('copied'));
  const { dev } = statSync(to);
  // It has begun, and takes ten times as long.
  await sleep(2);
  await Promise.all([copied, giveBackSpaceOf(dev).then(() => order.push('given back'))]);
  assert.deepEqual(order, ['copied', 'given back']);
  await opened.close();
  await graph.close(source);
});
