/** Watching a mount: its metrics, and `status --watch`. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { open, readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { eventually, type Mounted, mountImages, refusedMount } from '../support/mounted.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { PROGRAM, run, vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

/** One that was free a moment ago. */
const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' ? (address?.port ?? 0) : 0));
    });
  });

const withImage = async (t: Cleanup) => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  const image = join(root, 'we"ird\\.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', image, '8M']);
  return { cleanup, root, image, mountpoint: join(root, 'mnt') };
};

const mountWith = async (t: Cleanup, ...args: string[]): Promise<Mounted> => {
  const { cleanup, image, mountpoint } = await withImage(t);
  return mountImages(cleanup, { backend: 'kernel', sources: [image], mountpoint, args });
};

const DISK = 'we"ird\\.raw';

/** Values by name and labels. */
const scrape = async (port: number): Promise<ReadonlyMap<string, number>> => {
  const response = await fetch(`http://127.0.0.1:${port}/metrics`);
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type') ?? '', /^text\/plain; version=0\.0\.4/);
  const samples = (await response.text()).split('\n').filter((line) => /^[a-z]/.test(line));
  return new Map(
    samples.map((line): [string, number] => {
      const blank = line.lastIndexOf(' ');
      return [line.slice(0, blank), Number(line.slice(blank + 1))];
    }),
  );
};

const readAndWrite = async (path: string): Promise<void> => {
  const file = await open(path, 'r+');
  try {
    await file.write(new Uint8Array(300_000).fill(5), 0, 300_000, 0);
    await file.sync();
    await file.read(new Uint8Array(100_000), 0, 100_000, 4 << 20);
  } finally {
    await file.close();
  }
};

test('the metrics are those of the documentation, and count what a program and a job do', async (t) => {
  const port = await freePort();
  const { cleanup, root, image, mountpoint } = await withImage(t);
  const overlay = join(root, 'over.qcow2');
  await qemuIo(image, ['write 0 4M']);
  await qemuImg(['create', '-q', '-f', 'qcow2', '-b', image, '-F', 'qcow2', overlay]);
  const mounted = await mountImages(cleanup, {
    backend: 'kernel',
    sources: [image, overlay],
    mountpoint,
    args: ['--metrics', String(port), '--state-dir', join(root, 'state')],
  });
  const before = await scrape(port);
  await readAndWrite(mounted.path('over.raw'));
  const started = await vdiskfs(['stream', '--speed', '64k', mounted.path('over.raw')]);
  assert.equal(started.status, 0, started.stderr);
  assert.equal((await vdiskfs(['job', 'pause', mounted.path('over.raw')])).status, 0);
  const after = await scrape(port);
  const grown = (name: string): number => (after.get(name) ?? Number.NaN) - (before.get(name) ?? 0);
  assert.ok(grown('vdiskfs_written_bytes_total') >= 300_000);
  assert.ok(grown('vdiskfs_read_bytes_total') >= 100_000);
  assert.ok(grown('vdiskfs_requests_total') > 0);
  assert.equal(
    after.get('vdiskfs_requests_total'),
    (after.get('vdiskfs_translation_hits_total') ?? 0) +
      (after.get('vdiskfs_translation_faults_total') ?? 0),
  );
  const fsync = '{operation="fsync",served_by="engine"}';
  assert.equal(grown(`vdiskfs_request_duration_seconds_count${fsync}`), 1);
  assert.equal(after.get('vdiskfs_view_size_bytes{view="we\\"ird\\\\.raw"}'), 8 << 20);
  assert.equal(after.get('vdiskfs_view_active{view="over.raw"}'), 1);
  assert.equal(after.get('vdiskfs_jobs_started_total'), 1);
  assert.equal(after.get('vdiskfs_jobs_failed_total'), 0);
  const job = '{job="over",type="stream"}';
  assert.equal(after.get(`vdiskfs_job_length_bytes${job}`), 8 << 20);
  assert.equal(after.get(`vdiskfs_job_speed_bytes_per_second${job}`), 65_536);
  assert.equal(after.get(`vdiskfs_job_paused${job}`), 1);
  const documented = await readFile(new URL('../../../docs/METRICS.md', import.meta.url), 'utf8');
  for (const sample of after.keys()) {
    const name = sample.replace(/\{.*/, '').replace(/_(?:bucket|sum|count)$/, '');
    assert.ok(documented.includes(`\`${name}\``), `${name} is documented`);
  }
  for (const [, name] of documented.matchAll(/`(vdiskfs_[a-z_]+)`/g))
    assert.ok(
      [...after.keys()].some((k) => k.startsWith(name ?? '?')),
      `${name} is served`,
    );
});

test('buckets of a histogram only grow, and the last holds them all', async (t) => {
  const port = await freePort();
  const mounted = await mountWith(t, '--metrics', `127.0.0.1:${port}`);
  await readAndWrite(mounted.path(DISK));
  const samples = [...(await scrape(port))];
  for (const operation of ['read', 'write', 'fsync', 'other']) {
    const labels = `operation="${operation}",served_by="engine"`;
    const buckets = samples.filter(([name]) => name.includes('_bucket{') && name.includes(labels));
    assert.equal(buckets.length, 23);
    for (let i = 1; i < buckets.length; i++)
      assert.ok((buckets[i]?.[1] ?? 0) >= (buckets[i - 1]?.[1] ?? 0));
    const count = samples.find(([name]) => name.includes('_count{') && name.includes(labels));
    assert.equal(buckets.at(-1)?.[1], count?.[1]);
  }
});

test('only loopback is served; a port in use is refused at first, and waited for by a later engine', async (t) => {
  const { cleanup, image, mountpoint } = await withImage(t);
  const taken = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => taken.once('listening', resolve));
  const address = taken.address();
  const port = typeof address === 'object' ? (address?.port ?? 0) : 0;
  const request = { backend: 'kernel' as const, sources: [image], mountpoint };
  for (const [value, reason] of [
    ['0.0.0.0:9000', /not loopback/],
    ['example.com:9000', /not loopback/],
    ['70000', /no \[HOST:\]PORT/],
    ['x', /no \[HOST:\]PORT/],
    [String(port), /EADDRINUSE/],
  ] as const) {
    const refused = await refusedMount({ ...request, args: ['--metrics', value] });
    assert.notEqual(refused.status, 0, value);
    assert.match(refused.stderr, reason);
  }
  taken.close();
  const mounted = await mountImages(cleanup, { ...request, args: ['--metrics', String(port)] });
  const { pid } = (await vdiskfsJson(['status', mountpoint])) as { pid: number };
  process.kill(pid, 'SIGKILL');
  await eventually(
    'another engine serves metrics',
    async () => (await scrape(port).catch(() => null))?.get('vdiskfs_engine_restarts_total') === 1,
    20_000,
  );
  const other = await fetch(`http://127.0.0.1:${port}/`);
  assert.equal(other.status, 404);
  const posted = await fetch(`http://127.0.0.1:${port}/metrics`, { method: 'POST' });
  assert.equal(posted.status, 405);
  await mounted.unmount();
});

test('status --watch prints look after look, and draws over the last one on a terminal', async (t) => {
  const mounted = await mountWith(t);
  const args = [PROGRAM, 'status', '--watch', '--interval', '0.1', mounted.mountpoint];
  const lines = spawn(process.execPath, [...args, '--json'], { stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '';
  lines.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString('utf8');
    if (out.split('\n').length > 3) lines.kill('SIGINT');
  });
  assert.equal(await new Promise((resolve) => lines.once('exit', resolve)), 0);
  for (const line of out.trim().split('\n'))
    assert.equal((JSON.parse(line) as { mountpoint: string }).mountpoint, mounted.mountpoint);
  // script(1) gives it a terminal.
  const command = `stty cols 300; timeout --foreground -s INT 3 ${process.execPath} ${args.join(' ')}`;
  const drawn = await run('script', ['-qec', command, '/dev/null']);
  const frames = drawn.stdout.split('\x1b[H').slice(1);
  assert.ok(frames.length >= 3, drawn.stdout);
  const last = (frames.at(-1) ?? '').replaceAll('\x1b', '^');
  assert.match(last, /^[^\n]*: .*kernel.*\^\[K\r?\nVIEW[^\n]*\^\[K\r?\n.*\^\[J/s);
  assert.ok(drawn.stdout.includes('\x1b[?25l') && drawn.stdout.includes('\x1b[?25h'));
  const wrong = await run(process.execPath, [PROGRAM, 'status', '--watch', '--interval', '0']);
  assert.equal(wrong.status, 2);
});

test('a mount that journald reads begins its lines with priorities', async (t) => {
  const { cleanup, root, mountpoint } = await withImage(t);
  const log = join(root, 'log');
  const script = `: > "$3"; exec 2>"$3"; JOURNAL_STREAM=$(stat -L -c '%d:%i' /dev/fd/2) exec "$0" "$1" mount -f --log-level debug "$2" "$4"`;
  cleanup.after(async () => void (await run('umount', ['-l', mountpoint])));
  await run('mkdir', [mountpoint]);
  const args = ['-c', script, process.execPath, PROGRAM, root, log, mountpoint];
  const child = spawn('sh', args, { stdio: ['ignore', 'pipe', 'ignore'] });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  const ended = new Promise((resolve) => child.once('exit', resolve));
  const { pid } = (await vdiskfsJson(['status', mountpoint])) as { pid: number };
  process.kill(pid, 'SIGKILL');
  await eventually('it is logged', async () => (await readFile(log, 'utf8')).includes('SIGKILL'));
  child.kill('SIGTERM');
  await ended;
  for (const line of (await readFile(log, 'utf8')).trim().split('\n'))
    assert.match(line, /^<[3467]>/);
});
