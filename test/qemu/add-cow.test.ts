/** The life of an add-cow image with the commands, from create to detach; QEMU and the test's own reader judge. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { access, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { guestOf, readAddCow, writeAddCow } from '../support/add-cow-file.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { assertSameContent, qemuImg } from '../support/qemu-img.ts';
import { suiteDirectory } from '../support/scratch.ts';

const MIB = 1 << 20;

describe('add-cow commands', () => {
  const scratch = suiteDirectory();
  const path = (name: string): string => `${scratch.path}/${name}`;

  const succeed = async (args: readonly string[]): Promise<string> => {
    const done = await vdiskfs(args);
    assert.equal(done.status, 0, done.stderr);
    return done.stdout;
  };
  const refused = async (args: readonly string[], message: RegExp): Promise<void> => {
    const done = await vdiskfs(args);
    assert.equal(done.status, 1, done.stderr);
    assert.match(done.stderr, message);
  };
  const hole = async (name: string, bytes: number): Promise<string> => {
    await writeFile(path(name), '');
    await truncate(path(name), bytes);
    return path(name);
  };

  test('create, info and map say what the file is and where the bytes are', async () => {
    const base = randomBytes(1_000_000);
    await writeFile(path('c-base.img'), base);
    await hole('c.raw', 2 * MIB + 1000);
    const image = path('c.add-cow');
    const options = 'image_file=c.raw,backing_file=c-base.img,cluster_size=4k';
    await succeed(['create', '-f', 'add-cow', '-o', options, image]);
    const file = await readAddCow(image, 2 * MIB + 1000);
    assert.deepEqual(
      { ...file, bits: file.bits.some(Boolean) },
      {
        clusterBytes: 4096,
        backing: { name: 'c-base.img', format: 'raw' },
        image: { name: 'c.raw', format: 'raw' },
        isAllAllocated: false,
        bits: false,
      },
    );
    const info = (await vdiskfsJson(['info', image])) as Record<string, unknown>;
    assert.equal(info['virtual-size'], 2 * MIB + 1000, 'that of the image file');
    assert.equal(info['backing-filename'], 'c-base.img');
    const map = (await vdiskfsJson(['map', image])) as { depth: number; length: number }[];
    assert.deepEqual(
      map.map(({ depth, length }) => [depth, length]),
      [
        [1, 1_000_000],
        [0, 2 * MIB + 1000 - 1_000_000],
      ],
    );
    await succeed(['convert', '-O', 'raw', image, path('c-flat.raw')]);
    const expected = Buffer.concat([base, Buffer.alloc(2 * MIB + 1000 - base.length)]);
    // A new image comes in whole sectors.
    const flat = await readFile(path('c-flat.raw'));
    assert.ok(flat.subarray(0, expected.length).equals(expected));
    await succeed(['check', image]);
  });

  test('a backing format that nobody names is probed once and recorded', async () => {
    await qemuImg(['create', '-q', '-f', 'qcow2', path('p-base.img'), '1M']);
    await hole('p.raw', MIB);
    const image = path('p.add-cow');
    await succeed(['create', '-f', 'add-cow', '-b', 'p-base.img', '-o', 'image_file=p.raw', image]);
    assert.deepEqual((await readAddCow(image, MIB)).backing, {
      name: 'p-base.img',
      format: 'qcow2',
    });
  });

  test('create refuses what no image can have, and leaves the image file as it was', async () => {
    await hole('r.raw', MIB);
    await hole('r-base.raw', MIB);
    const create = ['create', '-f', 'add-cow', '-F', 'raw'];
    const image = path('r.add-cow');
    const with_ = (o: string, ...rest: string[]) => [...create, '-o', o, image, ...rest];
    await refused([...create.slice(0, 3), image, '1M'], /image_file.*is needed/);
    await refused(with_('image_file=gone.raw,backing_file=r-base.raw'), /gone\.raw/);
    await refused(with_('image_file=r-base.raw,backing_file=r-base.raw'), /backing/);
    await refused(with_('image_file=r.add-cow,backing_file=r-base.raw'), /own data file/);
    await refused(with_('image_file=r.raw,backing_file=r-base.raw', '512k'), /never cut/);
    await refused(
      with_('image_file=r.raw,backing_file=r-base.raw,cluster_size=2k'),
      /from 4k to 2M/,
    );
    await refused(
      with_('image_file=r.raw,backing_file=r-base.raw,image_fmt=raw-with-a-long-name'),
      /raw-with-a-long-name/,
    );
    await refused(with_(`image_file=r.raw,backing_file=${'x'.repeat(5000)}`, '-u'), /5000 bytes/);
    assert.equal((await stat(path('r.raw'))).size, MIB);
    await assert.rejects(access(image));
    await succeed(with_('image_file=r.raw,backing_file=r-base.raw', '3M'));
    assert.equal((await stat(path('r.raw'))).size, 3 * MIB, 'a larger size grows the image file');
  });

  test('convert fills an image file; rebase without a backing file and detach leave it alone', async () => {
    const source = randomBytes(3 * MIB);
    source.fill(0, MIB, 2 * MIB);
    await writeFile(path('l-source.raw'), source);
    await writeFile(path('l-base.raw'), source.subarray(0, MIB / 2));
    // What lies in the image file already is hidden, and is not to come back.
    await writeFile(path('l.img'), Buffer.alloc(3 * MIB, 0x77));
    const image = path('l.add-cow');
    const options = ['-B', 'l-base.raw', '-F', 'raw', '-o', 'image_file=l.img'];
    await succeed(['convert', '-O', 'add-cow', ...options, path('l-source.raw'), image]);
    await succeed(['compare', image, path('l-source.raw')]);
    await refused(['convert', '--detach', image], /not all of its clusters/);
    await succeed(['rebase', '-b', '', image]);
    await succeed(['check', image]);
    assert.equal((await readAddCow(image, 3 * MIB)).isAllAllocated, true);
    assert.match(await succeed(['info', image]), /no longer needed/);
    await succeed(['convert', '--detach', image]);
    await assert.rejects(access(image));
    assert.ok((await readFile(path('l.img'))).equals(source));
  });

  test('convert without a backing file writes the image file itself, zeros too', async () => {
    const source = Buffer.concat([Buffer.alloc(MIB), randomBytes(MIB)]);
    await writeFile(path('z-source.raw'), source);
    await writeFile(path('z.img'), Buffer.alloc(MIB, 0x77));
    await succeed([
      'convert',
      '-O',
      'add-cow',
      '-o',
      'image_file=z.img',
      path('z-source.raw'),
      path('z.add-cow'),
    ]);
    await assertSameContent(path('z.img'), path('z-source.raw'));
    assert.equal((await readAddCow(path('z.add-cow'), 2 * MIB)).isAllAllocated, true);
    await refused(
      [
        'convert',
        '-O',
        'add-cow',
        '-o',
        'image_file=z-source.raw',
        path('z-source.raw'),
        path('y.add-cow'),
      ],
      /written over while it is read/,
    );
  });

  test('rebase keeps what the guest sees, and resize shows zeros where the backing file is longer', async () => {
    const [old, next] = [randomBytes(2 * MIB), randomBytes(2 * MIB)];
    next.set(old.subarray(0, MIB / 2), 0);
    await writeFile(path('b-old.raw'), old);
    await writeFile(path('b-next.raw'), next);
    await hole('b.raw', MIB + 5000);
    const image = path('b.add-cow');
    await succeed([
      'create',
      '-f',
      'add-cow',
      '-b',
      'b-old.raw',
      '-F',
      'raw',
      '-o',
      'image_file=b.raw',
      image,
    ]);
    await succeed(['rebase', '-b', 'b-next.raw', '-F', 'raw', image]);
    const judge = async (expected: Buffer): Promise<void> => {
      const raw = await readFile(path('b.raw'));
      const file = await readAddCow(image, raw.length);
      assert.equal(file.backing?.name, 'b-next.raw');
      assert.ok(Buffer.from(guestOf(file, raw, next)).equals(expected));
      await succeed(['check', image]);
    };
    await judge(old.subarray(0, MIB + 5000));
    await refused(['rebase', '-b', 'b.raw', '-F', 'raw', image], /own backing chain/);
    await succeed(['resize', image, String(3 * MIB)]);
    await judge(Buffer.concat([old.subarray(0, MIB + 5000), Buffer.alloc(2 * MIB - 5000)]));
    await succeed(['resize', '--shrink', image, String(MIB / 2 + 100)]);
    await succeed(['resize', image, String(MIB)]);
    await judge(Buffer.concat([old.subarray(0, MIB / 2 + 100), Buffer.alloc(MIB / 2 - 100)]));
  });

  test('check finds and mends stray bits, old names, a long and a short file', async () => {
    await hole('k.raw', 10 * 65_536 + 1);
    await hole('k-base.raw', MIB);
    const image = path('k.add-cow');
    await writeAddCow(image, {
      clusterBytes: 65_536,
      backing: { name: 'k-base.raw', format: 'raw' },
      image: { name: 'k.raw', format: 'raw' },
      isAllAllocated: false,
      bits: [true, ...new Array<boolean>(10).fill(false), true, true],
    });
    const bytes = await readFile(image);
    bytes.write('old name', 3000);
    await writeFile(image, Buffer.concat([bytes, Buffer.alloc(100)]));
    const check = async (repair: readonly string[], status: number) =>
      (await vdiskfsJson(['check', ...repair, image], [status])) as Record<string, number>;
    assert.equal((await check([], 3))['leaks'], 2 + 8 + 1);
    assert.equal((await check(['-r', 'leaks'], 0))['leaks-fixed'], 2 + 8 + 1);
    await check([], 0);
    assert.deepEqual((await readAddCow(image, 10 * 65_536 + 1)).bits.filter(Boolean).length, 1);
    await truncate(image, 65_537);
    assert.equal((await check([], 2))['corruptions'], 1);
    assert.equal((await check(['-r', 'all'], 0))['corruptions-fixed'], 1);
    await check([], 0);
    await truncate(path('k-base.raw'), 0);
    await writeFile(path('k.raw'), '');
    await check(['-r', 'all'], 0);
  });
});
