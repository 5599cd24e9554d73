/** A view as a loop device: partitions, ext4, fstrim. */
import assert from 'node:assert/strict';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { sha256, tool } from '../support/file-tools.ts';
import { attachLoop, mountFileSystem } from '../support/loop-device.ts';
import { assertClean, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const FILES = 12;
const FILE_BYTES = 2 << 20;

const writeFiles = async (directory: string): Promise<void> => {
  const random = seededRandom(42);
  const bytes = Buffer.alloc(FILE_BYTES);
  for (let i = 0; i < FILES; i++) {
    random.fill(bytes);
    await writeFile(join(directory, `file${String(i).padStart(2, '0')}`), bytes);
  }
};

const checksums = async (directory: string): Promise<Record<string, string>> => {
  const names = (await readdir(directory)).filter((name) => name.startsWith('file')).sort();
  const sums: Record<string, string> = {};
  for (const name of names) sums[name] = await sha256(join(directory, name));
  return sums;
};

/** What the image file takes on the host, in bytes; without a lock, since the mount holds it. */
const actualBytes = async (image: string): Promise<number> =>
  ((await qemuImgJson('info', ['-U', image])) as { 'actual-size': number })['actual-size'];

const DISKS = [
  { format: 'qcow2', directIo: false },
  { format: 'qcow2', directIo: true },
  { format: 'raw', directIo: true },
] as const;

for (const { format, directIo } of DISKS) {
  test(`a partitioned disk with ext4 lives on a view (${format}, direct-io ${directIo ? 'on' : 'off'})`, async (t) => {
    const place = await placeOf(t, subject);
    const image = place.image(format === 'raw' ? 'disk.img' : 'disk.qcow2');
    const guest = join(place.root, 'guest');
    await qemuImg(['create', '-q', '-f', format, image, '256M']);

    const first = await place.mount();
    const loop = await attachLoop(place.cleanup, first.path('disk.raw'), { directIo });
    const queue = `/sys/block/${loop.name}/queue`;
    assert.ok(
      Number(await readFile(`${queue}/discard_max_bytes`, 'utf8')) > 0,
      'discard is offered',
    );
    await tool('sh', ['-c', `echo 'start=2048, type=83' | sfdisk -q ${loop.path}`]);
    await tool('mkfs.ext4', ['-q', await loop.partition(1)]);
    let unmountGuest = await mountFileSystem(place.cleanup, await loop.partition(1), guest);
    await writeFiles(guest);
    await tool('sync', ['-f', guest]);
    const written = await checksums(guest);
    assert.equal(Object.keys(written).length, FILES);
    const full = await actualBytes(image);
    assert.ok(full >= FILES * FILE_BYTES, `${full} bytes hold the files`);

    for (let i = 0; i < FILES; i += 2) {
      const name = `file${String(i).padStart(2, '0')}`;
      await rm(join(guest, name));
      delete written[name];
    }
    await tool('sync', ['-f', guest]);
    await tool('fstrim', [guest]);
    await unmountGuest();
    await loop.detach();
    await first.unmount();
    const freed = full - (await actualBytes(image));
    assert.ok(freed > (FILES / 2) * FILE_BYTES * 0.8, `fstrim freed ${freed} bytes`);
    if (format === 'qcow2') await assertClean(image);

    const second = await place.mount();
    const again = await attachLoop(place.cleanup, second.path('disk.raw'), { directIo: !directIo });
    await tool('e2fsck', ['-f', '-n', await again.partition(1)]);
    unmountGuest = await mountFileSystem(place.cleanup, await again.partition(1), guest);
    assert.deepEqual(await checksums(guest), written);
    await unmountGuest();
    await again.detach();
    await second.unmount();
    if (format === 'qcow2') await assertClean(image);
  });
}
