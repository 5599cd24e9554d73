/**
 * Requests that meet in one encrypted sector, over a file that does every write in small pieces with time between them: what
 * a reader gets is old or new and never noise, and no byte of a write is lost to another's.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate, setTimeout } from 'node:timers/promises';
import { file as hostFile } from '../../drivers/file/index.ts';
import { present } from '../../src/base/assert.ts';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { Node } from '../../src/block/node.ts';
import { keyOf, makeLuksImage } from '../support/encrypted.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const PIECE_BYTES = 200;
const ROUNDS = countOf(30);

/** What writes of one sector wait for. */
let gate: Promise<unknown> | null = null;

/** A host whose writes are far from atomic. */
const slowWrites: DriverDescriptor = {
  ...hostFile,
  openPath: async (request) => {
    const inner = present(await hostFile.openPath?.(request), 'the file driver opens paths');
    const write = present(inner.write, 'the file driver writes').bind(inner);
    inner.write = async (offset, buffer) => {
      if (buffer.length > 8192) return write(offset, buffer);
      if (buffer.length === 512) await gate;
      for (let done = 0; done < buffer.length; done += PIECE_BYTES) {
        await write(guestOffset(offset + done), buffer.subarray(done, done + PIECE_BYTES));
        await setImmediate();
      }
    };
    return inner;
  },
};

const opened = async (t: Cleanup): Promise<{ node: Node; close: () => Promise<void> }> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await makeLuksImage(path, { bytes: 1 << 20 });
  const graph = await testGraph({ directory, file: slowWrites, secrets: [keyOf(directory)] });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  await node.write(guestOffset(0), new Uint8Array(1 << 20).fill(1));
  return { node, close: () => graph.close(node) };
};

test('who reads a sector that is being written sees it before or after, never noise', async (t) => {
  const { node, close } = await opened(t);
  for (let round = 0; round < ROUNDS; round++) {
    const [before, after] = [1 + (round % 200), 2 + (round % 200)];
    const reads = Array.from({ length: 8 }, async (_, i) => {
      for (let turn = 0; turn < i; turn++) await setImmediate();
      const bytes = new Uint8Array(2048);
      await node.read(guestOffset(4096), bytes);
      for (let at = 0; at < bytes.length; at += 512) {
        const sector = bytes.subarray(at, at + 512);
        const isWhole = sector.every((byte) => byte === sector[0]);
        assert.ok(isWhole && (sector[0] === before || sector[0] === after), `round ${round}`);
      }
    });
    const write = node.write(guestOffset(4096), new Uint8Array(2048).fill(after));
    await Promise.all([...reads, write]);
  }
  await close();
});

test('a write of part of a sector keeps what another writes to the rest of it', async (t) => {
  const { node, close } = await opened(t);
  const random = seededRandom(SEED);
  for (let round = 0; round < ROUNDS; round++) {
    const whole = 2 + (round % 100);
    const [start, end] = [100 + random.below(200), 400 + random.below(500)];
    const writes = [
      node.write(guestOffset(start), Buffer.alloc(end - start, 201)),
      node.write(guestOffset(0), Buffer.alloc(1024, whole)),
      node.write(guestOffset(1100), Buffer.alloc(100, 202)),
      node.write(guestOffset(1200), Buffer.alloc(100, 203)),
    ];
    await Promise.all(writes);
    const bytes = Buffer.alloc(1536);
    await node.read(guestOffset(0), bytes);
    const isRight = bytes.subarray(0, 1024).every((byte, at) => {
      if (byte === whole) return true;
      return byte === 201 && at >= start && at < end;
    });
    assert.ok(isRight, `seed ${SEED}, round ${round}`);
    assert.ok(bytes.subarray(1100, 1200).every((byte) => byte === 202));
    assert.ok(bytes.subarray(1200, 1300).every((byte) => byte === 203));
  }
  await close();
});

test('a slow write of part of a sector brings nothing back that was zeroed meanwhile', async (t) => {
  const { node, close } = await opened(t);
  for (let round = 0; round < 4; round++) {
    await node.write(guestOffset(0), new Uint8Array(65_536).fill(9));
    let isZeroed = (): void => undefined;
    const zeroed = new Promise<void>((resolve) => {
      isZeroed = resolve;
    });
    // Until it is zeroed; or for a while, when that waits for the write.
    gate = Promise.race([zeroed, setTimeout(50)]);
    const slow = node.write(guestOffset(700), new Uint8Array(100).fill(7));
    await setTimeout(5);
    const zeroing = node
      .writeZeroes(guestOffset(0), 65_536, { unmap: false })
      .then(() => node.write(guestOffset(40_000), new Uint8Array(100).fill(8)));
    await zeroing.then(isZeroed);
    await slow;
    gate = null;
    const bytes = new Uint8Array(65_536);
    await node.read(guestOffset(0), bytes);
    const outside = bytes.every(
      (byte, i) => byte === 0 || (byte === 7 && i >= 700 && i < 800) || (byte === 8 && i >= 40_000),
    );
    assert.ok(outside, `round ${round}`);
  }
  await close();
});
