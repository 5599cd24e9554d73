/** An image that engines die of, again and again: it alone answers EIO, and the others go on. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { tool } from '../support/file-tools.ts';
import { eventually, type Mounted, mountImages } from '../support/mounted.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { type Place, placeOf, KERNEL as subject } from './suite/subject.ts';

const STUCK_SERVER = fileURLToPath(new URL('../support/stuck-server.js', import.meta.url));
const CRASH_ON_OPEN = fileURLToPath(new URL('../support/crash-on-open.js', import.meta.url));
const PATIENCE_MS = 60_000;
/** An engine has taken up by then what it has found left. */
const TAKE_UP_MS = 700;

interface Status {
  readonly 'supervisor-pid': number;
  readonly generation: number;
  readonly views: readonly { readonly name: string; readonly error: string | null }[];
}

const statusOf = async (mounted: Mounted): Promise<Status> =>
  (await vdiskfsJson(['status', mounted.mountpoint])) as Status;

/** A file `stuck.raw` whose reads do not end, until the server is told. */
const stuckFile = async (place: Place): Promise<{ path: string; letGo: () => void }> => {
  const directory = join(place.root, 'stuck');
  await tool('mkdir', [directory]);
  const server = spawn(process.execPath, [STUCK_SERVER, directory], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  place.cleanup.after(async () => {
    server.stdin.end();
    await run('umount', ['-l', directory]);
    server.kill('SIGKILL');
  });
  await new Promise((resolve) => server.stdout.once('data', resolve));
  return { path: join(directory, 'stuck.raw'), letGo: () => server.stdin.end() };
};

const reading = (place: Place, path: string): { ended: Promise<string>; child: ChildProcess } => {
  const args = [`if=${path}`, 'of=/dev/null', 'bs=4k', 'count=1', 'iflag=direct'];
  const child = spawn('dd', args, { env: { ...process.env, LC_ALL: 'C' } });
  place.cleanup.after(async () => void child.kill('SIGKILL'));
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString('utf8');
  });
  return { child, ended: new Promise((resolve) => child.once('close', () => resolve(said))) };
};

/** The engine and the one that waits to take its place. */
const enginesOf = async (supervisor: number): Promise<readonly number[]> => {
  const text = await readFile(`/proc/${supervisor}/task/${supervisor}/children`, 'utf8');
  return text.trim().split(' ').filter(Boolean).map(Number);
};

/** How many engines have died. */
const deathsIn = (log: string): number =>
  [...log.matchAll(/the engine ended with .*: another takes over/g)].length;

const isBlamed = (mounted: Mounted): boolean =>
  /bad\S*: engines die of it again and again/.test(mounted.log);

/** Each engine crashes a moment after it has begun to serve, until an image is to blame. */
const crashUntilBlamed = async (mounted: Mounted, supervisor: number): Promise<void> => {
  for (let deaths = 0; !isBlamed(mounted); deaths++) {
    await eventually(
      'the next engine serves',
      async () => (await statusOf(mounted).catch(() => null))?.generation === deaths,
      PATIENCE_MS,
    );
    await sleep(TAKE_UP_MS);
    for (const pid of await enginesOf(supervisor)) process.kill(pid, 'SIGABRT');
    await eventually('the engine dies', async () => deathsIn(mounted.log) > deaths, PATIENCE_MS);
  }
};

test('the view of an image that engines crash on answers EIO, and is named; the others go on', async (t) => {
  const place = await placeOf(t, subject);
  const good = place.image('good.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', good, '16M']);
  await qemuIo(good, ['write -P 0x5a 0 1M']);
  const stuck = await stuckFile(place);
  const mounted = await place.mount([], [place.images, `bad=${stuck.path}`]);
  const bad = reading(place, mounted.path('bad.raw'));
  await sleep(300);
  await crashUntilBlamed(mounted, (await statusOf(mounted))['supervisor-pid']);
  assert.match(await bad.ended, /Input\/output error/);
  assert.match(mounted.log, /bad\.raw: engines die of it again and again/);
  const deaths = deathsIn(mounted.log);
  assert.ok(deaths <= 6, `${deaths} engines died`);
  const written = join(place.root, 'byte');
  await tool('sh', ['-c', `printf Q > ${written}`]);
  await tool('dd', [`if=${written}`, `of=${mounted.path('good.raw')}`, 'conv=notrunc,fsync']);
  assert.equal((await readFile(mounted.path('good.raw')))[0], 'Q'.charCodeAt(0));
  const { views, generation } = await statusOf(mounted);
  assert.equal(generation, deaths, 'the engine lives');
  assert.match(views.find((v) => v.name === 'bad.raw')?.error ?? '', /died of it again and again/);
  assert.equal(views.find((v) => v.name === 'good.raw')?.error, null);
  const again = reading(place, mounted.path('bad.raw'));
  assert.match(await again.ended, /Input\/output error/);
  // A restart gives it another try.
  stuck.letGo();
  const restarted = await vdiskfs(['restart', mounted.mountpoint], { timeoutMs: PATIENCE_MS });
  assert.equal(restarted.status, 0, restarted.stderr);
  await eventually('the bad view is read again', async () => {
    const done = await reading(place, mounted.path('bad.raw')).ended;
    return !/error/.test(done);
  });
  await mounted.unmount();
});

test('an image that engines crash on when they open it: the mount comes back without it', async (t) => {
  const place = await placeOf(t, subject);
  const [good, bad] = [place.image('good.qcow2'), place.image('bad.qcow2')];
  for (const image of [good, bad]) await qemuImg(['create', '-q', '-f', 'qcow2', image, '16M']);
  const crashes = join(place.root, 'crashes');
  const mounted = await mountImages(place.cleanup, {
    backend: 'kernel',
    sources: [place.images],
    mountpoint: join(place.root, 'mnt'),
    env: { NODE_OPTIONS: `--import ${CRASH_ON_OPEN}`, CRASH_ON: bad, CRASH_WHILE: crashes },
  });
  await tool('touch', [crashes]);
  const done = await reading(place, mounted.path('bad.raw')).ended;
  assert.match(done, /Input\/output error/);
  assert.ok(isBlamed(mounted), mounted.log);
  await tool('dd', ['if=/dev/zero', `of=${mounted.path('good.raw')}`, 'count=1', 'conv=notrunc']);
  const { views } = await statusOf(mounted);
  assert.deepEqual(
    views.map((v) => [v.name, v.error === null]),
    [
      ['bad.raw', false],
      ['good.raw', true],
    ],
  );
  assert.ok(deathsIn(mounted.log) <= 6, mounted.log);
  await mounted.unmount();
  await assertClean(good);
});
