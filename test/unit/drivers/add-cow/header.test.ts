import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { encodeHeader } from '../../../../drivers/add-cow/header-write.ts';
import { addCow } from '../../../../drivers/add-cow/index.ts';
import { encodeRecord } from '../../../../drivers/add-cow/journal-records.ts';
import { BlockError } from '../../../../src/base/block-error.ts';
import { silentLog } from '../../../../src/base/log.ts';
import { guestOffset } from '../../../../src/base/units.ts';
import { createJournalFactory } from '../../../../src/block/restart-journal-file.ts';
import { encodeAddCow, readAddCow, writeAddCow } from '../../../support/add-cow-file.ts';
import { type Cleanup, scratchDirectory } from '../../../support/scratch.ts';
import { testGraph } from '../../../support/test-graph.ts';

const BYTES = 10 * 65_536;
const SOUND = {
  clusterBytes: 65_536,
  backing: { name: 'base.raw', format: 'raw' },
  image: { name: 'disk.raw', format: 'raw' },
  isAllAllocated: false,
  bits: new Array<boolean>(10).fill(false),
} as const;

const place = async (t: Cleanup): Promise<{ directory: string; path: string }> => {
  const directory = await scratchDirectory(t);
  for (const name of ['disk.raw', 'base.raw']) {
    await writeFile(join(directory, name), '');
    await truncate(join(directory, name), BYTES);
  }
  return { directory, path: join(directory, 'disk.add-cow') };
};

const tryOpen = async (directory: string, path: string): Promise<BlockError | null> => {
  const graph = await testGraph({ directory });
  try {
    await graph.close(await graph.open({ path, format: 'add-cow', readOnly: true }));
    return null;
  } catch (error) {
    assert.ok(error instanceof BlockError, String(error));
    assert.equal(graph.nodes.size, 0, 'nothing stays open');
    return error;
  }
};

test('a header is written as the page of the format shows it', () => {
  const bytes = encodeHeader(
    {
      clusterBytes: 65_536,
      backing: { filename: 'ubuntu.img', format: 'qcow2' },
      image: { filename: 'test.raw', format: 'raw' },
      isAllAllocated: false,
    },
    'x',
  );
  const expected = [
    '41434f57 4c000000 0a000000 56000000',
    '08000000 10000000 00000000 00000000',
    '00000000 00000000 00000100 71636f77',
    '32000000 00000000 00000000 72617700',
    '00000000 00000000 00000000 7562756e',
    '74752e69 6d677465 73742e72 6177',
  ];
  assert.equal(Buffer.from(bytes).toString('hex'), expected.join('').replaceAll(' ', ''));
});

type Edit = (bytes: Buffer) => Buffer;
const u32 =
  (at: number, value: number): Edit =>
  (bytes) => {
    bytes.writeUInt32LE(value, at);
    return bytes;
  };
const text =
  (at: number, value: string): Edit =>
  (bytes) => {
    bytes.write(value, at, 'latin1');
    return bytes;
  };

const REFUSED: readonly [what: string, edit: Edit, message: RegExp, errno: string][] = [
  ['another magic', text(0, 'BCOW'), /magic is not ACOW/, 'EIO'],
  ['the magic before version 14', text(0, 'ADD_COW\xff'), /layout before version 14/, 'EOPNOTSUPP'],
  ['a version field', u32(4, 1), /versions 14 to 17/, 'EOPNOTSUPP'],
  ['an unknown feature', u32(28, 0x80), /features 0x8000000000/, 'EOPNOTSUPP'],
  ['clusters of 256 bytes', u32(20, 8), /cluster_bits is 8/, 'EIO'],
  ['clusters of 4 MiB', u32(20, 22), /cluster_bits is 22/, 'EIO'],
  ['a header of another size', u32(40, 4096), /header_size is 4096/, 'EOPNOTSUPP'],
  ['an image name in the fields', u32(12, 75), /image file.*outside the header/, 'EIO'],
  ['an image name past the header', u32(16, 65_500), /outside the header/, 'EIO'],
  ['an image name at the end of numbers', u32(12, 0xffff_ffff), /outside the header/, 'EIO'],
  ['a name of no bytes', u32(16, 0), /size 0/, 'EIO'],
  ['a backing name without an offset', u32(4, 0), /offset 0/, 'EIO'],
  ['a name longer than any path', u32(16, 5000), /more than 4095/, 'EIO'],
  ['a NUL in a name', text(86, '\0'), /NUL/, 'EIO'],
  ['a name that is not UTF-8', text(86, '\xff'), /not UTF-8/, 'EIO'],
  ['no image format', text(60, '\0\0\0'), /image_fmt is empty/, 'EIO'],
  ['no backing format', text(44, '\0\0\0'), /backing_fmt is empty/, 'EIO'],
  ['a format in another script', text(60, '\xe9'), /not ASCII/, 'EIO'],
  [
    'a format that nobody knows',
    text(60, 'sixteen-letters!'),
    /unknown format 'sixteen-letters!'/,
    'EINVAL',
  ],
  ['its end in the header', (bytes) => bytes.subarray(0, 60), /ends after 60 bytes/, 'EIO'],
];

test('a field that breaks the format is an error that names it', async (t) => {
  const { directory, path } = await place(t);
  await writeAddCow(path, SOUND);
  assert.equal(await tryOpen(directory, path), null);
  for (const [what, edit, message, errno] of REFUSED) {
    await writeFile(path, edit(encodeAddCow(SOUND)));
    const error = await tryOpen(directory, path);
    assert.ok(error !== null, `${what} is refused`);
    assert.match(error.describe(), message, what);
    assert.equal(error.errno, errno, what);
  }
});

test('names that lead in circles, and files outside the gate, are refused', async (t) => {
  const { directory, path } = await place(t);
  const open = async (image: string, backing: string): Promise<string | undefined> => {
    const names = {
      image: { name: image, format: 'raw' },
      backing: { name: backing, format: 'raw' },
    };
    await writeAddCow(path, { ...SOUND, ...names });
    return (await tryOpen(directory, path))?.errno;
  };
  assert.equal(await open('disk.add-cow', 'base.raw'), 'ELOOP');
  assert.equal(await open('disk.raw', 'disk.add-cow'), 'ELOOP');
  assert.equal(await open('disk.raw', './disk.raw'), 'ELOOP');
  assert.equal(await open('/etc/hostname', 'base.raw'), 'EACCES');
  assert.equal(await open('nbd://host/disk', 'base.raw'), 'EACCES');
  assert.equal(await open('disk.raw', 'base.raw'), undefined);
});

test('a name may end where the header ends, and a format may have 16 letters', async (t) => {
  const { directory, path } = await place(t);
  const bytes = encodeAddCow(SOUND);
  bytes.writeUInt32LE(65_536 - 8, 12);
  bytes.write('disk.raw', 65_536 - 8);
  await writeFile(path, bytes);
  assert.equal(await tryOpen(directory, path), null);
});

test('a short bitmap reads as not set, and is made whole by the next write', async (t) => {
  const { directory, path } = await place(t);
  await writeFile(join(directory, 'base.raw'), Buffer.alloc(BYTES, 0x42));
  await writeFile(
    path,
    encodeAddCow({ ...SOUND, bits: SOUND.bits.map(() => true) }).subarray(0, 65_536),
  );
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: null, readOnly: false });
  const found = Buffer.alloc(BYTES);
  await node.read(guestOffset(0), found);
  assert.ok(found.every((b) => b === 0x42));
  await node.write(guestOffset(65_536), Buffer.alloc(65_536, 1));
  await graph.close(node);
  assert.deepEqual((await readAddCow(path, BYTES)).bits.indexOf(true), 1);
});

test('what is not known in the compatible features is kept when the header is written', async (t) => {
  const { directory, path } = await place(t);
  const bytes = encodeAddCow(SOUND);
  bytes.writeBigUInt64LE(0xf0_0000_0000_0006n, 32);
  await writeFile(path, bytes);
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: null, readOnly: false });
  await node.changeBacking({ filename: 'another-base.raw', format: 'raw' });
  assert.equal((await readFile(path)).readBigUInt64LE(32), 0xf0_0000_0000_0006n);
  assert.equal((await readAddCow(path, BYTES)).backing?.name, 'another-base.raw');
  await node.changeBacking({ filename: 'b', format: 'raw' });
  await node.write(guestOffset(0), Buffer.alloc(BYTES, 1));
  await node.flush();
  assert.equal((await readFile(path)).readBigUInt64LE(32), 0xf0_0000_0000_0007n);
  await graph.close(node);
  const file = await readAddCow(path, BYTES);
  assert.deepEqual([file.backing?.name, file.isAllAllocated], ['b', true]);
});

test('probing claims this layout and the older ones, and no other bytes', () => {
  const probe = (bytes: Uint8Array): number | undefined => addCow.probe?.(bytes, bytes.length);
  assert.equal(probe(encodeAddCow(SOUND)), 100);
  assert.equal(probe(Buffer.from('ADD_COW\xff0000', 'latin1')), 100);
  for (const other of ['', 'ACO', 'ACOW', 'QFI\xfb\0\0\0\x03', 'ADD_COW_']) {
    assert.equal(probe(Buffer.from(other, 'latin1')), 0, other);
  }
});

test('a restart journal of another image, or of none of ours, is not applied', async (t) => {
  const { directory, path } = await place(t);
  const journals = join(directory, 'journals');
  await mkdir(journals);
  await writeAddCow(path, SOUND);
  const { dev: device, ino: inode, birthtimeMs: birthMs } = await stat(path);
  const factory = createJournalFactory({ directory: journals, log: silentLog });
  const wrong = { kind: 'bits', stamp: 1, imageBytes: BYTES, first: 2, clusters: 1 } as const;
  for (const record of [Uint8Array.of(2, 0, 0), encodeRecord(wrong)]) {
    const file = { path, device, inode, birthMs };
    (await factory(file, { tenure: null })).append(record);
    const graph = await testGraph({ directory, journalDirectory: journals });
    await graph.close(await graph.open({ path, format: null, readOnly: false }));
    assert.ok(!(await readAddCow(path, BYTES)).bits.some(Boolean));
    assert.deepEqual(await readdir(journals), [], 'it is forgotten');
  }
});
