/** The control socket speaks QMP as QEMU's clients expect it, and no client harms another. */
import assert from 'node:assert/strict';
import { stat } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { run, vdiskfs } from '../support/vdiskfs.ts';
import { controlMount } from './control-mount.ts';

test('greeting, negotiation, errors and ids are those of QMP', async (t) => {
  const m = await controlMount(t, { sizeMib: 4 });
  assert.equal((await stat(m.socketPath)).mode & 0o777, 0o600);
  const c = await m.qmp({ negotiate: false });
  const early = await c.ask({ execute: 'query-version', id: 'x' });
  assert.equal(early.error?.class, 'CommandNotFound');
  assert.equal(early.id, 'x');
  const wrong = await c.ask({ execute: 'qmp_capabilities', arguments: { enable: ['oob'] } });
  assert.equal(wrong.error?.class, 'GenericError');
  assert.deepEqual((await c.ask({ execute: 'qmp_capabilities' })).return, {});
  assert.equal((await c.ask({ execute: 'qmp_capabilities' })).error?.class, 'CommandNotFound');
  assert.equal((await c.ask({ execute: 'no-such' })).error?.class, 'CommandNotFound');
  const cases: readonly [object, RegExp][] = [
    [{ execute: 'block-stream' }, /Parameter 'device' is missing/],
    [{ execute: 'block-stream', arguments: { device: 'vm', x: 1 } }, /Parameter 'x' is unexpected/],
    [{ execute: 'block-stream', arguments: { device: 1 } }, /'device', expected: string/],
    [{ execute: 'block-stream', arguments: { device: 'vm', speed: -1 } }, /speed/],
    [{ execute: 'block-stream', arguments: { device: 'vm', 'on-error': 'x' } }, /does not accept/],
    [{ execute: 'block-stream', arguments: { device: 'vm', base: '/x' } }, /backing chain/],
    [{ execute: 'query-version', extra: 1 }, /'extra' is unexpected/],
    [{ arguments: {} }, /lacks member 'execute'/],
  ];
  for (const [message, expected] of cases) {
    const { error } = await c.ask(message);
    assert.equal(error?.class, 'GenericError', JSON.stringify(message));
    assert.match(error?.desc ?? '', expected);
  }
  const missing = await c.ask({ execute: 'block-stream', arguments: { device: 'nobody' } });
  assert.equal(missing.error?.class, 'DeviceNotFound');
  for (const verb of ['pause', 'resume', 'complete', 'cancel']) {
    const old = await c.ask({ execute: `block-job-${verb}`, arguments: { device: 'vm' } });
    assert.equal(old.error?.class, 'DeviceNotActive', verb);
    const modern = await c.ask({ execute: `job-${verb}`, arguments: { id: 'vm' } });
    assert.deepEqual(modern.error, { class: 'GenericError', desc: 'Job not found' });
  }
});

test('queries name devices, nodes and chains as QEMU does', async (t) => {
  const m = await controlMount(t, { sizeMib: 4 });
  const c = await m.qmp();
  const blocks = (await c.execute('query-block')) as {
    device: string;
    inserted: {
      file: string;
      drv: string;
      ro: boolean;
      backing_file?: string;
      image: { 'virtual-size': number };
    };
  }[];
  const vm = blocks.find((b) => b.device === 'vm');
  assert.equal(vm?.inserted.file, m.overlay);
  assert.equal(vm.inserted.backing_file, m.base);
  assert.equal(vm.inserted.image['virtual-size'], 4 << 20);
  const base = blocks.find((b) => b.device === 'base');
  assert.equal(base?.inserted.ro, true);
  const nodes = (await c.execute('query-named-block-nodes')) as { 'node-name': string }[];
  assert.ok(nodes.length >= 2);
  const commands = (await c.execute('query-commands')) as { name: string }[];
  const schema = (await c.execute('query-qmp-schema')) as { name: string; 'meta-type': string }[];
  for (const { name } of commands.filter((n) => n.name !== 'qmp_capabilities')) {
    assert.ok(
      schema.some((s) => s.name === name && s['meta-type'] === 'command'),
      name,
    );
  }
  const line = { 'command-line': 'info block vm' };
  assert.match(
    String(await c.execute('human-monitor-command', line)),
    /^vm \(.*vm\.qcow2 \(qcow2\)/,
  );
  const text = (await vdiskfs(['qmp', m.mountpoint, 'query-version'])).stdout;
  assert.equal((JSON.parse(text) as { qemu: { major: number } }).qemu.major, 7);
});

test('garbage, a line of 100 MiB, and a client that never reads harm no other client', async (t) => {
  const m = await controlMount(t, { sizeMib: 4 });
  const good = await m.qmp();
  const garbage = await m.qmp();
  garbage.socket.write('this is no JSON\n]]]}{\u0000\n');
  assert.equal((await garbage.answer()).error?.class, 'GenericError');
  const big = await m.qmp();
  const chunk = Buffer.alloc(1 << 20, 0x61);
  big.socket.write('{"execute":"');
  for (let i = 0; i < 100 && !big.socket.destroyed; i++) {
    await new Promise<void>((resolve) => big.socket.write(chunk, () => resolve()));
  }
  assert.equal((await big.answer()).error?.class, 'GenericError');
  const silent = await m.qmp();
  silent.socket.pause();
  // It asks and asks, and never reads: the engine stops reading it, or cuts it off.
  for (let i = 0; i < 2000 && !silent.socket.destroyed; i++) {
    silent.socket.write('{"execute":"query-qmp-schema"}');
  }
  await sleep(200);
  const begun = Date.now();
  await good.execute('query-block');
  assert.ok(Date.now() - begun < 5000, 'the good client is answered');
  const pid = await m.enginePid();
  const status = await run('grep', ['VmRSS', `/proc/${pid}/status`]);
  const kib = Number(/\d+/.exec(status.stdout)?.[0]);
  assert.ok(kib < 400_000, `the engine has ${kib} KiB`);
});

test("QEMU's own monitor commands work over `vdiskfs monitor`, and quit unmounts", async (t) => {
  const m = await controlMount(t, { sizeMib: 4 });
  const c = await m.qmp();
  const hmp = async (line: string): Promise<string> =>
    String(await c.execute('human-monitor-command', { 'command-line': line }));
  assert.match(await hmp('help'), /block_stream device \[speed \[base\]\]/);
  assert.match(await hmp('info block-jobs'), /No active jobs/);
  assert.match(await hmp('nonsense'), /unknown command: 'nonsense'/);
  assert.match(await hmp('block_stream nobody'), /^Error: .*nobody/);
  assert.equal(await hmp('block_resize vm 8M'), '');
  assert.equal((await stat(m.view)).size, 8 << 20);
  await c.execute('quit');
  for (let i = 0; i < 100; i++) {
    if ((await run('mountpoint', ['-q', m.mountpoint])).status !== 0) break;
    await sleep(100);
  }
  assert.notEqual((await run('mountpoint', ['-q', m.mountpoint])).status, 0, 'unmounted');
});
