/** Images that two hosts hand back and forth: two mounts over the same files, of which one at a time has each image. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { open, stat, truncate } from 'node:fs/promises';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { extendedAttribute } from '../../src/os/mounts.ts';
import { BLOCK_DISTANCE, BLOCKS, type GuestNote } from '../support/hand-over-guest.ts';
import { eventually, type Mounted } from '../support/mounted.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';
import { countOf } from '../support/run-parameters.ts';
import { vdiskfs } from '../support/vdiskfs.ts';
import { type Place, placeOf, KERNEL as subject } from './suite/subject.ts';

const GUEST = fileURLToPath(new URL('../support/hand-over-guest.js', import.meta.url));
const SIZE = BLOCKS * BLOCK_DISTANCE;
/** What one hand-over makes a disk longer. */
const GROWTH = 1 << 20;
const PATIENCE_MS = 60_000;

interface Host {
  readonly mounted: Mounted;
  path(name: string): string;
  setActive(device: string, active: boolean, force?: boolean): Promise<void>;
}

const hostOf = async (place: Place, args: readonly string[]): Promise<Host> => {
  const mounted = await place.mount(args);
  const socket = await extendedAttribute(mounted.mountpoint, 'user.vdiskfs.socket');
  /** One for each device: a connection answers one command after the other. */
  const connections = new Map<string, Promise<QmpConnection>>();
  const connectionFor = (device: string): Promise<QmpConnection> => {
    const known = connections.get(device) ?? QmpConnection.open(socket ?? '');
    connections.set(device, known);
    return known;
  };
  place.cleanup.after(async () => {
    for (const connection of connections.values()) (await connection).close();
  });
  return {
    mounted,
    path: (name) => mounted.path(name),
    setActive: async (device, active, force) => {
      const forced = force === undefined ? {} : { force };
      const qmp = await connectionFor(device);
      await qmp.execute('__vdiskfs_set_active', { device, active, ...forced });
    },
  };
};

/** Two hosts; the first one has every image. */
const twoHosts = async (place: Place): Promise<[Host, Host]> => {
  const first = await hostOf(place, []);
  return [first, await hostOf(place, ['--inactive'])];
};

interface Guest {
  /** Ends it when what it has in flight is done: what it did. */
  end(): Promise<readonly GuestNote[]>;
  /** SIGKILL, with requests in flight that are held. */
  kill(): Promise<void>;
}

const guestOf = async (place: Place, id: number, paths: readonly string[]): Promise<Guest> => {
  const child: ChildProcess = spawn(process.execPath, [GUEST, String(id), ...paths], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, UV_THREADPOOL_SIZE: '24' },
  });
  place.cleanup.after(async () => void child.kill('SIGKILL'));
  let out = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    out += chunk.toString('utf8');
  });
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  await eventually('the guest is ready', async () => out.startsWith('ready\n'), PATIENCE_MS);
  return {
    end: async () => {
      child.stdin?.end();
      assert.equal(await ended, 0);
      return JSON.parse(out.slice('ready\n'.length)) as GuestNote[];
    },
    kill: async () => {
      child.kill('SIGKILL');
      await ended;
    },
  };
};

/** Reads of what was overwritten before they began, or of what was never there. */
const staleReads = (notes: readonly GuestNote[]): string[] => {
  const writes = notes.filter((n) => n.kind === 'write');
  const found: string[] = [];
  for (const read of notes.filter((n) => n.kind !== 'write')) {
    const others = writes.filter((w) => w.view === read.view && w.block === read.block);
    const seen = others.find((w) => w.value === read.value);
    if (seen === undefined && read.value !== 0)
      found.push(`${JSON.stringify(read)}: never written`);
    if (seen !== undefined && seen.start > read.end)
      found.push(`${JSON.stringify(read)} before ${JSON.stringify(seen)}`);
    const newer = others.find(
      (w) => (seen === undefined || seen.end < w.start) && w.end < read.start,
    );
    if (newer !== undefined) found.push(`${JSON.stringify(read)} after ${JSON.stringify(newer)}`);
  }
  return found;
};

const ROUNDS = countOf(50);

test(`${ROUNDS} hand-overs under load: no stale read, and sizes go along`, async (t) => {
  const place = await placeOf(t, subject);
  await qemuImg(['create', '-q', '-f', 'qcow2', place.image('disk.qcow2'), String(SIZE)]);
  await truncate(await made(place.image('flat.img')), SIZE);
  await makeAddCow(place, 'cow');
  const names = ['disk.raw', 'flat.raw', 'cow.raw'];
  const devices = names.map((name) => name.slice(0, -'.raw'.length));
  const hosts = await twoHosts(place);
  const guests = await Promise.all(
    hosts.map((host, id) => guestOf(place, id + 1, names.map(host.path))),
  );
  const sizes = names.map(() => SIZE);
  let times: number[] = [];
  const handOver = (from: Host, to: Host, took: number[] = []): Promise<unknown> =>
    Promise.all(
      devices.map(async (device) => {
        const began = performance.now();
        await from.setActive(device, false, true);
        await to.setActive(device, true);
        took.push(performance.now() - began);
      }),
    );
  for (let round = 0; round < ROUNDS; round++) {
    const [from, to] = round % 2 === 0 ? hosts : [hosts[1], hosts[0]];
    await sleep(20);
    const grows = round % names.length;
    sizes[grows] = (sizes[grows] ?? 0) + GROWTH;
    await truncate(from.path(names[grows] ?? ''), sizes[grows]);
    await handOver(from, to, times);
    for (const [i, name] of names.entries())
      assert.equal((await stat(to.path(name))).size, sizes[i], `${name}, ${round}`);
  }
  times = times.sort((a, b) => a - b);
  t.diagnostic(`one hand-over: median ${Math.round(times[times.length >> 1] ?? 0)} ms`);
  const owner = ROUNDS % 2;
  const [last, next] = owner === 0 ? hosts : [hosts[1], hosts[0]];
  const notes = await guests[owner]?.end();
  // What is held of the other one goes on when its host has the images again.
  const other = guests[1 - owner]?.end();
  await handOver(last, next);
  const all = [...(notes ?? []), ...((await other) ?? [])];
  const count = (kind: string): number => all.filter((n) => n.kind === kind).length;
  t.diagnostic(
    `${count('write')} writes, ${count('direct read')} direct reads, ${count('cached read')} cached`,
  );
  assert.ok(count('write') > ROUNDS, 'the guests did something');
  assert.deepEqual(staleReads(all).slice(0, 5), []);
  for (const host of hosts) await host.mounted.unmount();
  await assertClean(place.image('disk.qcow2'));
  const check = await vdiskfs(['check', place.image('cow.add-cow')]);
  assert.equal(check.status, 0, check.stdout + check.stderr);
});

const makeAddCow = async (place: Place, name: string): Promise<void> => {
  await truncate(await made(place.image(`${name}.data`)), SIZE);
  const options = ['-f', 'add-cow', '-o', `image_file=${name}.data`];
  const image = place.image(`${name}.add-cow`);
  const done = await vdiskfs(['create', ...options, image, String(SIZE)]);
  assert.equal(done.status, 0, done.stderr);
};

const made = async (path: string): Promise<string> => {
  await (await open(path, 'w')).close();
  return path;
};
