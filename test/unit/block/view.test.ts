import assert from 'node:assert/strict';
import { truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { BlockError } from '../../../src/base/block-error.ts';
import { silentLog } from '../../../src/base/log.ts';
import { guestOffset } from '../../../src/base/units.ts';
import type { Node } from '../../../src/block/node.ts';
import { View } from '../../../src/block/view.ts';
import { type Cleanup, scratchDirectory } from '../../support/scratch.ts';
import { testGraph } from '../../support/test-graph.ts';

const BYTES = 100_000;

const viewOf = async (
  t: Cleanup,
  options: {
    allowShrink?: boolean;
    readOnlyReason?: string;
    detectZeroes?: 'off' | 'on' | 'unmap';
  } = {},
): Promise<View> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.raw`;
  await writeFile(path, 'begin');
  await truncate(path, BYTES);
  const graph = await testGraph({ directory });
  return new View({
    name: 'disk.raw',
    readOnlyReason: options.readOnlyReason ?? null,
    allowShrink: options.allowShrink ?? false,
    detectZeroes: options.detectZeroes ?? 'off',
    log: silentLog,
    open: () => graph.open({ path, format: 'raw', readOnly: options.readOnlyReason !== undefined }),
    close: (root) => graph.close(root),
  });
};

const isErrno = (errno: string) => (error: unknown) =>
  error instanceof BlockError && error.errno === errno;

test('a read is short only at the end of the file, and empty past it', async (t) => {
  const view = await viewOf(t);
  const bytes = new Uint8Array(100);
  assert.equal(await view.read(guestOffset(0), bytes), 100);
  assert.equal(await view.read(guestOffset(BYTES - 30), bytes), 30);
  assert.equal(await view.read(guestOffset(BYTES), bytes), 0);
  assert.equal(await view.read(guestOffset(BYTES * 3), bytes), 0);
  await view.close();
});

test('what a job wanted is not begun, and opens nothing, when the job was given up while it waited', async (t) => {
  const view = await viewOf(t);
  await view.open();
  const abort = new AbortController();
  let isBegun = false;
  const begin = async (): Promise<void> => {
    isBegun = true;
  };
  let end = (): void => undefined;
  const ended = new Promise<void>((resolve) => (end = resolve));
  const section = view.drained(() => ended);
  const closed = view.close();
  const wanted = view.withRoot(begin, abort.signal);
  abort.abort(new Error('given up'));
  end();
  await assert.rejects(wanted, /given up/);
  await Promise.all([section, closed]);
  assert.equal(isBegun, false);
  assert.equal(view.root, null);
});

test('writes past the end grow the file, also many at once', async (t) => {
  const view = await viewOf(t);
  await Promise.all(
    Array.from({ length: 10 }, (_, i) =>
      view.write(guestOffset(BYTES + i * 1000), new Uint8Array(1000).fill(i + 1)),
    ),
  );
  assert.equal(await view.lengthBytes(), BYTES + 10_000);
  const bytes = new Uint8Array(1);
  for (let i = 0; i < 10; i++) {
    await view.read(guestOffset(BYTES + i * 1000 + 500), bytes);
    assert.equal(bytes[0], i + 1);
  }
  await view.close();
});

test('a write of zeros takes no space with --detect-zeroes unmap, and another one is a write', async (t) => {
  for (const [detectZeroes, isHole] of [
    ['off', false],
    ['on', false],
    ['unmap', true],
  ] as const) {
    const view = await viewOf(t, { detectZeroes });
    await view.write(guestOffset(0), new Uint8Array(BYTES).fill(1));
    const full = await view.allocatedBytes();
    await view.write(guestOffset(8192), new Uint8Array(65_536));
    const some = new Uint8Array(4096);
    some[4095] = 1;
    await view.write(guestOffset(80_000), some);
    const found = new Uint8Array(BYTES);
    await view.read(guestOffset(0), found);
    const expected = new Uint8Array(BYTES).fill(1).fill(0, 8192, 8192 + 65_536);
    expected.set(some, 80_000);
    assert.deepEqual(found, expected);
    assert.equal((await view.allocatedBytes()) <= full - 65_536, isHole, detectZeroes);
    assert.equal(view.detectsZeroes, detectZeroes !== 'off');
    await view.close();
  }
});

test('shrinking is refused with EPERM unless it is allowed', async (t) => {
  const refusing = await viewOf(t);
  await assert.rejects(refusing.truncate(0), isErrno('EPERM'));
  assert.equal(await refusing.lengthBytes(), BYTES);
  await refusing.close();
  const allowing = await viewOf(t, { allowShrink: true });
  await allowing.truncate(1000);
  assert.equal(await allowing.lengthBytes(), 1000);
  await allowing.close();
});

test('a drained section waits for requests, holds new ones, and fails none', async (t) => {
  const view = await viewOf(t);
  await view.open();
  const events: string[] = [];
  await view.write(guestOffset(0), new Uint8Array(5000).fill(7));
  const first = view.read(guestOffset(0), new Uint8Array(5000)).then(() => events.push('first'));
  const draining = view.drained(async () => {
    events.push('drained');
    assert.equal(view.active, 0);
    await new Promise((resolve) => setTimeout(resolve, 20));
    events.push('end');
  });
  const bytes = new Uint8Array(1);
  const reading = view.read(guestOffset(0), bytes).then(() => events.push('read'));
  await Promise.all([first, draining, reading]);
  assert.deepEqual(
    events.filter((e) => e !== 'first'),
    ['drained', 'end', 'read'],
  );
  assert.ok(events.indexOf('first') < events.indexOf('end'));
  assert.equal(bytes[0], 7);
  await view.close();
});

test('a read-only view refuses every change with EROFS and says why', async (t) => {
  const view = await viewOf(t, { readOnlyReason: 'it is a backing image' });
  const changes = [
    view.write(guestOffset(0), new Uint8Array(1)),
    view.punchHole(guestOffset(0), 100),
    view.zeroRange(guestOffset(0), 100, { keepSize: true }),
    view.truncate(BYTES * 2),
  ];
  for (const change of changes) {
    await assert.rejects(
      change,
      (error: unknown) => isErrno('EROFS')(error) && /backing image/.test(String(error)),
    );
  }
  await view.close();
});

test('SEEK_HOLE finds the end of the file, and past the end is ENXIO', async (t) => {
  const view = await viewOf(t);
  assert.equal(await view.seek(guestOffset(0), 'data'), 0);
  assert.ok((await view.seek(guestOffset(0), 'hole')) <= BYTES);
  await assert.rejects(view.seek(guestOffset(BYTES), 'hole'), isErrno('ENXIO'));
  await view.close();
});

test('a view that is being closed is not opened again before that has ended', async (t) => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.raw`;
  await writeFile(path, new Uint8Array(BYTES));
  const graph = await testGraph({ directory });
  const events: string[] = [];
  let endClose = (): void => undefined;
  const view = new View({
    name: 'disk.raw',
    readOnlyReason: null,
    allowShrink: false,
    detectZeroes: 'off',
    log: silentLog,
    open: async () => {
      events.push('open');
      return graph.open({ path, format: 'raw', readOnly: false });
    },
    close: async (root) => {
      await new Promise<void>((resolve) => {
        endClose = resolve;
      });
      await graph.close(root);
      events.push('closed');
    },
  });
  await view.open();
  const closing = view.close();
  // A write asks for the length first, beside the drained section.
  const writing = view.write(guestOffset(0), new Uint8Array(512));
  await new Promise((resolve) => setImmediate(resolve));
  endClose();
  await Promise.all([closing, writing]);
  assert.deepEqual(events, ['open', 'closed', 'open']);
  const last = view.close();
  await new Promise((resolve) => setImmediate(resolve));
  endClose();
  await last;
});

test('a write that comes while a drained section opens the chain anew goes on over what it has opened', async (t) => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.raw`;
  await writeFile(path, new Uint8Array(BYTES));
  const graph = await testGraph({ directory });
  const open = (): Promise<Node> => graph.open({ path, format: 'raw', readOnly: false });
  const view = new View({
    name: 'disk.raw',
    readOnlyReason: null,
    allowShrink: false,
    log: silentLog,
    open,
    close: (root) => graph.close(root),
  });
  const before = await view.open();
  let swap = (): void => undefined;
  const mayGoOn = new Promise<void>((resolve) => {
    swap = resolve;
  });
  const section = view.drained(async () => {
    await graph.close(before);
    await mayGoOn;
    view.swapRoot(await open());
  });
  while (before.isOpen) await new Promise((resolve) => setImmediate(resolve));
  const writing = view.write(guestOffset(0), Buffer.from('guest'));
  const length = view.lengthBytes();
  await new Promise((resolve) => setImmediate(resolve));
  swap();
  await Promise.all([section, writing]);
  assert.equal(await length, BYTES);
  const found = Buffer.alloc(5);
  await view.read(guestOffset(0), found);
  assert.equal(found.toString(), 'guest');
  await view.close();
});
