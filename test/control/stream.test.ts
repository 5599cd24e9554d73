/** Streams of a mount: what a guest sees, what QEMU finds afterwards, and what survives the engine and the mount. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { open, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { extendedAttribute } from '../../src/os/mounts.ts';
import { eventually } from '../support/mounted.ts';
import { assertClean, contentSha256, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { type ControlMount, controlMount } from './control-mount.ts';
import { verifyingGuest } from './verifying-guest.ts';

interface JobInfo {
  readonly device: string;
  readonly offset: number;
  readonly len: number;
  readonly status: string;
  readonly paused: boolean;
}

const jobsOf = async (m: ControlMount): Promise<readonly JobInfo[]> =>
  (await vdiskfsJson(['jobs', m.mountpoint])) as JobInfo[];

const untilNoJobs = async (m: ControlMount, limitMs = 20_000): Promise<void> => {
  const end = Date.now() + limitMs;
  while ((await jobsOf(m)).length > 0) {
    if (Date.now() > end) throw new Error(`jobs are left: ${JSON.stringify(await jobsOf(m))}`);
    await sleep(100);
  }
};

const assertIndependent = async (m: ControlMount, sha256: string): Promise<void> => {
  const info = (await qemuImgJson('info', ['-U', m.overlay])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], undefined);
  const unmounted = await vdiskfs(['umount', m.mountpoint]);
  assert.equal(unmounted.status, 0, unmounted.stderr);
  await assertClean(m.overlay);
  await qemuImg(['create', '-q', '-f', 'qcow2', m.base, '1M']);
  assert.equal(await contentSha256(m.overlay, join(m.root, 'after')), sha256, 'without its base');
};

test('stream --wait makes an image independent of its base, with the same content', async (t) => {
  const m = await controlMount(t);
  const before = await contentSha256(m.view, join(m.root, 'before'));
  const done = await vdiskfs(['stream', '--wait', m.view]);
  assert.equal(done.status, 0, done.stderr);
  assert.equal(done.stdout, 'job vm completed\n');
  const status = (await vdiskfsJson(['status', m.mountpoint])) as {
    views: { name: string; readOnlyReason: string | null }[];
  };
  const base = status.views.find((v) => v.name === 'base.raw');
  assert.equal(base?.readOnlyReason, null, 'nobody uses the base any more');
  await assertIndependent(m, before);
});

test('events of a stream come in the order in which QEMU sends them', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const c = await m.qmp();
  await c.execute('block-stream', { device: 'vm', 'auto-dismiss': false });
  await c.event('BLOCK_JOB_COMPLETED');
  while (c.events.length < 6) await sleep(10);
  const names = c.events.map((e) =>
    e.event === 'JOB_STATUS_CHANGE' ? String(e.data?.['status']) : String(e.event),
  );
  const expected = ['created', 'running', 'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded'];
  assert.deepEqual(names, expected);
  const [job] = (await c.execute('query-jobs')) as { status: string }[];
  assert.equal(job?.status, 'concluded');
  // The result waits for its client, also over a restart of the engine.
  await eventually('the result is on disk', async () =>
    (await readFile(join(m.stateDirectory, 'vm.job'), 'utf8')).includes('"result":{'),
  );
  process.kill(await m.enginePid(), 'SIGKILL');
  await sleep(200);
  const again = await m.qmp();
  const [kept] = (await again.execute('query-jobs')) as { status: string; id: string }[];
  assert.deepEqual([kept?.id, kept?.status], ['vm', 'concluded']);
  await again.execute('job-dismiss', { id: 'vm' });
  assert.deepEqual(await again.execute('query-jobs'), []);
});

test('a limited stream is paused, resumed, sped up, and refuses a second one on its nodes', async (t) => {
  const m = await controlMount(t);
  const begun = await vdiskfs(['stream', '--speed', '2M', m.view]);
  assert.equal(begun.status, 0, begun.stderr);
  const second = await vdiskfs([
    'qmp',
    m.mountpoint,
    '{"execute":"block-stream","arguments":{"device":"vm","job-id":"other"}}',
  ]);
  assert.equal(second.status, 1);
  assert.match(second.stderr, /is busy: job 'vm' \(stream\) uses it/);
  assert.equal((await vdiskfs(['job', 'pause', m.view])).status, 0);
  await sleep(400);
  const [paused] = await jobsOf(m);
  assert.equal(paused?.status, 'paused');
  await sleep(300);
  assert.equal((await jobsOf(m))[0]?.offset, paused.offset, 'nothing is copied meanwhile');
  assert.ok(paused.offset < paused.len);
  assert.equal((await vdiskfs(['job', 'speed', m.view, '0'])).status, 0);
  assert.equal((await vdiskfs(['job', 'resume', 'vm'])).status, 0);
  await untilNoJobs(m);
  const info = (await qemuImgJson('info', ['-U', m.overlay])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], undefined);
});

test('a job is found by its name although another mount hangs', async (t) => {
  const m = await controlMount(t);
  const hanging = await controlMount(t);
  assert.equal((await vdiskfs(['stream', '--speed', '2M', m.view])).status, 0);
  const pid = await hanging.enginePid();
  process.kill(pid, 'SIGSTOP');
  try {
    const paused = await vdiskfs(['job', 'pause', 'vm']);
    assert.equal(paused.status, 0, paused.stderr);
  } finally {
    process.kill(pid, 'SIGCONT');
  }
  assert.equal((await vdiskfs(['job', 'cancel', m.view])).status, 0);
  await untilNoJobs(m);
});

test('a cancelled stream keeps the chain and what it copied', async (t) => {
  const m = await controlMount(t);
  const before = await contentSha256(m.view, join(m.root, 'before'));
  assert.equal((await vdiskfs(['stream', '--speed', '2M', m.view])).status, 0);
  await sleep(500);
  assert.equal((await vdiskfs(['job', 'cancel', m.view])).status, 0);
  await untilNoJobs(m);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  const info = (await qemuImgJson('info', [m.overlay])) as { 'backing-filename'?: string };
  assert.equal(info['backing-filename'], 'base.qcow2');
  const [check] = [(await qemuImgJson('check', [m.overlay])) as { 'allocated-clusters': number }];
  assert.ok(check['allocated-clusters'] > 16, 'what was copied stays');
  assert.equal(await contentSha256(m.overlay, join(m.root, 'after')), before);
});

test('a guest that writes during a stream loses nothing', async (t) => {
  const m = await controlMount(t);
  const guest = verifyingGuest(m, { writtenMib: 24 });
  await sleep(300);
  const stream = await vdiskfs(['stream', '--wait', m.view], { timeoutMs: 60_000 });
  assert.equal(stream.status, 0, stream.stderr);
  const { status, stderr, stdout } = await guest;
  assert.equal(status, 0, stderr + stdout);
  await assertIndependent(m, await contentSha256(m.view, join(m.root, 'before')));
});

test('SIGKILL of the engine in the middle: the stream goes on and ends right', async (t) => {
  const m = await controlMount(t);
  const before = await contentSha256(m.view, join(m.root, 'before'));
  assert.equal((await vdiskfs(['stream', '--speed', '2M', m.view])).status, 0);
  for (let i = 0; i < 2; i++) {
    await sleep(700);
    process.kill(await m.enginePid(), 'SIGKILL');
    await sleep(500);
  }
  const [job] = await jobsOf(m);
  assert.equal(job?.device, 'vm', 'taken up by the new engine');
  assert.equal((await vdiskfs(['job', 'speed', m.view, '0'])).status, 0);
  await untilNoJobs(m);
  await assertIndependent(m, before);
});

test('a mount that ends pauses its stream, and the next one goes on, unless it shall not', async (t) => {
  const m = await controlMount(t);
  const before = await contentSha256(m.view, join(m.root, 'before'));
  assert.equal((await vdiskfs(['stream', '--speed', '2M', m.view])).status, 0);
  await sleep(300);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  assert.deepEqual(await readdir(m.stateDirectory), ['vm.job']);
  await m.mount(['--no-resume']);
  assert.deepEqual(await jobsOf(m), []);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await m.mount();
  assert.equal((await jobsOf(m))[0]?.device, 'vm');
  assert.equal((await vdiskfs(['job', 'speed', m.view, '0'])).status, 0);
  await untilNoJobs(m);
  await assertIndependent(m, before);
  assert.deepEqual(await readdir(m.root).then((names) => names.includes('state')), false);
});

for (const removed of ['base', 'overlay'] as const) {
  test(`its ${removed} is removed under a stream: it ends, the guest has all of its disk, and others theirs`, async (t) => {
    const m = await controlMount(t);
    const before = await contentSha256(m.view, join(m.root, 'before'));
    const pid = await m.enginePid();
    const other = join(m.images, 'other.qcow2');
    await qemuImg(['create', '-q', '-f', 'qcow2', other, '1M']);
    const c = await m.qmp();
    await using guest = await open(m.view, 'r+');
    await c.execute('block-stream', { device: 'vm', 'job-id': 'vm', speed: 2 << 20 });
    await rm(removed === 'base' ? m.base : m.overlay);
    // Something looks, and so the mount has seen it.
    await readdir(m.mountpoint);
    await c.execute('block-job-set-speed', { device: 'vm', speed: 0 });
    const { data } = await c.event('BLOCK_JOB_COMPLETED');
    assert.equal(data?.['error'], undefined);
    const found = Buffer.alloc((await guest.stat()).size);
    await guest.read(found, 0, found.length, 0);
    assert.equal(createHash('sha256').update(found).digest('hex'), before);
    await guest.write(Buffer.alloc(4096, 7), 0, 4096, 4096);
    await guest.sync();
    await guest.close();
    const beside = join(m.mountpoint, 'other.raw');
    const wrote = await run('qemu-io', ['-f', 'raw', '-c', 'write -P 3 0 64k', beside]);
    assert.equal(wrote.status, 0, wrote.stderr);
    assert.equal(await m.enginePid(), pid);
    assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
    await assertClean(other);
    if (removed === 'base') await assertClean(m.overlay);
  });
}

test('a full disk pauses a stream with --on-error enospc, the guest reads on, resume ends it', async (t) => {
  const m = await controlMount(t, { mounted: false });
  const small = join(m.root, 'small');
  await run('mkdir', [small]);
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=80M', 'none', small]);
  assert.equal(mounted.status, 0, mounted.stderr);
  m.cleanup.after(async () => {
    await run('umount', ['-l', small]);
  });
  await run('sh', ['-c', `cp ${m.images}/* ${small}/`]);
  const before = await contentSha256(join(small, 'vm.qcow2'), join(m.root, 'before'));
  const own = ['--socket', m.socketPath, '--state-dir', m.stateDirectory];
  const begun = await vdiskfs(['mount', ...own, small, m.mountpoint]);
  assert.equal(begun.status, 0, begun.stderr);
  const c = await m.qmp();
  assert.equal((await vdiskfs(['stream', '--on-error', 'enospc', m.view])).status, 0);
  const { data } = await c.event('BLOCK_JOB_ERROR');
  assert.deepEqual(data, { device: 'vm', operation: 'write', action: 'stop' });
  const [job] = (await c.execute('query-block-jobs')) as { 'io-status': string }[];
  assert.equal(job?.['io-status'], 'nospace');
  assert.equal(await contentSha256(m.view, join(m.root, 'while')), before, 'the guest reads on');
  await run('mount', ['-o', 'remount,size=200M', small]);
  await c.execute('job-resume', { id: 'vm' });
  await c.event('BLOCK_JOB_COMPLETED');
  assert.equal(c.events.find((e) => e.event === 'BLOCK_JOB_COMPLETED')?.data?.['error'], undefined);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await assertClean(join(small, 'vm.qcow2'));
});

test('readers during a stream are served although one of them is killed', async (t) => {
  const m = await controlMount(t);
  const begun = await vdiskfs(['stream', '--speed', '2M', m.view]);
  assert.equal(begun.status, 0, begun.stderr);
  const file = await open(m.view, 'r');
  t.after(() => file.close());
  const killed = run('dd', [`if=${m.view}`, 'of=/dev/null', 'bs=4k', 'iflag=direct'], {
    timeoutMs: 300,
  });
  const buffer = Buffer.alloc(4096);
  for (let i = 0; i < 200; i++) await file.read(buffer, 0, 4096, ((i * 7919) % 16_000) * 4096);
  await killed;
  assert.equal((await vdiskfs(['job', 'speed', m.view, '0'])).status, 0);
  await untilNoJobs(m);
});

test('copy-on-read and a stream at once: a reader that is killed blocks nobody, and all becomes local', async (t) => {
  const m = await controlMount(t, { mounted: false });
  const before = await contentSha256(m.overlay, join(m.root, 'before'));
  await m.mount(['--copy-on-read', '--stream=1M']);
  await eventually('the stream is seen', async () =>
    /"type":"stream"/.test((await extendedAttribute(m.view, 'user.vdiskfs.jobs')) ?? ''),
  );
  const reader = [`if=${m.view}`, 'of=/dev/null', 'bs=64k', 'iflag=direct'];
  await run('dd', reader, { timeoutMs: 200 });
  const whole = run('dd', reader, { timeoutMs: 60_000 });
  // The readers may have made everything local by then, and the job be at its end.
  const faster = await vdiskfs(['job', 'speed', m.view, '0']);
  const isOver = /no job|not found|in state '(?:waiting|pending|concluded)'/i.test(faster.stderr);
  assert.ok(faster.status === 0 || isOver, faster.stderr);
  assert.equal((await whole).status, 0);
  await untilNoJobs(m);
  await assertIndependent(m, before);
});

test('with copy-on-read, what was read once does not need the base any more', async (t) => {
  const m = await controlMount(t, { mounted: false });
  const before = await contentSha256(m.overlay, join(m.root, 'before'));
  await m.mount(['--copy-on-read']);
  assert.equal(await contentSha256(m.view, join(m.root, 'while')), before);
  assert.equal((await vdiskfs(['umount', m.mountpoint])).status, 0);
  await assertClean(m.overlay);
  const map = (await qemuImgJson('map', [m.overlay])) as { depth: number; present: boolean }[];
  assert.deepEqual(
    map.filter((run) => run.present && run.depth > 0),
    [],
  );
});
