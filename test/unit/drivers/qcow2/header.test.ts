import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import fc from 'fast-check';
import { file } from '../../../../drivers/file/index.ts';
import {
  compressedPlace,
  copiedEntry,
  entryOffset,
  isCopied,
} from '../../../../drivers/qcow2/entry.ts';
import {
  parseHeader,
  type Qcow2Header,
  readHeader,
  refuseUnsupported,
} from '../../../../drivers/qcow2/header.ts';
import {
  type Change,
  decodeChanges,
  encodeChanges,
} from '../../../../drivers/qcow2/journal-records.ts';
import { HEADER } from '../../../../drivers/qcow2/layout.ts';
import { present } from '../../../../src/base/assert.ts';
import { BlockError } from '../../../../src/base/block-error.ts';
import { viewOf } from '../../../../src/base/byte-order.ts';
import { silentLog } from '../../../../src/base/log.ts';
import { alignUp } from '../../../../src/base/range.ts';
import { Node } from '../../../../src/block/node.ts';
import { qemuImg } from '../../../support/qemu-img.ts';
import { countOf, SEED } from '../../../support/run-parameters.ts';
import { type Cleanup, scratchDirectory } from '../../../support/scratch.ts';

const PATH = '/images/disk.qcow2';
const MAX_CLUSTER_BYTES = 2 << 20;

const imageBytes = async (
  t: Cleanup,
  options = 'cluster_size=4k',
  size = '10M',
): Promise<Uint8Array> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', options, path, size]);
  return new Uint8Array(await readFile(path));
};

const readHeaderOf = async (path: string): Promise<Qcow2Header> => {
  const request = {
    path,
    readOnly: true,
    create: false,
    cache: 'writeback',
    log: silentLog,
  } as const;
  const node = new Node({ name: 'file', path, descriptor: file, readOnly: true, file: null });
  node.attach(present(await file.openPath?.(request), 'the protocol opens paths'));
  try {
    return await readHeader(node, path);
  } finally {
    await node.close();
  }
};

const parsed = (image: Uint8Array, clusterBytes = 4096): Qcow2Header =>
  parseHeader(image.slice(0, clusterBytes), image.length, PATH);

test('every field of a header that qemu-img wrote is read', async (t) => {
  const image = await imageBytes(t, 'cluster_size=4k,refcount_bits=32,lazy_refcounts=on');
  const h = parsed(image);
  assert.equal(h.version, 3);
  assert.equal(h.clusterBytes, 4096);
  assert.equal(h.virtualSizeBytes, 10 << 20);
  assert.equal(h.refcountBits, 32);
  assert.equal(h.compatible, 1);
  assert.equal(h.backing, null);
});

test('a header is read as a whole, however far its extensions and names reach', async (t) => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '10M']);
  const image = new Uint8Array(await readFile(path));
  const whole = parseHeader(image.slice(0, 65536), image.length, PATH);
  const end = 112 + whole.extensions.reduce((sum, e) => sum + 8 + alignUp(e.content.length, 8), 0);
  const name = new TextEncoder().encode('base.qcow2');
  for (const padding of [0, 8, 3000, 5000, 20_000]) {
    const grown = image.slice();
    const view = viewOf(grown);
    // An unknown extension, another one behind it, the end marker, the name.
    view.setUint32(end, 0x1234_5678);
    view.setUint32(end + 4, padding);
    const last = end + 8 + alignUp(padding, 8);
    view.setUint32(last, 0x1234_5679);
    view.setUint32(last + 4, 4);
    view.setUint32(last + 16, 0);
    view.setBigUint64(HEADER.backingOffset, BigInt(last + 24));
    view.setUint32(HEADER.backingSize, name.length);
    grown.set(name, last + 24);
    await writeFile(path, grown);
    const read = await readHeaderOf(path);
    assert.deepEqual(read, parseHeader(grown.slice(0, 65536), grown.length, path), `${padding}`);
    assert.equal(read.backing?.filename, 'base.qcow2');
    assert.equal(read.extensions.length, whole.extensions.length + 2);
  }
});

test('a field out of range is an error that names field, value and offset', async (t) => {
  const image = await imageBytes(t);
  const cases: readonly [keyof typeof HEADER, 4 | 8, bigint, RegExp][] = [
    ['magic', 4, 1n, /magic is 0x1/],
    ['version', 4, 9n, /version is 9/],
    ['clusterBits', 4, 8n, /cluster_bits is 8/],
    ['clusterBits', 4, 22n, /cluster_bits is 22/],
    ['size', 8, 1n << 60n, /size is past 2\^53/],
    ['size', 8, 1n << 50n, /l1_size is \d+, too few/],
    ['l1Size', 4, 1n << 23n, /l1_size is 8388608, a table of more than 32 MiB/],
    ['l1Offset', 8, 4097n, /l1_table_offset is 0x1001, not a multiple/],
    ['l1Offset', 8, 0n, /l1_table_offset is 0x0, inside the header/],
    ['l1Offset', 8, 1n << 40n, /l1_table_offset .* past the end of the file/],
    ['refcountTableOffset', 8, 100n, /refcount_table_offset is 0x64/],
    ['refcountTableClusters', 4, 0n, /refcount_table_clusters is 0/],
    ['refcountTableClusters', 4, 1n << 30n, /refcount_table_clusters .* more than 8 MiB/],
    ['snapshots', 4, 70_000n, /nb_snapshots is 70000/],
    ['cryptMethod', 4, 3n, /crypt_method is 3/],
    ['refcountOrder', 4, 7n, /refcount_order is 7/],
    ['headerLength', 4, 90n, /header_length is 90/],
    ['headerLength', 4, 1n << 20n, /header_length is 1048576/],
    [
      'compressionType',
      4,
      1n << 24n,
      /compression_type is 1, but incompatible feature bit 3 is not/,
    ],
    ['incompatible', 8, 8n, /compression_type is 0, but incompatible feature bit 3 is set/],
    ['backingOffset', 8, 5000n, /backing_file_offset is 0x1388/],
  ];
  for (const [field, width, value, expected] of cases) {
    const bad = Uint8Array.from(image);
    if (field === 'backingOffset') viewOf(bad).setUint32(HEADER.backingSize, 10);
    if (width === 4) viewOf(bad).setUint32(HEADER[field], Number(value));
    else viewOf(bad).setBigUint64(HEADER[field], value);
    assert.throws(
      () => parsed(bad),
      (error: unknown) => error instanceof BlockError && expected.test(error.describe()),
      `${field} = ${value}`,
    );
  }
});

test('an unknown incompatible feature is refused by the name that the image gives it', async (t) => {
  const image = await imageBytes(t, 'cluster_size=64k');
  viewOf(image).setUint32(HEADER.incompatible + 4, 1 << 9);
  assert.throws(() => refuseUnsupported(parsed(image, 65_536), PATH), /incompatible feature bit 9/);
  viewOf(image).setUint32(HEADER.incompatible + 4, 0);
  viewOf(image).setUint32(HEADER.incompatible, 4);
  assert.throws(
    () => refuseUnsupported(parsed(image, 65_536), PATH),
    /incompatible feature bit 34/,
  );
  viewOf(image).setUint32(HEADER.incompatible, 0);
  // The row of the feature name table that names bit 4 is made to name bit 9.
  const name = Buffer.from(image).indexOf('extended L2 entries');
  image[name - 1] = 9;
  viewOf(image).setUint32(HEADER.incompatible + 4, 1 << 9);
  assert.throws(() => refuseUnsupported(parsed(image, 65_536), PATH), /'extended L2 entries'/);
});

test('a header of any bytes is read or refused, never more', async (t) => {
  const image = await imageBytes(t);
  const changes = fc.array(fc.tuple(fc.nat(200), fc.nat(255)), { minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(changes, (bytes) => {
      // Whatever they make of the cluster size, its first cluster is there.
      const bad = new Uint8Array(MAX_CLUSTER_BYTES);
      bad.set(image);
      for (const [at, value] of bytes) bad[at] = value;
      try {
        refuseUnsupported(parsed(bad, bad.length), PATH);
      } catch (error) {
        assert.ok(error instanceof BlockError, String(error));
      }
    }),
    {
      seed: SEED,
      numRuns: countOf(500),
      // A header that ends past what the image's own cluster has.
      examples: [
        [
          [
            [HEADER.headerLength + 2, 16],
            [HEADER.clusterBits + 3, 13],
          ],
        ],
      ],
    },
  );
});

test('entries keep offsets above 4 GiB, and the flag of a single reference', () => {
  for (const offset of [512, 65_536, 2 ** 32, 2 ** 40 + 65_536, 2 ** 50]) {
    const { high, low } = copiedEntry(offset);
    assert.equal(entryOffset(high, low), offset);
    assert.ok(isCopied(high));
  }
});

test('a compressed cluster descriptor gives byte offset and length for each cluster size', () => {
  for (const clusterBits of [9, 12, 16, 21]) {
    const shift = 62 - (clusterBits - 8);
    const descriptor = (1n << 62n) | (3n << BigInt(shift)) | 0x1_2345_6789n;
    const high = Number(descriptor >> 32n);
    const low = Number(descriptor & 0xffff_ffffn);
    const sectors = clusterBits === 9 ? 2 : 4;
    const place = compressedPlace(high, low, clusterBits);
    assert.equal(place.hostOffset, 0x1_2345_6789);
    assert.equal(place.maxBytes, sectors * 512 - (0x1_2345_6789 % 512));
  }
});

test('journal records say what was encoded', () => {
  const word = fc.record({ high: fc.nat(2 ** 31), low: fc.nat(2 ** 31) });
  const u32 = fc.nat(2 ** 32 - 1);
  const extended = fc.record({ high: u32, low: u32, zeroes: u32, allocated: u32 });
  const change: fc.Arbitrary<Change> = fc.oneof(
    fc.record({ kind: fc.constant('word' as const), at: fc.maxSafeNat(), old: word, now: word }),
    fc.record({
      kind: fc.constant('refcount' as const),
      cluster: fc.maxSafeNat(),
      old: fc.nat(),
      now: fc.nat(),
    }),
    fc.record({
      kind: fc.constant('table' as const),
      at: fc.maxSafeNat(),
      source: fc.maxSafeNat(),
    }),
    fc.record({
      kind: fc.constant('extended' as const),
      at: fc.maxSafeNat(),
      old: extended,
      now: extended,
    }),
  );
  fc.assert(
    fc.property(fc.array(change), (changes) => {
      const plain = changes.map((c) => structuredClone(c));
      assert.deepEqual(decodeChanges(encodeChanges(changes)), plain);
    }),
    { seed: SEED, numRuns: countOf(100) },
  );
});
