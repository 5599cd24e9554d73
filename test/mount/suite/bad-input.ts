/** Images that are broken, or made to break things: a clear error each, and the other views go on. */
import assert from 'node:assert/strict';
import {
  copyFile,
  open,
  readdir,
  readFile,
  stat,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { patch } from '../../support/host-files.ts';
import { eventually, type Mounted } from '../../support/mounted.ts';
import { assertClean, qemuImg } from '../../support/qemu-img.ts';
import { MIB, pattern } from './bytes.ts';
import { makeQcow2 } from './image-matrix.ts';
import { type MountSubject, placeOf } from './subject.ts';

/** One field of the qcow2 header (version 3), and a value that it must not have. */
interface BrokenField {
  readonly name: string;
  readonly at: number;
  readonly bytes: readonly number[];
}

const U64_FAR = [0, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
const U64_UNALIGNED = [0, 0, 0, 0, 0, 1, 2, 0];
const U64_BEYOND_2_53 = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
const U64_ONE_GIB = [0, 0, 0, 0, 0x40, 0, 0, 0];
const U32_HUGE = [0xff, 0xff, 0xff, 0xff];

const BROKEN_FIELDS: readonly BrokenField[] = [
  { name: 'version 4', at: 4, bytes: [0, 0, 0, 4] },
  { name: 'backing name offset far away', at: 8, bytes: U64_FAR },
  { name: 'backing name of 1 GiB', at: 8, bytes: [0, 0, 0, 0, 0, 0, 2, 0, 0x40, 0, 0, 0] },
  { name: 'cluster bits 8', at: 20, bytes: [0, 0, 0, 8] },
  { name: 'cluster bits 22', at: 20, bytes: [0, 0, 0, 22] },
  { name: 'cluster bits 0', at: 20, bytes: [0, 0, 0, 0] },
  { name: 'cluster bits huge', at: 20, bytes: U32_HUGE },
  { name: 'size beyond 2^53', at: 24, bytes: U64_BEYOND_2_53 },
  { name: 'size larger than the L1 table maps', at: 24, bytes: [0, 0, 1, 0, 0, 0, 0, 0] },
  { name: 'unknown encryption', at: 32, bytes: [0, 0, 0, 9] },
  { name: 'L1 table of 16 GiB', at: 36, bytes: U32_HUGE },
  { name: 'L1 table of no entry', at: 36, bytes: [0, 0, 0, 0] },
  { name: 'L1 table unaligned', at: 40, bytes: U64_UNALIGNED },
  { name: 'L1 table beyond 2^53', at: 40, bytes: U64_BEYOND_2_53 },
  { name: 'L1 table far past the end', at: 40, bytes: U64_FAR },
  { name: 'L1 table past the end', at: 40, bytes: U64_ONE_GIB },
  { name: 'L1 table on the header', at: 40, bytes: [0, 0, 0, 0, 0, 0, 0, 0] },
  { name: 'refcount table unaligned', at: 48, bytes: U64_UNALIGNED },
  { name: 'refcount table beyond 2^53', at: 48, bytes: U64_BEYOND_2_53 },
  { name: 'refcount table past the end', at: 48, bytes: U64_ONE_GIB },
  { name: 'refcount table on the header', at: 48, bytes: [0, 0, 0, 0, 0, 0, 0, 0] },
  { name: 'refcount table of 4 billion clusters', at: 56, bytes: U32_HUGE },
  { name: 'refcount table of no cluster', at: 56, bytes: [0, 0, 0, 0] },
  { name: 'snapshots beyond the limit', at: 60, bytes: U32_HUGE },
  { name: 'snapshot table unaligned', at: 60, bytes: [0, 0, 0, 1, ...U64_UNALIGNED] },
  { name: 'unknown incompatible feature', at: 72, bytes: [0x80, 0, 0, 0, 0, 0, 0, 0] },
  { name: 'refcount order 7', at: 96, bytes: [0, 0, 0, 7] },
  { name: 'refcount order huge', at: 96, bytes: U32_HUGE },
  { name: 'header length 50', at: 100, bytes: [0, 0, 0, 50] },
  { name: 'header length huge', at: 100, bytes: U32_HUGE },
  { name: 'extension past the header cluster', at: 116, bytes: U32_HUGE },
];

const LAST_BYTE_OF_INCOMPATIBLE = 79;

const u32 = (value: number): number[] => [24, 16, 8, 0].map((bits) => (value >>> bits) & 0xff);

const fileNameOf = (field: BrokenField): string =>
  `${field.name.replaceAll(/[^a-z0-9]+/gi, '-')}.qcow2`;

/** The errno of opening a view for reading, or of reading all of it; null when both work. */
const errnoOf = async (path: string): Promise<string | null> =>
  readFile(path).then(
    () => null,
    (error: NodeJS.ErrnoException) => error.code ?? 'unknown',
  );

const assertUnharmed = async (mounted: Mounted): Promise<void> => {
  assert.deepEqual(await readFile(mounted.path('good.raw')), pattern(MIB));
};

export const badInputTests = (subject: MountSubject): void => {
  test('every field of the header out of range is an error of that view alone', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('good.qcow2'), { bytes: pattern(MIB) });
    for (const field of BROKEN_FIELDS) {
      await copyFile(place.image('good.qcow2'), place.image(fileNameOf(field)));
      await patch(place.image(fileNameOf(field)), field.at, field.bytes);
    }
    const mounted = await place.mount();
    const names = await readdir(mounted.mountpoint);
    for (const field of BROKEN_FIELDS) {
      const view = fileNameOf(field).replace('.qcow2', '.raw');
      assert.ok(names.includes(view), `${field.name} is listed`);
      assert.notEqual(await errnoOf(mounted.path(view)), null, `${field.name} cannot be read`);
      await eventually(`${field.name} shows size 0 and mode 0`, async () => {
        const { size, mode } = await stat(mounted.path(view));
        return size === 0 && (mode & 0o777) === 0;
      });
      assert.ok(mounted.log.includes(fileNameOf(field)), `${field.name} is in the log`);
    }
    await assertUnharmed(mounted);
  });

  test('what is not an image, is empty or is cut short harms nobody', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('good.qcow2'), { bytes: pattern(MIB) });
    for (const lengthBytes of [4, 5, 71, 72, 103, 104, 511]) {
      await copyFile(place.image('good.qcow2'), place.image(`cut${lengthBytes}.qcow2`));
      await truncate(place.image(`cut${lengthBytes}.qcow2`), lengthBytes);
    }
    await writeFile(place.image('text.qcow2'), 'just text');
    await writeFile(place.image('empty.qcow2'), '');
    await writeFile(place.image('empty.img'), '');
    await symlink('nowhere', place.image('dangling.qcow2'));
    const mounted = await place.mount();
    const names = await readdir(mounted.mountpoint);
    for (const missing of ['text.raw', 'dangling.raw'])
      assert.ok(!names.includes(missing), missing);
    for (const name of names.filter((n) => n.startsWith('cut'))) {
      assert.equal(await errnoOf(mounted.path(name)), 'EIO', name);
    }
    assert.ok(names.filter((n) => n.startsWith('cut')).length >= 4, 'cut headers are listed');
    assert.equal(
      (await stat(mounted.path(names.includes('empty.raw') ? 'empty.raw' : 'empty.img.raw'))).size,
      0,
    );
    await assertUnharmed(mounted);
  });

  test('a backing file that is missing, outside, or a loop gives the errno that fits', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('good.qcow2'), { bytes: pattern(MIB) });
    await makeQcow2(join(place.root, 'outside.qcow2'), { bytes: pattern(MIB) });
    await symlink(join(place.root, 'outside.qcow2'), place.image('.escape'));
    const overlay = (name: string, backing: string): Promise<string> =>
      qemuImg([
        'create',
        '-q',
        '-u',
        '-f',
        'qcow2',
        '-b',
        backing,
        '-F',
        'qcow2',
        place.image(name),
        '1M',
      ]);
    await overlay('missing.qcow2', 'nowhere.qcow2');
    await overlay('outside.qcow2', join(place.root, 'outside.qcow2'));
    await overlay('dotdot.qcow2', '../outside.qcow2');
    await overlay('through-link.qcow2', '.escape');
    await overlay('protocol.qcow2', 'nbd://localhost/disk');
    await overlay('json.qcow2', 'json:{"driver":"file","filename":"/etc/passwd"}');
    await overlay('self.qcow2', 'self.qcow2');
    await overlay('loop-a.qcow2', 'loop-b.qcow2');
    await overlay('loop-b.qcow2', 'loop-a.qcow2');
    const mounted = await place.mount();
    await overlay('own-mount.qcow2', mounted.path('good.raw'));
    const expected: Record<string, string> = {
      'missing.raw': 'ENOENT',
      'outside.raw': 'EACCES',
      'dotdot.raw': 'EACCES',
      'through-link.raw': 'EACCES',
      'protocol.raw': 'EACCES',
      'json.raw': 'EACCES',
      'self.raw': 'ELOOP',
      'loop-a.raw': 'ELOOP',
      'loop-b.raw': 'ELOOP',
      'own-mount.raw': 'EACCES',
    };
    for (const [name, errno] of Object.entries(expected)) {
      assert.equal(await errnoOf(mounted.path(name)), errno, name);
    }
    assert.match(mounted.log, /--backing-dir/);
    await assertUnharmed(mounted);
    await mounted.unmount();
    const allowed = await place.mount(['--backing-dir', place.root]);
    assert.deepEqual(await readFile(allowed.path('outside.raw')), pattern(MIB));
  });

  test('a table that points nowhere fails where it is read, and only there', async (t) => {
    const place = await placeOf(t, subject);
    await makeQcow2(place.image('good.qcow2'), { bytes: pattern(MIB) });
    for (const [name, entry] of [
      ['unaligned', [0x80, 0, 0, 0, 0, 1, 2, 0]],
      ['far', [0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]],
      ['past-the-end', [0x80, 0, 0, 0, 0x40, 0, 0, 0]],
    ] as const) {
      const path = place.image(`l1-${name}.qcow2`);
      await copyFile(place.image('good.qcow2'), path);
      await patch(path, (await readFile(path)).readUInt32BE(44), entry);
    }
    const good = await readFile(place.image('good.qcow2'));
    const l1 = good.readUInt32BE(44);
    const l2 = good.readUInt32BE(l1 + 4);
    // Tables on themselves, on each other and on the header, and packed data that is none.
    for (const [name, at, target] of [
      ['l1-itself', l1, [0x80, 0, 0, 0, ...u32(l1)]],
      ['l2-itself', l2, [0x80, 0, 0, 0, ...u32(l2)]],
      ['l2-refcounts', l2, [0x80, 0, 0, 0, ...u32(good.readUInt32BE(52))]],
      ['l2-header', l2, [0x80, 0, 0, 0, 0, 0, 0, 0]],
      ['l2-packed', l2, [0x40, 0, 0, 0, ...u32(l1)]],
    ] as const) {
      await copyFile(place.image('good.qcow2'), place.image(`${name}.qcow2`));
      await patch(place.image(`${name}.qcow2`), at, target);
    }
    await makeQcow2(place.image('sub.qcow2'), { bytes: pattern(MIB), options: 'extended_l2=on' });
    const sub = await readFile(place.image('sub.qcow2'));
    // The first cluster's subclusters are zero and allocated.
    const bitmap = sub.readUInt32BE(sub.readUInt32BE(44) + 4) + 8;
    await patch(place.image('sub.qcow2'), bitmap, U32_HUGE);
    const mounted = await place.mount();
    const broken = ['l1-unaligned', 'l1-far', 'l1-past-the-end', 'l1-itself', 'l2-itself'];
    for (const name of [...broken, 'l2-refcounts', 'l2-packed', 'sub']) {
      assert.equal(await errnoOf(mounted.path(`${name}.raw`)), 'EIO', name);
    }
    // No offset is no cluster, whatever else the entry says, as it is for QEMU.
    const [ours, theirs] = [mounted.path('l2-header.raw'), `${place.root}/l2-header.img`];
    await qemuImg(['convert', '-U', '-O', 'raw', place.image('l2-header.qcow2'), theirs]);
    assert.ok((await readFile(ours)).equals(await readFile(theirs)));
    await assertUnharmed(mounted);
  });

  test('an image that was not closed cleanly is mended when it is used, one that is marked corrupt is only read', async (t) => {
    const place = await placeOf(t, subject);
    const bits = { dirty: 1, corrupt: 2, hopeless: 1 };
    for (const [name, bit] of Object.entries(bits)) {
      await makeQcow2(place.image(`${name}.qcow2`), { bytes: pattern(MIB) });
      await patch(place.image(`${name}.qcow2`), LAST_BYTE_OF_INCOMPATIBLE, [bit]);
    }
    // An L2 entry past the disk's end that names no cluster: nothing here mends it.
    const bytes = await readFile(place.image('hopeless.qcow2'));
    const offsetAt = (at: number): number =>
      Number(bytes.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
    await patch(place.image('hopeless.qcow2'), offsetAt(offsetAt(40)) + 800 + 6, [0x12]);
    const mounted = await place.mount();
    for (const name of ['dirty.raw', 'corrupt.raw', 'hopeless.raw']) {
      assert.deepEqual(await readFile(mounted.path(name)), pattern(MIB), name);
    }
    for (const name of ['corrupt.raw', 'hopeless.raw'])
      await assert.rejects(open(mounted.path(name), 'r+'), { code: 'EROFS' }, name);
    const handle = await open(mounted.path('dirty.raw'), 'r+');
    await handle.write(new Uint8Array(4096).fill(9), 0, 4096, 8192);
    await handle.close();
    await mounted.unmount();
    await assertClean(place.image('dirty.qcow2'));
  });
};
