/** `--cache none`: the content suite past the host's page cache; and what errors of the host file do to requests. */
import assert from 'node:assert/strict';
import { open, truncate, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { failingTool, tool } from '../support/file-tools.ts';
import { attachLoop } from '../support/loop-device.ts';
import { vdiskfsJson } from '../support/vdiskfs.ts';
import { MIB, pattern } from './suite/bytes.ts';
import { contentTests } from './suite/content.ts';
import { makeTop } from './suite/disk.ts';
import { ioTests } from './suite/io.ts';
import { sizeTests } from './suite/sizes.ts';
import { KERNEL, placeOf } from './suite/subject.ts';

const DIRECT = { ...KERNEL, args: ['--cache', 'none'] };

contentTests(DIRECT);
ioTests(DIRECT);
sizeTests(DIRECT);

/** Bytes of a file in the host's page cache. */
const cachedBytes = async (path: string): Promise<number> =>
  Number(await tool('fincore', ['--bytes', '--noheadings', '--output', 'RES', path]));

for (const format of ['raw', 'qcow2'] as const) {
  test(`${format}: with --cache none the host keeps none of the data, with writeback it does`, async (t) => {
    const place = await placeOf(t, KERNEL);
    const disk = await makeTop(place, format);
    const image = format === 'raw' ? disk.path : place.image('base.qcow2');
    for (const [mode, kept] of [
      ['writeback', true],
      ['none', false],
    ] as const) {
      const mounted = await place.mount(['--cache', mode]);
      // Written back before, so that it can be dropped.
      await tool('dd', [`of=${image}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0']);
      const view = mounted.path(disk.view);
      await tool('dd', [`if=${view}`, 'of=/dev/null', 'bs=64k', 'iflag=direct']);
      const bytes = await cachedBytes(image);
      assert.equal(bytes >= 2 * MIB, kept, `${mode}: ${bytes} bytes of the image are cached`);
      const status = (await vdiskfsJson(['status', mounted.mountpoint])) as {
        readonly counters: { readonly hits: number };
      };
      assert.ok(status.counters.hits > 0, `${mode}: the data plane serves it`);
      await mounted.unmount();
    }
  });
}

test('an error of the host file fails the requests that meet it and no other', async (t) => {
  const place = await placeOf(t, KERNEL);
  const file = `${place.root}/device`;
  const good = pattern(4 * MIB);
  await writeFile(file, Buffer.concat([good, pattern(4 * MIB, 3)]));
  const device = await attachLoop(place.cleanup, file, { directIo: false });
  // What the device still promises and its file does not have any more is EIO.
  await truncate(file, 4 * MIB);
  const mounted = await place.mount(['--format', 'raw'], [`disk=${device.path}`]);
  const view = mounted.path('disk.raw');
  const readers = Array.from({ length: 8 }, async (_, i) => {
    const bad = [
      `if=${view}`,
      'of=/dev/null',
      'iflag=direct',
      'bs=4k',
      'count=1',
      `skip=${1100 + i}`,
    ];
    assert.match(await failingTool('dd', bad), /Input\/output error/);
    const out = `${place.root}/out${i}`;
    await tool('dd', [
      `if=${view}`,
      `of=${out}`,
      'iflag=direct',
      'bs=64k',
      `skip=${i * 8}`,
      'count=8',
    ]);
    const read = await open(out);
    assert.deepEqual(await read.readFile(), good.subarray((i * MIB) / 2, ((i + 1) * MIB) / 2));
    await read.close();
  });
  await Promise.all(readers);
  await mounted.unmount();
});

test('a host file that became shorter behind the mount reads as zeros there', async (t) => {
  const place = await placeOf(t, KERNEL);
  const content = pattern(2 * MIB);
  await writeFile(place.image('disk.raw'), content);
  const mounted = await place.mount();
  const view = await open(mounted.path('disk.raw'));
  await truncate(place.image('disk.raw'), MIB + 1000);
  const out = `${place.root}/out`;
  await tool('dd', [`if=${mounted.path('disk.raw')}`, `of=${out}`, 'iflag=direct', 'bs=64k']);
  await view.close();
  const read = await open(out);
  const expected = Buffer.from(content);
  expected.fill(0, MIB + 1000);
  assert.deepEqual(await read.readFile(), expected);
  await read.close();
  await mounted.unmount();
});
