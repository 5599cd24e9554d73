import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { BlockError } from '../../src/base/block-error.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { assertClean, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory, suiteDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';
import { run } from '../support/vdiskfs.ts';

const MIB = 1 << 20;

const succeed = async (args: readonly string[], cwd?: string): Promise<void> => {
  const done = await vdiskfs(args, cwd === undefined ? {} : { cwd });
  assert.equal(done.status, 0, done.stderr);
};

const failWith = async (args: readonly string[], message: RegExp): Promise<void> => {
  const done = await vdiskfs(args);
  assert.equal(done.status, 1, done.stderr);
  assert.match(done.stderr, message);
};

/** Opens for writing, runs, closes. */
const withImage = async (path: string, use: (node: Node) => Promise<void>): Promise<void> => {
  const directory = path.slice(0, path.lastIndexOf('/'));
  const graph = await testGraph({ directory });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  try {
    await use(node);
  } finally {
    await graph.close(node);
  }
};

/** QEMU looks for the data file in its working directory, so its tools run in the image's. */
const inDirectory = async (
  cwd: string,
  tool: 'qemu-img' | 'qemu-io',
  args: readonly string[],
): Promise<string> => {
  const done = await run(tool, args, { cwd });
  assert.equal(done.status, 0, `${tool} ${args.join(' ')}: ${done.stdout}${done.stderr}`);
  return done.stdout;
};

const makeWithQemu = async (t: Cleanup, options: string): Promise<string> => {
  const directory = await scratchDirectory(t);
  const path = `${directory}/disk.qcow2`;
  const o = `data_file=${directory}/disk.data${options}`;
  await qemuImg(['create', '-q', '-f', 'qcow2', '-o', o, path, '4M']);
  return path;
};

describe('external data files', () => {
  const scratch = suiteDirectory();

  for (const options of ['', ',data_file_raw=on', ',cluster_size=4k,preallocation=metadata']) {
    test(`what we make is what qemu-img makes, header and all: data_file${options}`, async () => {
      for (const who of ['ours', 'theirs']) {
        const directory = `${scratch.path}/${who}${options}`;
        await mkdir(directory);
        const args = ['create', '-f', 'qcow2', '-o', `data_file=disk.data${options}`];
        const rest = ['disk.qcow2', '4M'];
        if (who === 'ours') await succeed([...args, ...rest], directory);
        else await inDirectory(directory, 'qemu-img', [...args, '-q', ...rest]);
      }
      const [ours, theirs] = [`${scratch.path}/ours${options}`, `${scratch.path}/theirs${options}`];
      const [a, b] = await Promise.all([
        readFile(`${ours}/disk.qcow2`),
        readFile(`${theirs}/disk.qcow2`),
      ]);
      assert.deepEqual(a.subarray(0, 4096), b.subarray(0, 4096));
      assert.equal((await stat(`${ours}/disk.data`)).size, 4 * MIB);
      const infos = await Promise.all(
        [ours, theirs].map(
          async (d) =>
            JSON.parse(
              await inDirectory(d, 'qemu-img', ['info', '--output=json', 'disk.qcow2']),
            ) as object,
        ),
      );
      assert.deepEqual({ ...infos[0], 'actual-size': 0 }, { ...infos[1], 'actual-size': 0 });
      const done = await vdiskfs(['info', '--json', 'disk.qcow2'], { cwd: theirs });
      assert.deepEqual(JSON.parse(done.stdout), infos[1]);
      await inDirectory(ours, 'qemu-img', ['check', '-q', 'disk.qcow2']);
      await inDirectory(ours, 'qemu-io', [
        ...['-c', 'write -P 3 100k 200k', '-c', 'read -P 3 100k 200k'],
        'disk.qcow2',
      ]);
      await inDirectory(ours, 'qemu-img', ['check', '-q', 'disk.qcow2']);
    });

    test(`writes, zeros and discards read back in QEMU, which finds it clean: data_file${options}`, async (t) => {
      const path = await makeWithQemu(t, options);
      const model = new Uint8Array(4 * MIB);
      const write = async (node: Node, at: number, bytes: Uint8Array): Promise<void> => {
        model.set(bytes, at);
        await node.write(guestOffset(at), bytes);
      };
      await withImage(path, async (node) => {
        await write(node, 1, randomBytes(300_000));
        await write(node, 3 * MIB - 5000, randomBytes(70_000));
        model.fill(0, 100_000, 250_000);
        await node.discard(guestOffset(100_000), 150_000);
        await write(node, 150_001, randomBytes(100));
        model.fill(0, 0, 65_536);
        await node.writeZeroes(guestOffset(0), 65_536, { unmap: false });
        model.fill(0, 3 * MIB, 3 * MIB + 4096);
        await node.writeZeroes(guestOffset(3 * MIB), 4096, { unmap: true });
        await node.allocate(guestOffset(2 * MIB), 100_000);
        await node.flush();
      });
      await assertClean(path);
      const raw = `${path}.model`;
      await writeFile(raw, model);
      await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', raw, path]);
      await succeed(['compare', '-f', 'raw', '-F', 'qcow2', raw, path]);
      if (options.includes('raw'))
        assert.deepEqual(new Uint8Array(await readFile(path.replace('.qcow2', '.data'))), model);
      const map = await qemuImgJson('map', [path]);
      assert.deepEqual(await vdiskfsJson(['map', path]), map);
      assert.deepEqual(await vdiskfsJson(['check', path]), await qemuImgJson('check', [path]));
    });
  }

  test('what QEMU writes, zeroes and discards we read, map and check as it does', async (t) => {
    for (const options of ['', ',data_file_raw=on']) {
      const path = await makeWithQemu(t, options);
      await qemuIo(path, [
        ...['write -P 1 0 64k', 'write -z 64k 64k', 'discard 128k 64k', 'write -P 5 200k 10k'],
        ...['write -P 3 512k 128k', 'discard 512k 64k', 'write -z -u 576k 64k', 'write -z 0 64k'],
      ]);
      assert.deepEqual(await vdiskfsJson(['map', path]), await qemuImgJson('map', [path]));
      assert.deepEqual(await vdiskfsJson(['check', path]), await qemuImgJson('check', [path]));
      assert.deepEqual(await vdiskfsJson(['info', path]), await qemuImgJson('info', [path]));
      await succeed(['convert', path, `${path}.raw`]);
      await qemuImg(['compare', '-f', 'qcow2', '-F', 'raw', path, `${path}.raw`]);
    }
  });

  test('resize carries the data file along, and what was cut off does not come back', async (t) => {
    for (const options of ['', ',data_file_raw=on']) {
      const path = await makeWithQemu(t, options);
      const data = path.replace('.qcow2', '.data');
      await qemuIo(path, ['write -P 7 0 4M']);
      await succeed(['resize', '--shrink', path, '1000k']);
      assert.equal((await stat(data)).size, 1000 << 10);
      await assertClean(path);
      await succeed(['resize', path, '600M']);
      assert.equal((await stat(data)).size, 600 * MIB);
      await assertClean(path);
      await qemuIo(path, ['read -P 7 0 1000k', 'read -P 0 1000k 20M']);
      // Raw: what others write to the data file is what the guest sees, also where it grew.
      if (options !== '') {
        await qemuIo(data, ['write -P 9 500M 64k'], ['-f', 'raw']);
        await qemuIo(path, ['read -P 9 500M 64k']);
      }
    }
  });

  test('convert makes a data file, and removes it when the copy cannot be finished', async () => {
    const source = `${scratch.path}/source.img`;
    await writeFile(source, Buffer.concat([randomBytes(300_000), Buffer.alloc(724_000)]));
    const target = `${scratch.path}/copy.qcow2`;
    const o = ['-o', `data_file=${scratch.path}/copy.data,data_file_raw=on`];
    await succeed(['convert', '-f', 'raw', '-O', 'qcow2', ...o, source, target]);
    await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', source, target]);
    await assertClean(target);
    assert.deepEqual(await readFile(`${scratch.path}/copy.data`), await readFile(source));
    const never = ['-o', `data_file=${scratch.path}/never.data`];
    await failWith(
      [
        'convert',
        '-c',
        '-f',
        'raw',
        '-O',
        'qcow2',
        ...never,
        source,
        `${scratch.path}/never.qcow2`,
      ],
      /external data file, and so no compressed clusters/,
    );
    const names = await readdir(scratch.path);
    assert.deepEqual(
      names.filter((name) => name.startsWith('never')),
      [],
    );
  });

  test('what cannot be is refused before a file is touched', async () => {
    const full = `${scratch.path}/full.data`;
    const content = randomBytes(2 * MIB);
    await writeFile(full, content);
    const base = `${scratch.path}/base.img`;
    await writeFile(base, content);
    const cases: [string[], RegExp][] = [
      [['-o', `data_file=${full}`], /full\.data.* not empty/],
      [['-o', 'data_file_raw=on'], /data_file_raw: it needs a data_file/],
      [['-o', 'data_file=d,compat=0.10'], /data_file: it needs compat 1\.1/],
      [['-o', 'data_file=d,data_file_raw=on', '-b', base, '-F', 'raw'], /data_file_raw: .*backing/],
      [['-o', 'data_file=no.qcow2'], /own data file/],
    ];
    for (const [args, message] of cases) {
      await failWith(['create', '-f', 'qcow2', ...args, `${scratch.path}/no.qcow2`, '1M'], message);
      const names = await readdir(scratch.path);
      assert.ok(!names.includes('no.qcow2') && !names.includes('d'), args.join(' '));
      assert.deepEqual(await readFile(full), content);
    }
  });

  test('a data file elsewhere is opened only where that is allowed, and a bad place is an error', async (t) => {
    const elsewhere = await scratchDirectory(t);
    const path = `${scratch.path}/stranger.qcow2`;
    const o = `data_file=${elsewhere}/far.data`;
    await qemuImg(['create', '-q', '-f', 'qcow2', '-o', o, path, '1M']);
    await qemuIo(path, ['write -P 1 0 192k']);
    await failWith(['map', path], /outside the allowed directories/);
    await succeed(['map', '--backing-dir', elsewhere, path]);
    const check = (await qemuImgJson('check', [path])) as { 'image-end-offset': number };
    const image = await readFile(path);
    // The L2 table is the last cluster: its second entry is to name the third cluster.
    image.writeUInt32BE(0x2_0000, check['image-end-offset'] - 65_536 + 12);
    await writeFile(path, image);
    await failWith(
      ['convert', '--backing-dir', elsewhere, path, `${path}.raw`],
      /is not the guest offset/,
    );
  });

  test('a header whose data file cannot be is refused, naming what is wrong', async (t) => {
    const directory = await scratchDirectory(t);
    const path = `${directory}/abcd.qcow2`;
    const o = 'data_file=data.bytes,data_file_raw=on';
    await succeed(['create', '-f', 'qcow2', '-o', o, path, '1M']);
    const sound = await readFile(path);
    const name = sound.indexOf('data.bytes');
    const cases: readonly [(image: Buffer) => void, RegExp][] = [
      [(image) => image.write('abcd.qcow2', name), /loops/],
      [(image) => image.write('gone.bytes', name), /gone\.bytes/],
      [(image) => image.write('nbd:x:1234', name), /'nbd:' source/],
      [(image) => image.write('json:{}{}{', name), /is not JSON/],
      [(image) => image.writeUInt32BE(0x1111_1111, name - 8), /does not name/],
      [(image) => image.writeUInt32BE(0x7fff_ffff, name - 4), /reaches past the header/],
      [(image) => image.writeUInt32BE(0, 76), /raw external data file, but there is no/],
    ];
    for (const [damage, message] of cases) {
      const image = Buffer.from(sound);
      damage(image);
      await writeFile(path, image);
      const opening = withImage(path, async () => undefined);
      await assert.rejects(
        opening,
        (error: unknown) => error instanceof BlockError && message.test(error.describe()),
        String(message),
      );
    }
  });
});
