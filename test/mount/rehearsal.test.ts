/** Engines rehearse: nobody who wants something of them waits for that, and nothing is left of it, however it ends. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { rehearsalDirectory, takePlace } from '../../src/daemon/rehearsal-place.ts';
import { runtimeDirectory } from '../../src/daemon/runtime-directory.ts';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tool } from '../support/file-tools.ts';
import { type Mounted, mountImages } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { vdiskfsJson } from '../support/vdiskfs.ts';

/** The runtime directory has to have room for a rehearsal, else none begins (rehearsal.ts). */
const SOON_MS = 20_000;
const POLL_MS = 2;

const until = async (what: string, isSo: () => boolean): Promise<void> => {
  for (const end = Date.now() + SOON_MS; !isSo(); await sleep(POLL_MS))
    assert.ok(Date.now() < end, `not within ${SOON_MS} ms: ${what}`);
};

interface Scene {
  readonly image: string;
  /** Where its engines rehearse. */
  readonly directory: string;
  readonly mount: (...args: string[]) => Promise<Mounted>;
}

const sceneOf = async (t: Cleanup, setting: 'on' | 'off' = 'on'): Promise<Scene> => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const image = join(root, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '64M']);
  const mountpoint = join(root, 'mnt');
  return {
    image,
    directory: rehearsalDirectory(runtimeDirectory()),
    mount: (...args) =>
      mountImages(cleanup, {
        backend: 'kernel',
        sources: [image],
        mountpoint,
        args: ['--log-level', 'debug', ...args],
        env: { VDISKFS_REHEARSAL: setting },
      }),
  };
};

const rehearsals = ({ log }: Mounted): number =>
  [...log.matchAll(/rehearsed [1-9]\d* writes/g)].length;

interface Status {
  readonly pid: number;
  readonly counters: { readonly writtenBytes: number };
}

const engineOf = async ({ mountpoint }: Mounted): Promise<number> =>
  ((await vdiskfsJson(['status', mountpoint])) as Status).pid;

const write = (mounted: Mounted, count: number): Promise<string> => {
  const to = [`of=${mounted.path('disk.raw')}`, 'oflag=direct', 'conv=notrunc'];
  return tool('dd', ['if=/dev/urandom', 'bs=4k', `count=${count}`, ...to]);
};

test('an engine rehearses once, and what it counts for guests stays as it is', async (t) => {
  const { directory, mount } = await sceneOf(t);
  const mounted = await mount();
  await until('it has rehearsed', () => rehearsals(mounted) === 1);
  assert.ok(!existsSync(directory));
  const { counters } = (await vdiskfsJson(['status', mounted.mountpoint])) as Status;
  assert.equal(counters.writtenBytes, 0);
  await mounted.unmount();
});

test('a guest that writes meanwhile is served, and an unmount ends it', async (t) => {
  const { image, directory, mount } = await sceneOf(t);
  for (const waitMs of [0, 20, 60]) {
    const mounted = await mount();
    await until(`it rehearses: ${mounted.log}`, () => existsSync(directory));
    await sleep(waitMs);
    await write(mounted, 64);
    await mounted.unmount();
    assert.ok(!existsSync(directory), 'nothing is left of it');
    await assertClean(image);
  }
});

test('of an engine that is killed in it nothing is left when the next one serves, and that one rehearses, too', async (t) => {
  const { directory, mount } = await sceneOf(t);
  const mounted = await mount();
  await until('it rehearses', () => existsSync(directory));
  process.kill(await engineOf(mounted), 'SIGKILL');
  await write(mounted, 8);
  await until('the next one has rehearsed', () => rehearsals(mounted) === 1);
  assert.ok(!existsSync(directory));
  process.kill(await engineOf(mounted), 'SIGKILL');
  await mounted.unmount();
  assert.ok(!existsSync(directory));
});

test('engines rehearse one after the other, and one that cannot begin serves without', async (t) => {
  const [first, second, third] = [await sceneOf(t), await sceneOf(t), await sceneOf(t)];
  const leave = takePlace(runtimeDirectory());
  assert.ok(leave !== null, 'nobody else rehearses');
  const mounts = [await first.mount(), await second.mount()];
  await sleep(1000);
  assert.ok(!existsSync(first.directory));
  leave();
  for (const mounted of mounts)
    await until(`it has rehearsed: ${mounted.log}`, () => rehearsals(mounted) === 1);
  const leaveAgain = takePlace(runtimeDirectory());
  t.after(() => leaveAgain?.());
  const mounted = await third.mount();
  await until('it gives up', () => /no rehearsal: .*other engines rehearse/.test(mounted.log));
  await write(mounted, 8);
});

test('there is none of a mount that is read-only, or has it switched off', async (t) => {
  for (const [setting, ...args] of [['off'], ['on', '--read-only']] as const) {
    const { directory, mount } = await sceneOf(t, setting);
    const mounted = await mount(...args);
    for (const end = Date.now() + 1500; Date.now() < end; await sleep(POLL_MS))
      assert.ok(!existsSync(directory));
    assert.equal(rehearsals(mounted), 0);
    await mounted.unmount();
  }
});
