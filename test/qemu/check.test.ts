import assert from 'node:assert/strict';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { IMAGE_MATRIX } from '../support/images.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { suiteDirectory } from '../support/scratch.ts';
import { PROGRAM, run } from '../support/vdiskfs.ts';

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const ANY_RESULT = [0, 1, 2, 3];

/** Damaged images per base image. */
const COUNT = countOf(12);

/** Same totals and same exit status as qemu-img; what both say. False when qemu-img does not even open the image. */
const assertSameCheck = async (image: string, context: string): Promise<boolean> => {
  const theirs = await run('qemu-img', ['check', '--output=json', image]);
  const ours = await vdiskfs(['check', '--json', image]);
  if (theirs.stdout === '') {
    assert.equal(ours.status, 1, `${context}: qemu-img: ${theirs.stderr}; vdiskfs: ${ours.stderr}`);
    return false;
  }
  const says = `${context}\nqemu-img:\n${theirs.stderr}\nvdiskfs:\n${ours.stderr}`;
  assert.notEqual(ours.stdout, '', says);
  assert.deepEqual(JSON.parse(ours.stdout), JSON.parse(theirs.stdout), says);
  assert.equal(ours.status, theirs.status, says);
  return true;
};

/** Where the 8-byte entries of an image's tables are: L1, L2, refcount table, refcount blocks. */
const entryPlaces = (image: Buffer): number[] => {
  const offsetAt = (at: number): number => Number(image.readBigUInt64BE(at) & OFFSET_MASK);
  const clusterBytes = 2 ** image.readUInt32BE(20);
  const l1 = offsetAt(40);
  const refcountTable = offsetAt(48);
  const places: number[] = [refcountTable, refcountTable + 8];
  const block = offsetAt(refcountTable);
  for (let i = 0; i < Math.min(clusterBytes / 8, 40); i++) places.push(block + i * 8);
  for (let i = 0; i < Math.min(image.readUInt32BE(36), 16); i++) {
    places.push(l1 + i * 8);
    const l2 = offsetAt(l1 + i * 8);
    if (l2 === 0) continue;
    for (let j = 0; j < Math.min(clusterBytes / 8, 200); j++) places.push(l2 + j * 8);
  }
  return places.filter((p) => p + 8 <= image.length);
};

/** One change of an entry: a flipped bit, nothing, another entry, another cluster, COPIED, anything. */
const damage = (image: Buffer, places: readonly number[], random: Random): void => {
  const at = random.pick(places);
  const clusterBytes = 2 ** image.readUInt32BE(20);
  const u32 = (): bigint => BigInt(random.below(2 ** 32));
  const cluster = random.below(image.length / clusterBytes + 3);
  const copied = BigInt(random.below(2)) << 63n;
  const flip = (offset: number, bit: number): void => {
    image.writeUInt8(image.readUInt8(offset) ^ (1 << bit), offset);
  };
  const ways = [
    () => flip(at + random.below(8), random.below(8)),
    () => image.writeBigUInt64BE(0n, at),
    () => image.writeBigUInt64BE(image.readBigUInt64BE(random.pick(places)), at),
    () => image.writeBigUInt64BE(copied | BigInt(cluster * clusterBytes), at),
    () => flip(at, 7),
    () => image.writeBigUInt64BE((u32() << 32n) | u32(), at),
  ];
  random.pick(ways)();
};

describe('check', () => {
  const scratch = suiteDirectory();

  for (const recipe of IMAGE_MATRIX) {
    test(`counts what qemu-img counts: ${recipe.name}`, async () => {
      const image = await recipe.make(scratch.path);
      assert.ok(await assertSameCheck(image, recipe.name));
    });
  }

  for (const [clusterBytes, refcountBits, extended] of [
    [512, 1, 'off'],
    [512, 64, 'off'],
    [4096, 16, 'off'],
    [65536, 4, 'off'],
    [16384, 16, 'on'],
  ] as const) {
    const name = `${clusterBytes}, ${refcountBits}, subclusters ${extended}`;
    test(`finds what qemu-img finds in damaged tables: ${name}`, async () => {
      const random = seededRandom(SEED + clusterBytes + refcountBits);
      const image = join(scratch.path, 'damaged.qcow2');
      const shape = `cluster_size=${clusterBytes},refcount_bits=${refcountBits}`;
      const options = `${shape},extended_l2=${extended}`;
      const size = String(clusterBytes * 300);
      await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, image, size]);
      const at = (): number => random.below(280) * clusterBytes;
      const writes = Array.from(
        { length: 25 },
        (_, i) => `write -P ${i + 1} ${at()} ${clusterBytes * 3}`,
      );
      const zeroes = Array.from({ length: 5 }, () => `write -z ${at()} ${clusterBytes * 2}`);
      await qemuIo(image, [...writes, ...zeroes]);
      if (refcountBits > 1) {
        const packed = [295, 296, 297].map(
          (c) => `write -c -P 7 ${c * clusterBytes} ${clusterBytes}`,
        );
        await qemuIo(image, packed);
        await qemuImg(['snapshot', '-c', 'one', image]);
        await qemuIo(image, [`write -P 9 ${at()} ${clusterBytes * 3}`]);
      }
      const good = await readFile(image);
      const places = entryPlaces(good);
      for (let i = 0; i < COUNT; i++) {
        const bad = Buffer.from(good);
        const changes = 1 + random.below(3);
        for (let k = 0; k < changes; k++) damage(bad, places, random);
        await writeFile(image, bad);
        await assertSameCheck(image, `seed ${SEED}, damage ${i} of ${options}`);
      }
    });
  }

  test('persistent bitmaps take clusters that are no leaks', async () => {
    const image = join(scratch.path, 'bitmaps.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', image, '30M']);
    for (const name of ['one', 'two']) await qemuImg(['bitmap', '--add', '-g', '512', image, name]);
    await qemuIo(image, ['write -P 3 1M 1M', 'write -P 3 20M 100k']);
    assert.ok(await assertSameCheck(image, 'bitmaps'));
  });

  test('a truncated file is corrupt by the clusters that are gone', async () => {
    const image = join(scratch.path, 'short.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '3M']);
    await qemuIo(image, ['write -P 1 0 3M']);
    for (const lengthBytes of [3_000_000, 1_500_000, 400_000]) {
      await truncate(image, lengthBytes);
      assert.ok(await assertSameCheck(image, `${lengthBytes} bytes`));
    }
  });

  test('leaks alone exit 3, and for people are told apart from corruption', async () => {
    const image = join(scratch.path, 'leaks.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '3M']);
    await qemuIo(image, ['write -P 1 0 64k']);
    const bytes = await readFile(image);
    const block = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
    bytes.writeUInt16BE(1, block + 2 * (bytes.length / 65536 - 1));
    bytes.writeUInt16BE(2, block);
    await writeFile(image, bytes);
    const done = await vdiskfs(['check', image]);
    assert.equal(done.status, 3);
    assert.match(done.stdout, /^1 leaked clusters were found/);
    assert.match(done.stderr, /Leaked cluster 0: refcount 2, references 1/);
    await qemuImg(['check', image], [3]);
  });

  test('a format without a check exits 63', async () => {
    const image = join(scratch.path, 'plain.img');
    await qemuImg(['create', '-q', '-f', 'raw', image, '1M']);
    assert.equal((await vdiskfs(['check', image])).status, 63);
  });

  test('tables that all name one another neither loop nor fill the memory', async () => {
    // 4 Mi L1 entries, each naming the same L2 table, which names itself 8192 times: 2^35 references.
    const image = join(scratch.path, 'alias.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '1G']);
    const bytes = await readFile(image);
    const l1 = 1 << 20;
    const l2 = 64 << 20;
    const made = Buffer.alloc(l2 + 65536);
    bytes.copy(made);
    made.writeUInt32BE(4 << 20, 36);
    made.writeBigUInt64BE(2n ** 51n, 24);
    made.writeBigUInt64BE(BigInt(l1), 40);
    for (let at = l1; at < l1 + (32 << 20); at += 8) made.writeBigUInt64BE(BigInt(l2), at);
    for (let at = l2; at < made.length; at += 8) made.writeBigUInt64BE(BigInt(l2), at);
    await writeFile(image, made);
    const report = (await vdiskfsJson(['check', image], ANY_RESULT)) as Record<string, number>;
    assert.ok((report['corruptions'] ?? 0) > 2 ** 32, JSON.stringify(report));
    assert.equal(report['check-errors'], 0);
  });

  test('scattered references in a huge sparse file end with an error, not with the memory', async () => {
    const image = join(scratch.path, 'sparse.qcow2');
    const options = 'cluster_size=512,preallocation=metadata';
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, image, '32M']);
    const bytes = await readFile(image);
    const fileBytes = 2 ** 43;
    const l1 = Number(bytes.readBigUInt64BE(40));
    for (let i = 0; i < 1024; i++) {
      const l2 = Number(bytes.readBigUInt64BE(l1 + i * 8) & OFFSET_MASK);
      for (let j = 0; j < 64; j++) {
        bytes.writeBigUInt64BE(BigInt((i * 64 + j) * 2 ** 27 + 2 ** 26), l2 + j * 8);
      }
    }
    await writeFile(image, bytes);
    await truncate(image, fileBytes);
    const done = await run(process.execPath, ['--input-type=module', '-e', MEASURED, image]);
    assert.equal(done.status, 1, done.stderr.slice(0, 500));
    assert.match(done.stderr, /need more memory than its size explains/);
    const peakKiB = Number(/^peak (\d+)$/m.exec(done.stderr)?.[1]);
    assert.ok(peakKiB < 400 << 10, `${peakKiB} KiB`);
  });
});

/** Runs the check of the image that it is given, and says how much memory it took. */
const MEASURED = `
  process.on('exit', () => console.error('peak ' + process.resourceUsage().maxRSS));
  process.argv = [process.argv[0], 'vdiskfs', 'check', '--json', process.argv[1]];
  await import(${JSON.stringify(PROGRAM)});
`;
