/** What one guest has read is fetched first for the next. */
import assert from 'node:assert/strict';
import { copyFile, open, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { eventually } from '../support/mounted.ts';
import { assertClean, contentSha256, qemuImgJson } from '../support/qemu-img.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import { controlMount } from './control-mount.ts';

const MIB = 1 << 20;

interface Stretch {
  readonly offset: number;
  readonly length: number;
  readonly ms: number;
}

test('reads are recorded in order, and fetched by the next mount before its guest asks', async (t) => {
  const m = await controlMount(t, { mounted: false });
  const fresh = join(m.root, 'fresh.qcow2');
  await copyFile(m.overlay, fresh);
  const before = await contentSha256(m.overlay, join(m.root, 'before'));
  const records = join(m.root, 'records');
  await m.mount(['--record', records]);
  const places = [9 * MIB, 3 * MIB, 50 * MIB, 20 * MIB];
  const file = await open(m.view, 'r');
  for (const at of places) await file.read(Buffer.alloc(4096), 0, 4096, at);
  await file.close();
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  const path = join(records, 'vm.raw.jsonl');
  const lines = (await readFile(path, 'utf8')).trim().split('\n');
  const stretches = lines.map((line) => JSON.parse(line) as Stretch);
  const firsts = places.map((at) =>
    stretches.findIndex((s) => s.offset <= at && at < s.offset + s.length),
  );
  assert.ok(
    firsts.every((index) => index >= 0),
    lines.join('\n'),
  );
  assert.deepEqual(
    [...firsts].sort((a, b) => a - b),
    firsts,
    'in the order of the reads',
  );
  assert.ok(stretches.every((s, i) => s.ms >= (stretches[i - 1]?.ms ?? 0)));

  await copyFile(fresh, m.overlay);
  await m.mount(['--prefetch', records]);
  const isLocal = async (): Promise<boolean> => {
    const map = (await qemuImgJson('map', ['-U', m.overlay])) as {
      start: number;
      length: number;
      depth: number;
    }[];
    return places.every((at) =>
      map.some((r) => r.start <= at && at < r.start + r.length && r.depth === 0),
    );
  };
  // What is mapped reaches the file with the next checkpoint.
  await eventually('what was read is in the overlay', isLocal, 20_000);
  assert.equal(await contentSha256(m.view, join(m.root, 'while')), before);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await assertClean(m.overlay);
});

test('a damaged record, or none, costs nothing but a line of the log', async (t) => {
  const m = await controlMount(t, { sizeMib: 4, mounted: false });
  const before = await contentSha256(m.overlay, join(m.root, 'before'));
  await writeFile(
    join(m.root, 'vm.raw.jsonl'),
    '{"offset":0,"length":4096}\n{"offset":-1,"length":"x"}\n',
  );
  await m.mount(['--prefetch', m.root]);
  assert.equal(await contentSha256(m.view, join(m.root, 'while')), before);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await assertClean(m.overlay);
});
