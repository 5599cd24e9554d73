import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const CLUSTER_BYTES = 65_536;

/** Two guest clusters of data; the file's last clusters are its L2 table and those two. */
const made = async (t: Cleanup): Promise<{ directory: string; path: string; l2: number }> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '1M']);
  await qemuIo(path, ['write -P 7 0 64k', 'write -P 8 64k 64k']);
  const image = await readFile(path);
  const l1 = Number(image.readBigUInt64BE(40));
  return { directory, path, l2: Number(image.readBigUInt64BE(l1) & 0xff_ffff_ffff_fe00n) };
};

const isEio = (message: RegExp) => (error: unknown) =>
  error instanceof BlockError && error.errno === 'EIO' && message.test(error.describe());

const isMarked = async (path: string): Promise<boolean> => {
  const info = (await qemuImgJson('info', [path])) as {
    'format-specific': { data: { corrupt: boolean } };
  };
  return info['format-specific'].data.corrupt;
};

const DAMAGES: readonly {
  readonly what: string;
  readonly damage: (image: Buffer, l2: number) => void;
  readonly at: number;
  readonly message: RegExp;
}[] = [
  {
    what: 'an L2 entry that points to the refcount table',
    damage: (image, l2) => image.writeBigUInt64BE((1n << 63n) | 0x1_0000n, l2 + 8),
    at: CLUSTER_BYTES,
    message: /points to metadata/,
  },
  {
    what: 'an L2 entry that points to its own table',
    damage: (image, l2) => image.writeBigUInt64BE((1n << 63n) | BigInt(l2), l2 + 8),
    at: CLUSTER_BYTES,
    message: /points to metadata/,
  },
  {
    what: 'a refcount of 0 for the refcount table',
    damage: (image) => {
      const table = Number(image.readBigUInt64BE(48));
      image.writeUInt16BE(0, Number(image.readBigUInt64BE(table)) + 2);
    },
    at: 5 * CLUSTER_BYTES,
    message: /holds metadata/,
  },
  {
    what: 'a refcount block where the L1 table is',
    damage: (image) => {
      const table = Number(image.readBigUInt64BE(48));
      image.writeBigUInt64BE(image.readBigUInt64BE(40), table + 8);
    },
    at: 0,
    message: /two structures/,
  },
  {
    what: 'a refcount block that is named twice',
    damage: (image) => {
      const table = Number(image.readBigUInt64BE(48));
      image.writeBigUInt64BE(image.readBigUInt64BE(table), table + 16);
    },
    at: 0,
    message: /two structures/,
  },
];

for (const { what, damage, at, message } of DAMAGES) {
  test(`a write that meets ${what} fails, marks the image durably, and reading goes on`, async (t) => {
    const { directory, path, l2 } = await made(t);
    const image = await readFile(path);
    damage(image, l2);
    await writeFile(path, image);
    const graph = await testGraph({ directory });
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    assert.equal(await isMarked(path), false);
    const bytes = new Uint8Array(512).fill(9);
    await assert.rejects(node.write(guestOffset(at), bytes), isEio(message));
    assert.equal(await isMarked(path), true, 'before the write was answered');
    await assert.rejects(node.write(guestOffset(0), bytes), isEio(/found corrupt/));
    await assert.rejects(node.discard(guestOffset(0), CLUSTER_BYTES), isEio(/found corrupt/));
    await assert.rejects(node.resize(CLUSTER_BYTES), isEio(/found corrupt/));
    const snapshot = node.withSnapshots('create', (snapshots) =>
      snapshots.create({ name: 's', dateSeconds: 0, dateNanoseconds: 0 }),
    );
    await assert.rejects(snapshot, isEio(/found corrupt/));
    await node.read(guestOffset(0), bytes);
    assert.deepEqual(bytes, new Uint8Array(512).fill(7));
    const m = await node.mapping(guestOffset(0), 512);
    assert.ok(m.kind === 'data' && !m.inPlace, 'workers do not write in place any more');
    assert.equal(node.driver.isMarkedCorrupt, true);
    await graph.close(node);
    const after = await readFile(path);
    assert.equal(after.readUInt32BE(76), 2);
    after.writeUInt32BE(0, 76);
    assert.deepEqual(after.subarray(0, image.length), image, 'nothing else was written');
    const again = graph.open({ path, format: 'qcow2', readOnly: false });
    await assert.rejects(again, (e: unknown) => e instanceof BlockError && e.errno === 'EROFS');
    const reader = await graph.open({ path, format: 'qcow2', readOnly: true });
    await reader.read(guestOffset(0), bytes);
    await graph.close(reader);
  });
}

/** Where the metadata of a snapshot and a bitmap lie. */
interface Places {
  /** The active L2 table; the snapshot has another. */
  readonly l2: number;
  readonly snapshotTable: number;
  readonly savedL1: number;
  readonly savedL2: number;
  readonly directory: number;
  readonly bitmapTable: number;
  readonly bits: number;
}

const offsetAt = (image: Buffer, at: number): number =>
  Number(image.readBigUInt64BE(at) & 0xff_ffff_ffff_fe00n);

const BITMAPS = 0x2385_2875;

const placesIn = (image: Buffer): Places => {
  const snapshotTable = offsetAt(image, 64);
  const savedL1 = offsetAt(image, snapshotTable);
  let at = image.readUInt32BE(100);
  while (image.readUInt32BE(at) !== BITMAPS)
    at += 8 + Math.ceil(image.readUInt32BE(at + 4) / 8) * 8;
  const directory = Number(image.readBigUInt64BE(at + 8 + 16));
  const bitmapTable = offsetAt(image, directory);
  return {
    l2: offsetAt(image, offsetAt(image, 40)),
    snapshotTable,
    savedL1,
    savedL2: offsetAt(image, savedL1),
    directory,
    bitmapTable,
    bits: offsetAt(image, bitmapTable),
  };
};

/** Made once, damaged in many ways. Guest clusters 0 and 1 were written before the snapshot, 1 to 3 after it. */
const madeWithSnapshot = async (t: Cleanup): Promise<{ directory: string; sound: string }> => {
  const directory = await scratchDirectory(t);
  const sound = `${directory}/sound.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', sound, '1M']);
  await qemuIo(sound, ['write -P 7 0 128k']);
  await qemuImg(['snapshot', '-c', 'kept', sound]);
  await qemuImg(['bitmap', '--add', sound, 'changes']);
  await qemuIo(sound, ['write -P 8 64k 64k', 'write -c -P 9 128k 64k', 'write -P 9 192k 64k']);
  return { directory, sound };
};

const SAVED = ['snapshotTable', 'savedL1', 'savedL2'] as const;
const KEPT = [...SAVED, 'directory', 'bitmapTable', 'bits'] as const;

/** A damage of which a write to `at` must notice before it changes anything but the corrupt bit. */
const noticesWrite = async (
  paths: { readonly directory: string; readonly sound: string },
  damage: (image: Buffer, places: Places) => void,
  at: number,
  what: string,
): Promise<void> => {
  const { directory, sound } = paths;
  const path = `${directory}/damaged.qcow2`;
  await copyFile(sound, path);
  const image = await readFile(path);
  damage(image, placesIn(image));
  await writeFile(path, image);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  const bytes = new Uint8Array(512).fill(9);
  await assert.rejects(node.write(guestOffset(at), bytes), isEio(/./), what);
  assert.equal(node.driver.isMarkedCorrupt, true, what);
  await assert.rejects(node.discard(guestOffset(0), CLUSTER_BYTES), isEio(/found corrupt/), what);
  await node.read(guestOffset(192 << 10), bytes);
  assert.deepEqual(bytes, new Uint8Array(512).fill(9), `${what}: reading goes on`);
  await graph.close(node);
  assert.equal((await readFile(path)).readUInt32BE(76), 2, `${what}: marked`);
  const places = placesIn(image);
  const kept = await readFile(path);
  for (const place of KEPT) {
    const start = places[place];
    // What the recording bitmap is marked with is written in place.
    if (place === 'directory') continue;
    const end = start + CLUSTER_BYTES;
    const isSame = kept.subarray(start, end).equals(image.subarray(start, end));
    assert.ok(isSame, `${what}: ${place} is what it was`);
  }
};

test("no write lands in a snapshot's or a bitmap's metadata, whatever points there", async (t) => {
  const paths = await madeWithSnapshot(t);
  for (const place of KEPT) {
    const entry = (copied: boolean) => (image: Buffer, places: Places) =>
      image.writeBigUInt64BE((copied ? 1n << 63n : 0n) | BigInt(places[place]), places.l2 + 8);
    await noticesWrite(paths, entry(true), CLUSTER_BYTES, `an L2 entry into ${place}`);
    // It would be copied, and what it names given back.
    await noticesWrite(paths, entry(false), CLUSTER_BYTES, `a shared L2 entry into ${place}`);
    const packed = (image: Buffer, places: Places): void => {
      image.writeBigUInt64BE((1n << 62n) | BigInt(places[place] + 512), places.l2 + 8);
    };
    await noticesWrite(paths, packed, CLUSTER_BYTES, `a packed cluster in ${place}`);
    const uncounted = (image: Buffer, places: Places): void => {
      const block = offsetAt(image, offsetAt(image, 48));
      // Nothing else of the file is free: it would be taken first.
      for (let i = 0; i < image.length / CLUSTER_BYTES; i++)
        if (image.readUInt16BE(block + i * 2) === 0) image.writeUInt16BE(1, block + i * 2);
      image.writeUInt16BE(0, block + (places[place] / CLUSTER_BYTES) * 2);
    };
    await noticesWrite(paths, uncounted, 512 << 10, `a refcount of 0 for ${place}`);
  }
});

test('no write lands in an L2 table that a snapshot has too, or where its tables and the image’s own overlap', async (t) => {
  const paths = await madeWithSnapshot(t);
  const l1 = (table: keyof Places) => (image: Buffer, places: Places) =>
    image.writeBigUInt64BE(BigInt(places[table]) | (1n << 63n), offsetAt(image, 40));
  const read = { ...paths, sound: `${paths.directory}/one.qcow2` };
  // Before anything was written after the snapshot: the table is the one that it keeps.
  await copyFile(paths.sound, read.sound);
  await noticesShared(read.sound, paths.directory, l1('savedL2'));
  for (const place of SAVED) {
    await noticesShared(paths.sound, paths.directory, (image, places) => {
      if (place === 'savedL1')
        image.writeBigUInt64BE(BigInt(offsetAt(image, 40)), places.snapshotTable);
      else if (place === 'savedL2')
        image.writeBigUInt64BE(BigInt(offsetAt(image, 48)), places.savedL1);
      else l1('savedL1')(image, places);
    });
  }
});

/** Tables that would be written in two meanings: the first write marks the image. */
const noticesShared = async (
  sound: string,
  directory: string,
  damage: (image: Buffer, places: Places) => void,
): Promise<void> => {
  const path = `${directory}/shared.qcow2`;
  const image = await readFile(sound);
  damage(image, placesIn(image));
  await writeFile(path, image);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  const write = node.write(guestOffset(512 << 10), new Uint8Array(512));
  await assert.rejects(write, isEio(/snapshot kept|two structures|other metadata/));
  await graph.close(node);
  const after = await readFile(path);
  assert.equal(after.readUInt32BE(76), 2);
  after.writeUInt32BE(0, 76);
  // Bitmaps that record are marked before the first write.
  const { directory: marked } = placesIn(image);
  for (const bytes of [after, image]) bytes.subarray(marked, marked + 64).fill(0);
  assert.ok(after.equals(image), 'nothing else was written');
};

test("reading goes on where a damaged snapshot claims the guest's own clusters", async (t) => {
  const { directory, sound } = await madeWithSnapshot(t);
  const image = await readFile(sound);
  const { l2, savedL1 } = placesIn(image);
  for (const cluster of [1, 2, 3]) {
    const path = `${directory}/claimed.qcow2`;
    const damaged = Buffer.from(image);
    const entry = image.readBigUInt64BE(l2 + 8 * cluster) & ((1n << 56n) - 1n);
    damaged.writeBigUInt64BE((entry / 65_536n) * 65_536n, savedL1);
    await writeFile(path, damaged);
    const graph = await testGraph({ directory });
    const node = await graph.open({ path, format: 'qcow2', readOnly: false });
    const bytes = new Uint8Array(3 * CLUSTER_BYTES);
    await node.read(guestOffset(CLUSTER_BYTES), bytes);
    const expected = new Uint8Array(3 * CLUSTER_BYTES).fill(9).fill(8, 0, CLUSTER_BYTES);
    assert.deepEqual(bytes, expected);
    const write = node.write(guestOffset(cluster * CLUSTER_BYTES), new Uint8Array(512));
    await assert.rejects(write, isEio(/snapshot's metadata/));
    await node.read(guestOffset(CLUSTER_BYTES), bytes);
    assert.deepEqual(bytes, expected, 'also when it is marked');
    await graph.close(node);
  }
});

test('an image whose refcount table is damaged is read, and not written', async (t) => {
  const { directory, path } = await made(t);
  const image = await readFile(path);
  const table = Number(image.readBigUInt64BE(48));
  for (const value of [0x1234n, 1n << 40n, (1n << 63n) | 0x2_0000n]) {
    image.writeBigUInt64BE(value, table);
    await writeFile(path, image);
    const graph = await testGraph({ directory });
    const writing = graph.open({ path, format: 'qcow2', readOnly: false });
    await assert.rejects(
      writing,
      (e: unknown) =>
        e instanceof BlockError && e.errno === 'EROFS' && /refcount table entry 0/.test(e.message),
    );
    const node = await graph.open({ path, format: 'qcow2', readOnly: true });
    const bytes = new Uint8Array(CLUSTER_BYTES);
    await node.read(guestOffset(CLUSTER_BYTES), bytes);
    assert.ok(bytes.every((byte) => byte === 8));
    await graph.close(node);
    assert.ok((await readFile(path)).equals(image), 'nothing was written');
  }
});

test('what breaks a rule that nobody needs is read and written as QEMU does', async (t) => {
  const { directory, path, l2 } = await made(t);
  const image = await readFile(path);
  // COPIED of no cluster; a header whose length is no multiple of 8.
  image.writeBigUInt64BE(1n << 63n, l2 + 16);
  const extensions = Buffer.from(image.subarray(112, 400));
  image.writeUInt32BE(117, 100);
  extensions.copy(image, 117);
  await writeFile(path, image);
  const shown = async (): Promise<Buffer> => {
    await qemuImg(['convert', '-f', 'qcow2', '-O', 'raw', path, `${path}.flat`]);
    return readFile(`${path}.flat`);
  };
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  const bytes = new Uint8Array(node.lengthBytes);
  await node.read(guestOffset(0), bytes);
  assert.ok((await shown()).equals(bytes));
  await node.write(guestOffset(2 * CLUSTER_BYTES + 100), new Uint8Array(512).fill(5));
  await graph.close(node);
  bytes.fill(5, 2 * CLUSTER_BYTES + 100, 2 * CLUSTER_BYTES + 612);
  assert.ok((await shown()).equals(bytes));
  await qemuImg(['check', '-q', path]);
});

/** Writes that are done at once meet corruption behind the first write of an opening, which is done the usual way. */
const refusedLater = async (
  directory: string,
  path: string,
  { first, later, message }: { first: number; later: number; message: RegExp },
): Promise<void> => {
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  const bytes = new Uint8Array(4096).fill(9);
  await node.write(guestOffset(first), bytes);
  assert.equal(await isMarked(path), false);
  await assert.rejects(node.write(guestOffset(later), bytes), isEio(message));
  assert.equal(await isMarked(path), true);
  await graph.close(node);
};

test('a later write that meets a refcount of 0 for metadata, behind a free cluster, marks the image too', async (t) => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '2G']);
  await qemuIo(path, ['write 0 64k', 'write 1G 64k', 'discard 0 64k']);
  const image = await readFile(path);
  const l2 = offsetAt(image, offsetAt(image, 40) + 16);
  const block = offsetAt(image, offsetAt(image, 48));
  assert.equal(image.readUInt16BE(block + (l2 / CLUSTER_BYTES) * 2), 1);
  assert.equal(image.readUInt16BE(block + (l2 / CLUSTER_BYTES - 1) * 2), 0, 'a free one before it');
  image.writeUInt16BE(0, block + (l2 / CLUSTER_BYTES) * 2);
  await writeFile(path, image);
  const places = { first: 128 * 1024, later: 256 * 1024 };
  await refusedLater(directory, path, { ...places, message: /holds metadata/ });
});

test('a later write to a data file goes nowhere but to the place of its guest offset', async (t) => {
  const directory = await scratchDirectory(t);
  const [path, data] = [`${directory}/disk.qcow2`, `${directory}/disk.data`];
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', `data_file=${data}`, path, '1M']);
  await qemuIo(path, ['write -P 7 0 1M']);
  const image = await readFile(path);
  const l2 = offsetAt(image, offsetAt(image, 40));
  image.writeBigUInt64BE((1n << 63n) | BigInt(5 * CLUSTER_BYTES), l2 + 8);
  await writeFile(path, image);
  const places = { first: 0, later: CLUSTER_BYTES };
  await refusedLater(directory, path, { ...places, message: /is not the guest offset/ });
  const after = await readFile(data);
  assert.ok(after.subarray(CLUSTER_BYTES).every((byte) => byte === 7));
});
