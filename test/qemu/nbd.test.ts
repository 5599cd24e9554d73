/** The NBD driver against nbdkit and qemu-nbd: what is written through it is what their files hold. */
import assert from 'node:assert/strict';
import { readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { nbdDriver } from '../../drivers/nbd/index.ts';
import { BlockError } from '../../src/base/block-error.ts';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset, hostOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { type NbdServer, nbdkit, qemuNbd } from '../support/nbd-server.ts';
import { qemuImg } from '../support/qemu-img.ts';
import { patternBytes, readBytes, remoteNode } from '../support/remote-node.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';

const driver = nbdDriver({ firstPauseMs: 10, lastPauseMs: 100, deadlineMs: 20_000 });
const DISK_BYTES = 4 << 20;

const fails = (errno: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof BlockError, String(error));
  assert.equal(error.errno, errno, error.describe());
  assert.match(error.message, message);
  return true;
};

interface Disk {
  readonly server: NbdServer;
  /** The raw file that the server serves. */
  readonly file: string;
  readonly node: Node;
}

type Make = (t: Cleanup, socket: string, file: string) => Promise<NbdServer>;

const SERVERS: readonly (readonly [string, Make])[] = [
  ['nbdkit', (t, socket, file) => nbdkit(t, socket, ['file', `file=${file}`])],
  [
    'nbdkit with blocks of 4096 bytes',
    (t, socket, file) =>
      nbdkit(t, socket, [
        '--filter=blocksize-policy',
        'file',
        `file=${file}`,
        'blocksize-minimum=4096',
        'blocksize-error-policy=error',
        'blocksize-maximum=131072',
      ]),
  ],
  [
    'nbdkit without structured replies, zeroes and flush',
    (t, socket, file) =>
      nbdkit(t, socket, ['--no-sr', '--filter=nozero', 'file', `file=${file}`, 'zeromode=none']),
  ],
  ['qemu-nbd', (t, socket, file) => qemuNbd(t, socket, ['-f', 'raw', '--discard=unmap', file])],
];

const openDisk = async (t: Cleanup, make: Make, readOnly = false): Promise<Disk> => {
  const directory = await scratchDirectory(t);
  const file = join(directory, 'disk.raw');
  await writeFile(file, patternBytes(DISK_BYTES / 2));
  await truncate(file, DISK_BYTES);
  const server = await make(t, join(directory, 's'), file);
  return { server, file, node: await remoteNode(t, driver, server.url, { readOnly }) };
};

for (const [name, make] of SERVERS) {
  describe(`NBD driver: ${name}`, () => {
    test(`random requests leave what a model says, SEED=${SEED}`, async (t) => {
      const { node, file } = await openDisk(t, make);
      assert.equal(node.lengthBytes, DISK_BYTES);
      const model = await readFile(file);
      const random = seededRandom(SEED);
      for (let round = 0; round < countOf(60); round++) {
        const length = 1 + random.below(random.pick([10, 5000, 300_000]));
        const offset = random.below(DISK_BYTES - length + 1);
        const at = guestOffset(offset);
        switch (random.below(4)) {
          case 0: {
            const bytes = patternBytes(length, round);
            await node.write(at, bytes);
            model.set(bytes, offset);
            break;
          }
          case 1:
            await node.writeZeroes(at, length, { unmap: random.below(2) === 0 });
            model.fill(0, offset, offset + length);
            break;
          case 2:
            await node.discard(at, length);
            model.fill(0, offset, offset + length);
            break;
          default:
            assert.deepEqual(
              await readBytes(node, offset, length),
              model.subarray(offset, offset + length),
            );
        }
      }
      await node.flush();
      assert.deepEqual(await readBytes(node, 0, DISK_BYTES), model);
      assert.ok((await readFile(file)).equals(model), "the server's file holds the same");
    });

    test('sixty-four overlapping requests at once leave what each of them wrote', async (t) => {
      const { node, file } = await openDisk(t, make);
      const part = DISK_BYTES / 64;
      const model = await readFile(file);
      await Promise.all(
        Array.from({ length: 64 }, async (_, i) => {
          const bytes = patternBytes(part - 100, i);
          model.set(bytes, i * part + 33);
          await node.write(guestOffset(i * part + 33), bytes);
        }),
      );
      await node.flush();
      assert.ok((await readFile(file)).equals(model));
    });

    test('past the end is no space, and read-only is read-only', async (t) => {
      const { node } = await openDisk(t, make);
      const past = node.write(guestOffset(DISK_BYTES - 1), patternBytes(2));
      await assert.rejects(past, fails('ENOSPC', /ends at 4194304 bytes/));
      await assert.rejects(node.resize(DISK_BYTES * 2), fails('ENOSPC', /cannot grow/));
    });
  });
}

describe('NBD driver: block status', () => {
  for (const [name, make] of SERVERS.filter(([n]) => !n.includes('without structured'))) {
    test(`${name}: holes are holes, and what was written is none any more`, async (t) => {
      const { node } = await openDisk(t, make);
      const stored = async (offset: number, length: number) =>
        node.driver.stores?.(hostOffset(offset), length);
      assert.deepEqual(await stored(0, DISK_BYTES), { stored: true, lengthBytes: DISK_BYTES / 2 });
      const half = DISK_BYTES / 2;
      assert.deepEqual(await stored(half, half), { stored: false, lengthBytes: half });
      assert.equal((await stored(half + 5000, 10))?.stored, false);
      await node.write(guestOffset(half + 65_536), patternBytes(4096));
      assert.equal((await stored(half + 65_536, 4096))?.stored, true);
      await node.discard(guestOffset(0), half);
      await node.flush();
      assert.equal((await stored(0, 4096))?.stored, false);
    });
  }

  test('a server that trims and cannot zero still discards to zeros', async (t) => {
    const make: Make = (tt, socket, file) =>
      nbdkit(tt, socket, ['--filter=nozero', 'file', `file=${file}`, 'zeromode=none']);
    const { node, file } = await openDisk(t, make);
    await node.discard(guestOffset(4096), 1 << 20);
    await node.flush();
    const bytes = await readFile(file);
    assert.ok(bytes.subarray(4096, 4096 + (1 << 20)).every((b) => b === 0));
    assert.ok(bytes.subarray(0, 4096).every((b) => b !== 0));
    assert.ok((await stat(file)).blocks * 512 < DISK_BYTES / 2, 'the space is given back');
  });
});

describe('NBD driver: exports', () => {
  test('read-only, missing and unreachable exports are each told', async (t) => {
    const directory = await scratchDirectory(t);
    const file = join(directory, 'disk.raw');
    await writeFile(file, patternBytes(65_536));
    const socket = join(directory, 's');
    const server = await qemuNbd(t, socket, ['-r', '-x', 'a/b c', '-f', 'raw', file]);
    const url = (name: string) => `nbd+unix:///${name}?socket=${socket}`;
    const node = await remoteNode(t, driver, url('a/b%20c'));
    assert.equal(node.driver.remote?.isWritable, false);
    assert.deepEqual(await readBytes(node, 100, 1000), patternBytes(65_536).subarray(100, 1100));
    const writable = remoteNode(t, driver, url('a/b%20c'), { readOnly: false });
    await assert.rejects(writable, fails('EROFS', /for reading only/));
    await assert.rejects(remoteNode(t, driver, url('other')), fails('ENOENT', /no export 'other'/));
    await server.kill();
    await assert.rejects(remoteNode(t, driver, url('x')), fails('EIO', /ECONNREFUSED/));
    await assert.rejects(
      remoteNode(t, driver, 'nbds://localhost/x'),
      fails('EOPNOTSUPP', /over TLS/),
    );
  });

  test('several connections are used where the server allows it', async (t) => {
    const make: Make = (tt, socket, file) => nbdkit(tt, socket, ['file', `file=${file}`]);
    const { node, server, file } = await openDisk(t, make);
    const model = await readFile(file);
    const parts = await Promise.all(
      Array.from({ length: 64 }, (_, i) => readBytes(node, i * 65_536, 65_536)),
    );
    assert.ok(Buffer.concat(parts).equals(model));
    const accepted = server.log.match(/accepted connection/g)?.length ?? 0;
    assert.equal(accepted, 1 + 4, "one that looks whether it listens, and the driver's");
  });
});

describe('NBD driver: servers that go away', () => {
  test('killed and back: reads and writes in flight end well, and the file has them', async (t) => {
    for (const [name, make] of SERVERS.filter(([n]) => n === 'nbdkit' || n === 'qemu-nbd')) {
      const { node, server, file } = await openDisk(t, make);
      const model = await readFile(file);
      let working = true;
      const work = Array.from({ length: 8 }, async (_, worker) => {
        const part = DISK_BYTES / 8;
        for (let round = 0; working; round++) {
          const at = worker * part + ((round * 4096) % part);
          const bytes = patternBytes(4096, round);
          await node.write(guestOffset(at), bytes);
          model.set(bytes, at);
          assert.deepEqual(await readBytes(node, at, 4096), Buffer.from(bytes), name);
        }
      });
      try {
        for (let death = 0; death < 2; death++) {
          await sleep(100);
          await server.kill();
          await sleep(50);
          await server.start();
        }
      } finally {
        working = false;
      }
      await Promise.all(work);
      await node.flush();
      assert.ok((await readFile(file)).equals(model), name);
    }
  });

  test('a server that comes back without what it had answered gets it again', async (t) => {
    const make: Make = (tt, socket, file) => nbdkit(tt, socket, ['file', `file=${file}`]);
    const { node, server, file } = await openDisk(t, make);
    await node.write(guestOffset(0), patternBytes(4096, 1));
    await node.flush();
    const before = await readFile(file);
    const model = Buffer.from(before);
    for (let i = 0; i < 50; i++) {
      const bytes = patternBytes(10_000, i);
      await node.write(guestOffset(i * 3000), bytes);
      model.set(bytes, i * 3000);
    }
    await node.writeZeroes(guestOffset(20_000), 50_000, { unmap: true });
    model.fill(0, 20_000, 70_000);
    await server.kill();
    // A machine that lost its power has what was flushed, and no more.
    await writeFile(file, before);
    await server.start();
    await node.flush();
    assert.ok((await readFile(file)).equals(model));
  });

  test('another export under the same name is ESTALE, not a mix', async (t) => {
    const make: Make = (tt, socket, file) => nbdkit(tt, socket, ['file', `file=${file}`]);
    const { node, server, file } = await openDisk(t, make);
    await server.kill();
    await truncate(file, 2 * DISK_BYTES);
    await server.start();
    await assert.rejects(readBytes(node, 0, 10), fails('ESTALE', /another export now/));
    assert.equal(node.driver.remote?.isStale, true);
    await assert.rejects(node.flush(), fails('ESTALE', /another export now/));
  });

  test('a server that stays away fails requests at their deadline; one that hangs is left', async (t) => {
    const impatient = nbdDriver({
      firstPauseMs: 10,
      lastPauseMs: 50,
      deadlineMs: 800,
      silenceMs: 300,
      longSilenceMs: 300,
      progressMs: 50,
      handshakeMs: 500,
    });
    const directory = await scratchDirectory(t);
    const file = join(directory, 'disk.raw');
    await writeFile(file, patternBytes(65_536));
    const server = await nbdkit(t, join(directory, 's'), ['file', `file=${file}`]);
    const node = await remoteNode(t, impatient, server.url, { readOnly: false });
    await server.freeze();
    const read = readBytes(node, 0, 4096);
    await sleep(100);
    server.thaw();
    assert.deepEqual(await read, patternBytes(4096));
    await server.freeze();
    await assert.rejects(readBytes(node, 0, 4096), fails('EIO', /is not reached/));
    await assert.rejects(node.flush(), fails('EIO', /is not reached/));
    server.thaw();
    assert.deepEqual(await readBytes(node, 0, 4096), patternBytes(4096));
    await node.write(guestOffset(10), patternBytes(5, 9));
    await node.flush();
    assert.deepEqual((await readFile(file)).subarray(10, 15), patternBytes(5, 9));
  });

  test('qemu-img reads what was written through a qcow2 under the server', async (t) => {
    const directory = await scratchDirectory(t);
    const file = join(directory, 'disk.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', file, '4M']);
    const server = await qemuNbd(t, join(directory, 's'), ['-f', 'qcow2', file]);
    const node = await remoteNode(t, driver, server.url, { readOnly: false });
    const bytes = patternBytes(DISK_BYTES);
    await node.write(guestOffset(0), bytes);
    await node.flush();
    await node.close();
    await server.kill();
    await qemuImg(['check', '-q', '-r', 'all', file]);
    const raw = join(directory, 'out.raw');
    await qemuImg(['convert', '-O', 'raw', file, raw]);
    assert.ok((await readFile(raw)).equals(bytes));
  });
});
