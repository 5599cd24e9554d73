/** Commits of a mount: into the image below under a guest, layers in between, and what others who use the base are told. */
import assert from 'node:assert/strict';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { eventually } from '../support/mounted.ts';
import { assertClean, contentSha256, qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';
import { verifyingGuest } from './verifying-guest.ts';

const SIZE_MIB = 16;

interface ViewStatus {
  readonly name: string;
  readonly path: string;
  readonly readOnlyReason: string | null;
  readonly chain: readonly { readonly path: string }[];
}

const viewsOf = async (m: ControlMount): Promise<readonly ViewStatus[]> =>
  ((await vdiskfsJson(['status', m.mountpoint])) as { views: ViewStatus[] }).views;

const viewOf = async (m: ControlMount): Promise<ViewStatus | undefined> =>
  (await viewsOf(m)).find((v) => v.name === 'vm.raw');

const namesOf = async (m: ControlMount): Promise<readonly string[]> =>
  (await viewsOf(m)).map((v) => v.name);

const ok = async (args: readonly string[]): Promise<string> => {
  const done = await vdiskfs(args);
  assert.equal(done.status, 0, done.stderr);
  return done.stdout;
};

const now = (m: ControlMount): Promise<string> => contentSha256(m.view, join(m.root, 'now'));

const contentOf = async (m: ControlMount, image: string): Promise<string> => {
  await assertClean(image);
  return contentSha256(image, join(m.root, 'flat'));
};

const write = async (m: ControlMount, fill: string, at: string): Promise<void> => {
  const done = await run('qemu-io', ['-f', 'raw', '-c', `write -P ${fill} ${at}`, m.view]);
  assert.match(done.stdout, /wrote/, done.stderr);
};

test('an image is committed into the one below under a guest, which goes on over that; the overlay is empty', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const guest = verifyingGuest(m, { sizeMib: SIZE_MIB, writtenMib: 16 });
  await sleep(100);
  assert.equal(await ok(['commit', '--wait', m.view]), 'job vm completed\n');
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  assert.equal((await viewOf(m))?.path, m.base);
  assert.equal((await viewOf(m))?.readOnlyReason, null);
  assert.deepEqual(await namesOf(m), ['vm.raw']);
  await write(m, '0x5a', '3M 1M');
  const last = await now(m);
  process.kill(await m.enginePid(), 'SIGKILL');
  await sleep(300);
  assert.equal(await now(m), last);
  await ok(['umount', m.mountpoint]);
  assert.equal(await contentOf(m, m.base), last);
  const map = (await qemuImgJson('map', [m.overlay])) as { depth: number; present: boolean }[];
  assert.ok(
    map.every((r) => !r.present || r.depth > 0),
    'nothing is left in the overlay',
  );
  await m.mount();
  assert.equal((await viewOf(m))?.path, m.base);
  assert.equal(await now(m), last);
});

test('a snapshot is taken and committed back, twice: the view is over its own image again', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  for (const [name, fill] of [['one.qcow2', '0x11'] as const, ['two.qcow2', '0x22'] as const]) {
    await ok(['snapshot', '--external', join(m.images, name), m.view]);
    await write(m, fill, '2M 3M');
    const before = await now(m);
    await ok(['commit', '--wait', m.view]);
    const view = await viewOf(m);
    assert.deepEqual([view?.path, view?.readOnlyReason], [m.overlay, null]);
    assert.equal(await now(m), before);
  }
  await ok(['umount', m.mountpoint]);
  await m.mount();
  const view = await viewOf(m);
  assert.deepEqual([view?.path, view?.readOnlyReason], [m.overlay, null]);
  assert.deepEqual(await namesOf(m), ['base.raw', 'vm.raw']);
  await write(m, '0x33', '1M 64k');
  const last = await now(m);
  await ok(['umount', m.mountpoint]);
  assert.equal(await contentOf(m, m.overlay), last);
});

test('layers in between go into a layer below them, while the guest writes the image', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const at = (name: string): string => join(m.images, name);
  for (const name of ['one.qcow2', 'two.qcow2', 'top.qcow2']) {
    await ok(['snapshot', '--external', at(name), m.view]);
    await write(
      m,
      name === 'one.qcow2' ? '0x11' : '0x22',
      name === 'one.qcow2' ? '2M 3M' : '4M 1M',
    );
  }
  const before = await now(m);
  const guest = verifyingGuest(m, { sizeMib: SIZE_MIB, writtenMib: 16 });
  const out = await ok(['commit', '--wait', '--top', at('two.qcow2'), '--base', m.overlay, m.view]);
  assert.equal(out, 'job vm completed\n');
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  assert.deepEqual(
    (await viewOf(m))?.chain.map((layer) => layer.path),
    [at('top.qcow2'), m.overlay, m.base],
  );
  const last = await now(m);
  await ok(['umount', m.mountpoint]);
  assert.equal(await contentOf(m, at('top.qcow2')), last);
  assert.notEqual(before, last);
  // What was committed shows what it showed, now without what was in between.
  await qemuImg(['rebase', '-u', '-b', 'vm.qcow2', '-F', 'qcow2', at('two.qcow2')]);
  await qemuImg(['compare', at('two.qcow2'), m.overlay]);
  const info = (await qemuImgJson('info', [at('top.qcow2')])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], 'vm.qcow2');
});

test('a base that others use is refused, naming them; a cancelled commit leaves the chain', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  const other = join(m.images, 'other.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', other]);
  await eventually('the mount shows it', async () =>
    (await readdir(m.mountpoint)).includes('other.raw'),
  );
  const refused = await vdiskfs(['commit', m.view]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /'other\.raw' is made of it/);
  const before = await now(m);
  await write(m, '0x11', '0 4M');
  await ok(['commit', '--force', '--speed', '64k', m.view]);
  // Who would see it change is kept away.
  const meanwhile = await run('dd', [`if=${join(m.mountpoint, 'other.raw')}`, 'of=/dev/null']);
  assert.notEqual(meanwhile.status, 0);
  assert.deepEqual(await namesOf(m), ['other.raw', 'vm.raw']);
  await ok(['job', 'cancel', m.view]);
  await eventually(
    'the job ends',
    async () => ((await vdiskfsJson(['jobs', m.mountpoint])) as []).length === 0,
  );
  assert.deepEqual(await namesOf(m), ['base.raw', 'other.raw', 'vm.raw']);
  assert.deepEqual(
    (await viewOf(m))?.chain.map((layer) => layer.path),
    [m.overlay, m.base],
  );
  assert.notEqual(await now(m), before);
  const last = await now(m);
  await ok(['umount', m.mountpoint]);
  assert.equal(await contentOf(m, m.overlay), last);
  await assertClean(m.base);
});

test('bases that are shorter grow, and show nothing that lies below them', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB, mounted: false });
  const image = (name: string): string => join(m.images, name);
  const make = async (name: string, size: string, below: string): Promise<void> => {
    const link = ['-b', below, '-F', 'qcow2'];
    await qemuImg(['create', '-q', '-f', 'qcow2', ...link, image(name), size]);
  };
  // What lies below the short one is longer, and must not be seen where that grows.
  await make('short.qcow2', '9M', 'base.qcow2');
  await make('middle.qcow2', '11M', 'short.qcow2');
  await make('top.qcow2', `${SIZE_MIB}M`, 'middle.qcow2');
  await qemuIo(image('middle.qcow2'), ['write -q -P 5 10M 1M']);
  await qemuIo(image('top.qcow2'), ['write -q -P 6 14M 100k']);
  await m.mount();
  const view = join(m.mountpoint, 'top.raw');
  const content = (): Promise<string> => contentSha256(view, join(m.root, 'content'));
  const before = await content();
  const layers = ['--top', image('middle.qcow2'), '--base', image('short.qcow2')];
  await ok(['commit', '--wait', ...layers, view]);
  assert.equal(await content(), before, 'a layer in between');
  await rm(image('middle.qcow2'));
  await eventually('its view is gone', async () => !(await namesOf(m)).includes('middle.raw'));
  await ok(['commit', '--wait', '--base', image('short.qcow2'), view]);
  assert.equal(await content(), before, 'the image itself');

  await ok(['umount', m.mountpoint]);
  assert.equal(await contentOf(m, image('short.qcow2')), before);
  const info = (await qemuImgJson('info', [image('short.qcow2')])) as { 'virtual-size': number };
  assert.equal(info['virtual-size'], SIZE_MIB << 20);
});

test('a base that is longer than the disk is refused, until the disk is as long', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB, mounted: false });
  const small = ['-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', m.overlay, '9M'];
  await qemuImg(['create', '-q', ...small]);
  await qemuIo(m.overlay, ['write -q -P 6 2M 100k']);
  await m.mount();
  const refused = await vdiskfs(['commit', m.view]);
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /base is longer than the disk \(16777216 and 9437184 bytes\)/);
  await ok(['resize', m.view, `${SIZE_MIB}M`]);
  const before = await now(m);
  await ok(['commit', '--wait', m.view]);
  assert.equal(await now(m), before, 'zeros where the base had something');
  await ok(['umount', m.mountpoint]);
  assert.equal(await contentOf(m, m.base), before);
});

test('SIGKILL during a commit: it begins again, and ends right; HMP and events as QEMU has them', async (t) => {
  const m = await controlMount(t, { sizeMib: SIZE_MIB });
  await write(m, '0x11', '0 8M');
  const before = await now(m);
  await ok(['commit', '--speed', '1M', m.view]);
  await sleep(300);
  process.kill(await m.enginePid(), 'SIGKILL');
  await eventually('the job is there again', async () => {
    const done = await vdiskfs(['jobs', '--json', m.mountpoint]);
    return done.status === 0 && done.stdout.includes('"commit"');
  });
  assert.equal(await now(m), before);
  const c = await m.qmp();
  await c.execute('block-job-set-speed', { device: 'vm', speed: 0 });
  await eventually('it is ready', async () => {
    const [job] = (await c.execute('query-block-jobs')) as { ready: boolean; type: string }[];
    assert.equal(job?.type, 'commit');
    return job.ready;
  });
  await c.execute('block-job-complete', { device: 'vm' });
  const { data } = await c.event('BLOCK_JOB_COMPLETED');
  assert.deepEqual([data?.['type'], data?.['error']], ['commit', undefined]);
  assert.equal(await now(m), before);
  assert.equal((await viewOf(m))?.path, m.base);
  await assert.rejects(
    c.execute('block-commit', { device: 'vm' }),
    /Cannot commit an image into itself/,
  );
  await ok(['snapshot', '--external', join(m.root, 'over.qcow2'), m.view]);
  await write(m, '0x44', '1M 1M');
  const last = await now(m);
  const line = { 'command-line': 'commit vm' };
  assert.equal(await c.execute('human-monitor-command', line), '');
  assert.equal((await viewOf(m))?.path, m.base);
  assert.equal(await now(m), last);
});
