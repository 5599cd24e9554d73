/** What every driver promises, by its capabilities: one suite, run for each driver by a file of its own. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { DriverDescriptor } from '../../src/block/driver.ts';
import type { Graph } from '../../src/block/graph.ts';
import type { Node } from '../../src/block/node.ts';
import type { SecretSource } from '../../src/block/secrets.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

export interface Subject {
  readonly descriptor: DriverDescriptor;
  /** Variants of images: a label and how to make one of `bytes` at a path. */
  readonly variants: readonly {
    readonly label: string;
    readonly make: (path: string, bytes: number) => Promise<void>;
  }[];
  /** Keys of the images of a directory. */
  readonly secrets?: (directory: string) => readonly SecretSource[];
  /** Throws when the finished image is not sound. */
  readonly verify: (path: string) => Promise<void>;
  /** Serves the file at a path for the test: the URL by which it is opened. */
  readonly serve?: (t: Cleanup, path: string) => Promise<string>;
}

const DISK_BYTES = 1 << 20;

interface Opened {
  readonly graph: Graph;
  readonly node: Node;
  /** Of the file, or the URL that it is served by. */
  readonly path: string;
  readonly file: string;
}

const pattern = (length: number, seed: number): Uint8Array => {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = 1 + ((i * 7 + seed) % 255);
  return bytes;
};

const read = async (node: Node, offset: number, length: number): Promise<Uint8Array> => {
  const bytes = new Uint8Array(length).fill(0xa5);
  await node.read(guestOffset(offset), bytes);
  return bytes;
};

const isErrno = (errno: string) => (error: unknown) =>
  error instanceof BlockError && error.errno === errno;

export const conformance = (subject: Subject): void => {
  for (const variant of subject.variants) defineTests(subject, variant);
};

const defineTests = (subject: Subject, variant: Subject['variants'][number]): void => {
  const { descriptor, verify } = subject;
  const { name, capabilities } = descriptor;
  const title = (promise: string): string => `${name} ${variant.label}: ${promise}`;

  const opened = async (t: Cleanup, readOnly = false): Promise<Opened> => {
    const directory = await scratchDirectory(t);
    const file = `${directory}/disk.${name}`;
    await variant.make(file, DISK_BYTES);
    const path = (await subject.serve?.(t, file)) ?? file;
    const graph = await testGraph({ directory, secrets: subject.secrets?.(directory) ?? [] });
    const node = await graph.open({ path, format: name, readOnly });
    return { graph, node, path, file };
  };
  const finished = async ({ graph, node, file }: Opened): Promise<void> => {
    await graph.close(node);
    await verify(file);
  };

  test(title('what was written is read, at every alignment'), async (t) => {
    const o = await opened(t);
    const model = await read(o.node, 0, DISK_BYTES);
    for (const [i, [offset, length]] of [
      [0, 1],
      [511, 3],
      [4096, 4096],
      [65_535, 2],
      [65_536 * 2 - 700, 70_000],
      [DISK_BYTES - 5, 5],
    ].entries()) {
      const bytes = pattern(length ?? 0, i);
      await o.node.write(guestOffset(offset ?? 0), bytes);
      model.set(bytes, offset);
      assert.deepEqual(await read(o.node, 0, DISK_BYTES), model);
    }
    await finished(o);
  });

  test(title('what was flushed and closed is there when it is opened again'), async (t) => {
    const o = await opened(t);
    await o.node.write(guestOffset(12_345), pattern(100_000, 1));
    await o.node.flush();
    const model = await read(o.node, 0, DISK_BYTES);
    await finished(o);
    const node = await o.graph.open({ path: o.path, format: name, readOnly: true });
    assert.deepEqual(await read(node, 0, DISK_BYTES), model);
    await o.graph.close(node);
  });

  test(title('zeroed and discarded ranges read as zeros, their neighbours stay'), async (t) => {
    const o = await opened(t);
    const model = pattern(DISK_BYTES, 9);
    await o.node.write(guestOffset(0), model);
    const zero = async (
      offset: number,
      length: number,
      run: () => Promise<void>,
    ): Promise<void> => {
      await run();
      model.fill(0, offset, offset + length);
      assert.deepEqual(await read(o.node, 0, DISK_BYTES), model);
    };
    await zero(100, 1000, () => o.node.writeZeroes(guestOffset(100), 1000, { unmap: false }));
    await zero(65_000, 200_000, () =>
      o.node.writeZeroes(guestOffset(65_000), 200_000, { unmap: true }),
    );
    await zero(300_001, 300_000, () => o.node.discard(guestOffset(300_001), 300_000));
    await zero(DISK_BYTES - 70_000, 70_000, () =>
      o.node.discard(guestOffset(DISK_BYTES - 70_000), 70_000),
    );
    await finished(o);
  });

  test(title('a partial write after write-zeroes brings no old data back'), async (t) => {
    const o = await opened(t);
    await o.node.write(guestOffset(0), pattern(DISK_BYTES, 3));
    const model = pattern(DISK_BYTES, 3);
    for (const unmap of [true, false]) {
      await o.node.writeZeroes(guestOffset(0), 300_000, { unmap });
      model.fill(0, 0, 300_000);
      await o.node.write(guestOffset(100_000), pattern(10, 5));
      model.set(pattern(10, 5), 100_000);
      assert.deepEqual(await read(o.node, 0, DISK_BYTES), model);
    }
    await finished(o);
  });

  test(title('allocating changes no byte'), async (t) => {
    const o = await opened(t);
    await o.node.write(guestOffset(70_000), pattern(500, 4));
    const model = await read(o.node, 0, DISK_BYTES);
    await o.node.allocate(guestOffset(0), DISK_BYTES);
    assert.deepEqual(await read(o.node, 0, DISK_BYTES), model);
    await finished(o);
  });

  test(title('block status covers a range, and zero means that it reads as zeros'), async (t) => {
    const o = await opened(t);
    await o.node.write(guestOffset(200_000), pattern(100_000, 6));
    await o.node.discard(guestOffset(230_000), 50_000);
    for (let at = 0; at < DISK_BYTES; ) {
      const status = await o.node.blockStatus(guestOffset(at), DISK_BYTES - at);
      assert.ok(status.lengthBytes > 0 && at + status.lengthBytes <= DISK_BYTES);
      if (status.zero) {
        const bytes = await read(o.node, at, status.lengthBytes);
        assert.ok(
          bytes.every((b) => b === 0),
          `zero at ${at}`,
        );
      }
      at += status.lengthBytes;
    }
    await finished(o);
  });

  test(title('ranges past the end are refused, and nothing is done'), async (t) => {
    const o = await opened(t);
    const bytes = new Uint8Array(10);
    await assert.rejects(o.node.read(guestOffset(DISK_BYTES - 5), bytes), isErrno('EINVAL'));
    await assert.rejects(o.node.write(guestOffset(DISK_BYTES - 5), bytes), isErrno('EINVAL'));
    await assert.rejects(o.node.discard(guestOffset(DISK_BYTES), 1), isErrno('EINVAL'));
    await o.node.write(guestOffset(0), new Uint8Array(0));
    await finished(o);
  });

  test(title('an image opened read-only is not written'), async (t) => {
    const o = await opened(t, true);
    await assert.rejects(o.node.write(guestOffset(0), pattern(1, 1)), isErrno('EROFS'));
    await assert.rejects(o.node.discard(guestOffset(0), 512), isErrno('EROFS'));
    await assert.rejects(o.node.resize(DISK_BYTES * 2), isErrno('EROFS'));
    await o.node.flush();
    await finished(o);
  });

  if (capabilities.grow === true) {
    test(title('what an image grows by reads as zeros'), async (t) => {
      const o = await opened(t);
      await o.node.write(guestOffset(DISK_BYTES - 1000), pattern(1000, 2));
      const model = new Uint8Array(3 * DISK_BYTES);
      model.set(await read(o.node, 0, DISK_BYTES));
      await o.node.resize(3 * DISK_BYTES);
      assert.equal(o.node.lengthBytes, 3 * DISK_BYTES);
      assert.deepEqual(await read(o.node, 0, 3 * DISK_BYTES), model);
      await o.node.write(guestOffset(3 * DISK_BYTES - 3), pattern(3, 1));
      await finished(o);
    });
  }

  if (capabilities.shrink === true) {
    test(title('what was cut off does not come back when the image grows again'), async (t) => {
      const o = await opened(t);
      await o.node.write(guestOffset(0), pattern(DISK_BYTES, 8));
      await o.node.resize(100_352);
      await o.node.resize(DISK_BYTES);
      const model = new Uint8Array(DISK_BYTES);
      model.set(pattern(DISK_BYTES, 8).subarray(0, 100_352));
      assert.deepEqual(await read(o.node, 0, DISK_BYTES), model);
      await finished(o);
    });
  }

  test(title('thirty-two requests at once leave what each of them wrote'), async (t) => {
    const o = await opened(t);
    const model = await read(o.node, 0, DISK_BYTES);
    const part = DISK_BYTES / 32;
    await Promise.all(
      Array.from({ length: 32 }, async (_, i) => {
        const offset = i * part + 17 * i;
        const bytes = pattern(part - 40 * i - 20, i);
        await o.node.write(guestOffset(offset), bytes);
        model.set(bytes, offset);
      }),
    );
    assert.deepEqual(await read(o.node, 0, DISK_BYTES), model);
    await finished(o);
  });
};
