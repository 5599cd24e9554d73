import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { type Random, seededRandom } from '../../src/base/random.ts';
import { vdiskfs } from '../support/loaded-vdiskfs.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { suiteDirectory } from '../support/scratch.ts';
import { PROGRAM, run } from '../support/vdiskfs.ts';

const COUNT = countOf(8);
const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;
const COPIED = 1n << 63n;

interface Totals {
  readonly 'check-errors': number;
  readonly corruptions?: number;
  readonly leaks?: number;
  readonly 'corruptions-fixed'?: number;
  readonly 'leaks-fixed'?: number;
}

/** What both programs say of a repair of their own copy of an image. */
const repairBoth = async (image: string, mode: 'leaks' | 'all') => {
  const theirImage = `${image}.theirs`;
  await copyFile(image, theirImage);
  const theirs = await run('qemu-img', ['check', '-r', mode, '--output=json', theirImage]);
  const ours = await vdiskfs(['check', '-r', mode, '--json', image]);
  const says = `qemu-img:\n${theirs.stdout}${theirs.stderr}\nvdiskfs:\n${ours.stdout}${ours.stderr}`;
  assert.notEqual(ours.stdout, '', says);
  // qemu-img makes all refcounts anew, at the end of the file, where here the old blocks are corrected.
  const isRebuilt = theirs.stderr.includes('Rebuilding refcount structure');
  const totals = (stdout: string): Totals => {
    if (stdout === '') return { 'check-errors': 1 };
    const { filename, 'image-end-offset': end, ...others } = JSON.parse(stdout);
    return isRebuilt ? others : { ...others, 'image-end-offset': end };
  };
  return {
    theirImage,
    says,
    isTheirsDone: theirs.stdout !== '',
    theirs: { status: theirs.status, totals: totals(theirs.stdout) },
    ours: { status: ours.status, totals: totals(ours.stdout) },
  };
};

const offsetAt = (image: Buffer, at: number): number =>
  Number(image.readBigUInt64BE(at) & OFFSET_MASK);

/** One refcount of the file's clusters gets another value; 16 bits wide. */
const tweakRefcount = (image: Buffer, random: Random): void => {
  const clusters = image.length / 2 ** image.readUInt32BE(20);
  const block = offsetAt(image, offsetAt(image, 48));
  image.writeUInt16BE(random.below(4), block + 2 * random.below(clusters));
};

/** The COPIED flag of an entry in use changes: L1 or L2. */
const flipCopied = (image: Buffer, random: Random): void => {
  const l1 = offsetAt(image, 40);
  const l2 = offsetAt(image, l1);
  const used: number[] = [l1];
  for (let at = l2; at < l2 + 2 ** image.readUInt32BE(20); at += 8) {
    if (offsetAt(image, at) !== 0 && (image.readUInt8(at) & 0x40) === 0) used.push(at);
  }
  const at = random.pick(used);
  image.writeBigUInt64BE(image.readBigUInt64BE(at) ^ COPIED, at);
};

const makeImage = async (image: string, random: Random): Promise<void> => {
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', image, '1M']);
  const write = (i: number): string => `write -P ${i + 1} ${random.below(250) * 4096} 12288`;
  await qemuIo(image, [
    ...Array.from({ length: 12 }, (_, i) => write(i)),
    'write -c -P 7 1040384 4096',
  ]);
  await qemuImg(['snapshot', '-c', 'one', image]);
  await qemuIo(image, [write(30), write(31)]);
};

describe('check -r', () => {
  const scratch = suiteDirectory();

  for (const mode of ['leaks', 'all'] as const) {
    test(`-r ${mode} mends refcounts and COPIED flags as qemu-img does`, async () => {
      const random = seededRandom(SEED + mode.length);
      const image = join(scratch.path, `${mode}.qcow2`);
      await makeImage(image, random);
      const good = await readFile(image);
      for (let i = 0; i < COUNT; i++) {
        const bad = Buffer.from(good);
        for (let k = 0; k <= random.below(4); k++) {
          tweakRefcount(bad, random);
          flipCopied(bad, random);
        }
        await writeFile(image, bad);
        const { theirImage, isTheirsDone, theirs, ours, says } = await repairBoth(image, mode);
        const context = `seed ${SEED}, damage ${i}\n${says}`;
        // qemu-img gives up where leaks are asked for and a cluster in use has refcount 0.
        if (isTheirsDone) assert.deepEqual(ours, theirs, context);
        else assert.equal(ours.status, 2, context);
        await qemuImg(['compare', image, theirImage]);
        if (mode === 'leaks') continue;
        await qemuImg(['check', image]);
        for (const name of [image, theirImage]) await qemuImg(['snapshot', '-a', 'one', name]);
        await qemuImg(['compare', image, theirImage]);
      }
    });
  }

  for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) {
    test(`refcounts of ${refcountBits} bits are mended`, async () => {
      const image = join(scratch.path, `width-${refcountBits}.qcow2`);
      const options = `cluster_size=4096,refcount_bits=${refcountBits}`;
      await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, image, '1M']);
      await qemuIo(image, ['write -P 1 0 128k']);
      const bytes = await readFile(image);
      const block = offsetAt(bytes, offsetAt(bytes, 48));
      // Clusters after the metadata: some lose their refcount.
      bytes.fill(0, block + refcountBits, block + 2 * refcountBits);
      await writeFile(image, bytes);
      const { theirs, ours, says } = await repairBoth(image, 'all');
      assert.deepEqual(ours, theirs, says);
      assert.equal(ours.totals['corruptions-fixed'], 8, says);
      await qemuImg(['check', image]);
    });
  }

  test('a dirty image is mended when a command opens it for writing; a corrupt one is refused', async () => {
    const image = join(scratch.path, 'dirty.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
    await qemuIo(image, ['write -P 1 0 128k']);
    const bytes = await readFile(image);
    const block = offsetAt(bytes, offsetAt(bytes, 48));
    bytes.writeUInt16BE(0, block + 2 * 5);
    bytes.writeUInt8(2, 79);
    await writeFile(image, bytes);
    const refused = await vdiskfs(['resize', image, '2M']);
    assert.notEqual(refused.status, 0);
    assert.match(refused.stderr, /marked corrupt.*vdiskfs check -r all/s);
    assert.deepEqual(await readFile(image), bytes);
    bytes.writeUInt8(1, 79);
    await writeFile(image, bytes);
    // A log's lines go to the descriptor itself.
    const done = await run(process.execPath, [PROGRAM, 'resize', image, '2M']);
    assert.equal(done.status, 0, done.stderr);
    assert.match(done.stderr, /not closed cleanly: 1 corruptions and 0 leaks were mended/);
    await qemuImg(['check', image]);
    await qemuIo(image, ['read -P 1 0 128k']);
  });

  test('dirty and corrupt bits go when the image is clean, and stay when it is not mended', async () => {
    const image = join(scratch.path, 'bits.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
    await qemuIo(image, ['write -P 1 0 128k']);
    const bytes = await readFile(image);
    bytes.writeUInt8(3, 79);
    await writeFile(image, bytes);
    assert.equal((await vdiskfs(['check', image])).status, 0);
    assert.equal((await readFile(image)).readUInt8(79), 3);
    assert.equal((await vdiskfs(['check', '-r', 'all', image])).status, 0);
    assert.equal((await readFile(image)).readUInt8(79), 0);
    bytes.writeBigUInt64BE(BigInt(bytes.length) * 4n, offsetAt(bytes, 48));
    await writeFile(image, bytes);
    assert.notEqual((await vdiskfs(['check', '-r', 'all', image])).status, 0);
    assert.deepEqual(await readFile(image), bytes, 'what cannot be mended is left as it is');
  });
});
