/** What is kept of a stream: over a kill at its very start, while its image is away, and within how much memory. */
import assert from 'node:assert/strict';
import { readdir, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { eventually } from '../support/mounted.ts';
import { contentSha256, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { controlMount } from './control-mount.ts';

const jobs = async (mountpoint: string): Promise<readonly { readonly device: string }[]> =>
  (await vdiskfsJson(['jobs', mountpoint])) as { device: string }[];

test('an engine that is killed when it has just said that a stream began: the stream goes on', async (t) => {
  const m = await controlMount(t, { sizeMib: 16 });
  const before = await contentSha256(m.view, join(m.root, 'before'));
  const pid = await m.enginePid();
  const c = await m.qmp();
  await c.execute('block-stream', { device: 'vm', speed: 1 << 20 });
  process.kill(pid, 'SIGKILL');
  await eventually(
    'another engine has the job',
    async () => (await jobs(m.mountpoint)).length === 1,
  );
  assert.equal((await vdiskfs(['job', 'speed', m.view, '0'])).status, 0);
  await eventually('it ends', async () => (await jobs(m.mountpoint)).length === 0, 20_000);
  const info = (await qemuImgJson('info', ['-U', m.overlay])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], undefined);
  assert.equal(await contentSha256(m.view, join(m.root, 'after')), before);
});

test('a stream whose image cannot be opened for a while waits for a mount that can', async (t) => {
  const m = await controlMount(t, { sizeMib: 16 });
  assert.equal((await vdiskfs(['stream', '--speed', '1M', m.view])).status, 0);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await rename(m.base, `${m.base}.away`);
  await m.mount();
  assert.deepEqual(await jobs(m.mountpoint), []);
  assert.deepEqual(await readdir(m.stateDirectory), ['vm.job']);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await rename(`${m.base}.away`, m.base);
  await m.mount();
  assert.deepEqual(
    (await jobs(m.mountpoint)).map((job) => job.device),
    ['vm'],
  );
});

const MAX_MEMORY_KIB = 300 << 10;

test('a stream of 100 GiB, nearly all of it holes, takes no more than 300 MiB', async (t) => {
  const m = await controlMount(t, { mounted: false });
  await qemuImg(['create', '-q', '-f', 'qcow2', m.base, '100G']);
  await qemuIo(
    m.base,
    Array.from({ length: 40 }, (_, i) => `write -q -P ${i + 1} ${i * 2500}M 1M`),
  );
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', m.base, '-F', 'qcow2', m.overlay]);
  await m.mount();
  const done = await vdiskfs(['stream', '--wait', m.view], { timeoutMs: 120_000 });
  assert.equal(done.status, 0, done.stderr);
  const status = await readFile(`/proc/${await m.enginePid()}/status`, 'utf8');
  const peakKib = Number(/^VmHWM:\s+(?<kib>\d+)/m.exec(status)?.groups?.['kib']);
  t.diagnostic(`${Math.round(peakKib / 1024)} MiB`);
  assert.ok(peakKib < MAX_MEMORY_KIB, `${peakKib} KiB`);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await qemuImg(['compare', '-q', m.overlay, m.base]);
});
