/** Exceptions that nobody catches, in the engine's threads: what programs see of them is a pause. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { tool } from '../support/file-tools.ts';
import { eventually, mountImages } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { run, vdiskfsJson } from '../support/vdiskfs.ts';
import { placeOf, KERNEL as subject } from './suite/subject.ts';

const CRASH_IN_THREAD = fileURLToPath(new URL('../support/crash-in-thread.js', import.meta.url));

for (const thread of ['worker', 'main'] as const) {
  test(`a crash of a thread of the engine (${thread}): no error, nothing lost`, async (t) => {
    const place = await placeOf(t, subject);
    const image = place.image('disk.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '64M']);
    const mounted = await mountImages(place.cleanup, {
      backend: 'kernel',
      sources: [place.images],
      mountpoint: join(place.root, 'mnt'),
      env: { NODE_OPTIONS: `--import ${CRASH_IN_THREAD}`, CRASH_BELOW: place.root },
    });
    const generation = async (): Promise<number> =>
      ((await vdiskfsJson(['status', mounted.mountpoint])) as { generation: number }).generation;
    const guest = run(
      'fio',
      [
        ...['--name=x', `--filename=${mounted.path('disk.raw')}`, '--size=64M', '--rw=randwrite'],
        ...['--bsrange=4k-64k', '--direct=1', '--ioengine=libaio', '--iodepth=16'],
        ...['--io_size=128M', '--rate=24M', '--verify=crc32c', '--do_verify=1'],
        ...['--verify_fatal=1', '--verify_state_save=0', '--randseed=3'],
      ],
      { timeoutMs: 60_000 },
    );
    for (let deaths = 1; deaths <= 2; deaths++) {
      await writeFile(join(place.root, thread), '');
      await eventually(
        'another engine serves',
        async () => (await generation()) === deaths,
        20_000,
      );
    }
    const { status, stderr, stdout } = await guest;
    assert.equal(status, 0, stderr + stdout);
    assert.match(mounted.log, new RegExp(`a crash of (?:a|the) ${thread}`));
    await tool('dd', [`if=${mounted.path('disk.raw')}`, 'of=/dev/null', 'bs=1M', 'status=none']);
    await mounted.unmount();
    await assertClean(image);
  });
}
