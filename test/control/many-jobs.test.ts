/** Many jobs of one mount: at once, in turn, and those that would be in each other's way. */
import assert from 'node:assert/strict';
import { copyFile, mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { vdiskfs } from '../support/loaded-vdiskfs.ts';
import { assertClean, contentSha256, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { controlMount } from './control-mount.ts';
import { verifyingGuest } from './verifying-guest.ts';

const DISKS = 10;
const DISK_MIB = 32;
/** Copies in flight have 64 MiB together; the rest is the guests', and what the collector has not seen yet. */
const MAX_MORE_KIB = 200 << 10;

/** The most that a process has had so far. */
const peakKib = async (pid: number): Promise<number> => {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(?<kib>\d+)/m.exec(status)?.groups?.['kib']);
};

test('ten disks move at once, under guests that verify; the copies share their memory', async (t) => {
  const m = await controlMount(t, { mounted: false });
  const elsewhere = join(m.root, 'elsewhere');
  await mkdir(elsewhere);
  await rm(m.overlay);
  await qemuImg(['create', '-q', '-f', 'qcow2', m.base, `${DISK_MIB}M`]);
  await qemuIo(m.base, [`write -q -P 7 0 ${DISK_MIB}M`]);
  const names = Array.from({ length: DISKS }, (_, i) => `disk${i}`);
  for (const name of names) await copyFile(m.base, join(m.images, `${name}.qcow2`));
  await rm(m.base);
  await m.mount();
  const pid = await m.enginePid();
  const before = await peakKib(pid);
  const view = (name: string): string => join(m.mountpoint, `${name}.raw`);
  const moving = names.map(async (name) => {
    const guest = verifyingGuest({ ...m, view: view(name) }, { sizeMib: DISK_MIB, writtenMib: 8 });
    const target = join(elsewhere, `${name}.qcow2`);
    const moved = await vdiskfs(['mirror', '--complete', view(name), target], {
      timeoutMs: 90_000,
    });
    assert.equal(moved.status, 0, moved.stderr);
    const { status, stderr, stdout } = await guest;
    assert.equal(status, 0, stderr + stdout);
  });
  await Promise.all(moving);
  const peak = await peakKib(pid);
  t.diagnostic(`${Math.round((peak - before) / 1024)} MiB`);
  assert.ok(peak - before < MAX_MORE_KIB, `${peak - before} KiB more`);
  const content = new Map<string, string>();
  for (const name of names) content.set(name, await contentSha256(view(name), join(m.root, name)));
  const done = await vdiskfs(['umount', m.mountpoint]);
  assert.equal(done.status, 0, done.stderr);
  for (const name of names) {
    const target = join(elsewhere, `${name}.qcow2`);
    await assertClean(target);
    assert.equal(await contentSha256(target, join(m.root, name)), content.get(name));
    await assertClean(join(m.images, `${name}.qcow2`));
  }
});
