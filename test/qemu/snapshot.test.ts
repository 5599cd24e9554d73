import assert from 'node:assert/strict';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { seededRandom } from '../../src/base/random.ts';
import { resizeImage } from '../../src/image/resize.ts';
import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  listSnapshots,
} from '../../src/image/snapshot.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { suiteDirectory } from '../support/scratch.ts';
import { context, type SnapshotCase, SnapshotSteps } from '../support/snapshot-steps.ts';

const STEPS = countOf(8);

interface Case extends SnapshotCase {
  readonly options: string;
  readonly sizeBytes: number;
  readonly backing: boolean;
}

const PLAIN = { resizes: true, packs: true, maxSnapshots: 8, backing: false } as const;

const CASES: readonly Case[] = [
  {
    ...PLAIN,
    name: 'clusters of 512 bytes, many L2 tables',
    clusterBytes: 512,
    options: 'cluster_size=512',
    sizeBytes: 200 << 10,
  },
  {
    ...PLAIN,
    name: 'over a backing image',
    clusterBytes: 4096,
    options: 'cluster_size=4k',
    sizeBytes: 600 << 10,
    backing: true,
    // QEMU shows the backing's bytes in what grows.
    resizes: false,
  },
  {
    ...PLAIN,
    name: 'version 2',
    clusterBytes: 1024,
    options: 'cluster_size=1k,compat=0.10',
    sizeBytes: 300 << 10,
    resizes: false,
  },
  {
    ...PLAIN,
    name: 'refcounts of 2 bits',
    clusterBytes: 4096,
    options: 'cluster_size=4k,refcount_bits=2',
    sizeBytes: 400 << 10,
    // Several packed clusters in one host cluster need more.
    packs: false,
    maxSnapshots: 2,
  },
  {
    ...PLAIN,
    name: 'extended L2 entries',
    clusterBytes: 16_384,
    options: 'cluster_size=16k,extended_l2=on',
    sizeBytes: 1 << 20,
  },
  {
    ...PLAIN,
    name: 'refcounts of 64 bits',
    clusterBytes: 65_536,
    options: 'refcount_bits=64',
    sizeBytes: 3 << 20,
  },
];

const CHANGES = { '-c': createSnapshot, '-a': applySnapshot, '-d': deleteSnapshot } as const;
type Change = keyof typeof CHANGES;

const change = (image: string, what: Change, name: string): Promise<unknown> =>
  CHANGES[what]({ path: image, format: null }, name, context);

const names = async (image: string): Promise<string[]> => {
  const info = (await qemuImgJson('info', [image])) as {
    snapshots?: { id: string; name: string }[];
  };
  return (info.snapshots ?? []).map(({ id, name }) => `${id}:${name}`);
};

describe('snapshot', () => {
  const scratch = suiteDirectory();
  const path = (name: string): string => `${scratch.path}/${name}`;

  for (const [i, c] of CASES.entries()) {
    test(`snapshots that qemu-img and we make, apply and delete in turn are right after each step: ${c.name}`, async () => {
      const image = path(`steps-${i}.qcow2`);
      const content = new Uint8Array(c.sizeBytes);
      const below: string[] = [];
      if (c.backing) {
        for (let at = 0; at < c.sizeBytes; at++) content[at] = 1 + (at % 250);
        await writeFile(path('base.raw'), content);
        below.push('-b', path('base.raw'), '-F', 'raw');
      }
      const size = String(c.sizeBytes);
      await qemuImg(['create', '-q', '-f', 'qcow2', '-o', c.options, ...below, image, size]);
      const steps = new SnapshotSteps(image, c, seededRandom(SEED + i), content);
      for (let step = 0; step < STEPS; step++) {
        await steps.step();
        await steps.verify();
      }
    });
  }

  test('the command prints the list of qemu-img, and in JSON what its info says', async () => {
    const image = path('list.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
    await qemuImg(['snapshot', '-c', 'theirs', image]);
    const made = await vdiskfsJson(['snapshot', '-c', 'ours, with a long name of its own', image]);
    const ours = await vdiskfs(['snapshot', image]);
    assert.equal(ours.stdout, await qemuImg(['snapshot', '-l', image]));
    const { snapshots } = (await qemuImgJson('info', [image])) as { snapshots: unknown[] };
    assert.deepEqual(await vdiskfsJson(['snapshot', '-l', image]), snapshots);
    assert.deepEqual(made, snapshots[1]);
    const missing = await vdiskfs(['snapshot', '-d', 'missing', image]);
    assert.equal(missing.status, 1);
    assert.match(missing.stderr, /has no snapshot 'missing'/);
    assert.equal((await vdiskfs(['snapshot', '-c', 'x', '-d', 'y', image])).status, 2);
  });

  test('names and ids mean what they mean to qemu-img', async () => {
    const ours = path('names.qcow2');
    const theirs = path('names.theirs.qcow2');
    for (const image of [ours, theirs]) await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
    const steps: readonly (readonly [Change, string])[] = [
      ['-c', 'a'],
      ['-c', 'a'],
      ['-c', ''],
      ['-c', '1'],
      ['-a', '2'],
      ['-a', 'missing'],
      ['-d', '2'],
      ['-d', 'a'],
      ['-d', '1'],
      ['-c', 'after'],
    ];
    for (const [what, name] of steps) {
      const outcome = (work: Promise<unknown>): Promise<string> =>
        work.then(
          () => 'done',
          () => 'refused',
        );
      const expected = await outcome(qemuImg(['snapshot', what, name, theirs]));
      assert.equal(await outcome(change(ours, what, name)), expected, `${what} ${name}`);
      assert.deepEqual(await names(ours), await names(theirs), `${what} ${name}`);
    }
    await assertClean(ours);
    await assert.rejects(change(ours, '-c', 'n'.repeat(256)), /name has 256 bytes, more than 255/);
  });

  test('refcounts too narrow for another user are an error, and the image is as it was', async () => {
    for (const [bits, fits] of [
      [1, 0],
      [2, 2],
    ] as const) {
      const image = path(`narrow-${bits}.qcow2`);
      await qemuImg(['create', '-q', '-f', 'qcow2', '-o', `refcount_bits=${bits}`, image, '2M']);
      await qemuIo(image, ['write -P 7 0 300k', 'write -P 8 1M 64k']);
      for (let i = 0; i < fits; i++) await change(image, '-c', `s${i}`);
      await assert.rejects(change(image, '-c', 'more'), (error: unknown) => {
        assert.ok(error instanceof BlockError);
        assert.equal(error.errno, 'EOPNOTSUPP');
        assert.match(error.describe(), /refcounts hold \d at most.*refcount_bits/);
        return true;
      });
      await assertClean(image);
      await qemuIo(image, ['read -P 7 0 300k', 'read -P 8 1M 64k']);
      assert.equal((await listSnapshots({ path: image, format: null }, context)).length, fits);
    }
  });

  test('extra data that is not known here is kept', async () => {
    const image = path('extra.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
    await qemuImg(['snapshot', '-c', 'old', image]);
    // The file may end with the entry.
    const bytes = Buffer.concat([await readFile(image), Buffer.alloc(512)]);
    const at = Number(bytes.readBigUInt64BE(64));
    const idAndName = bytes.subarray(at + 64, at + 64 + 4);
    const extra = Buffer.from(
      '0000000000000000000000000010000000000000000000050123456789abcdef',
      'hex',
    );
    bytes.writeUInt32BE(extra.length, at + 36);
    Buffer.concat([extra, idAndName]).copy(bytes, at + 40);
    await writeFile(image, bytes);
    await change(image, '-c', 'new');
    await assertClean(image);
    const after = await readFile(image);
    const now = Number(after.readBigUInt64BE(64));
    assert.notEqual(now, at);
    assert.deepEqual(after.subarray(now, now + 76), bytes.subarray(at, at + 76));
  });

  test('an image of no bytes, and a disk of another size, are kept and shown again', async () => {
    const image = path('empty.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '0']);
    await change(image, '-c', 'nothing');
    await assertClean(image);
    await resizeImage(
      {
        path: image,
        format: null,
        size: { bytes: 40 * 2 ** 30, isRelative: false },
        shrink: false,
        preallocation: 'off',
      },
      context,
    );
    await qemuIo(image, ['write -P 3 39G 64k']);
    await change(image, '-c', 'large');
    await change(image, '-a', 'nothing');
    await assertClean(image);
    const info = (await qemuImgJson('info', [image])) as { 'virtual-size': number };
    assert.equal(info['virtual-size'], 0);
    await change(image, '-a', 'large');
    await assertClean(image);
    await qemuIo(image, ['read -P 3 39G 64k', 'read -P 0 0 64k']);
  });

  test('deleting frees what nothing else uses, and gives the space back', async () => {
    const image = path('free.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '16M']);
    await qemuIo(image, ['write -P 1 0 8M']);
    await change(image, '-c', 's');
    await qemuIo(image, ['write -P 2 0 8M']);
    const before = (await stat(image)).blocks * 512;
    await change(image, '-d', 's');
    const after = (await stat(image)).blocks * 512;
    assert.ok(before - after >= 8 << 20, `${before} to ${after} bytes`);
    await assertClean(image);
  });

  test('convert -l copies the snapshot that qemu-img copies, by id, name or both', async () => {
    const image = path('copied.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '1M']);
    for (const value of [1, 2]) {
      await qemuIo(image, [`write -P ${value} 0 1M`]);
      await change(image, '-c', `s${value}`);
    }
    await qemuIo(image, ['write -P 3 0 1M']);
    for (const which of ['2', 's2', 'snapshot.id=2,snapshot.name=s2', 'snapshot.name=s2']) {
      const done = await vdiskfs(['convert', '-l', which, image, path('ours.raw')]);
      assert.equal(done.status, 0, done.stderr);
      await qemuImg(['convert', '-O', 'raw', '-l', which, image, path('theirs.raw')]);
      assert.ok((await readFile(path('ours.raw'))).equals(await readFile(path('theirs.raw'))));
    }
    const missing = await vdiskfs(['convert', '-l', 'snapshot.id=1,snapshot.name=s2', image, 'x']);
    assert.equal(missing.status, 1);
    assert.match(missing.stderr, /has no snapshot 's2'/);
  });

  test('an image with an external data file has none, as in QEMU', async () => {
    const image = path('external.qcow2');
    const options = `data_file=${path('external.data')}`;
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, image, '1M']);
    await assert.rejects(qemuImg(['snapshot', '-c', 's', image]), /Operation not supported/);
    await assert.rejects(change(image, '-c', 's'), /external data file/);
  });

  test('a raw image has no snapshots, and says so', async () => {
    const image = path('disk.raw');
    await qemuImg(['create', '-q', '-f', 'raw', image, '1M']);
    assert.deepEqual(await listSnapshots({ path: image, format: null }, context), []);
    await assert.rejects(change(image, '-c', 's'), /format raw cannot keep internal snapshots/);
  });
});
