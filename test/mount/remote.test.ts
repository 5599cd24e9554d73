/** Mounts of what lies on servers, by the real program: HTTP and NBD, alone, as bases, and when servers go away. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir, open, readFile, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { CleanupStack } from '../support/cleanup-stack.ts';
import { tool } from '../support/file-tools.ts';
import { type HttpOrigin, httpOrigin } from '../support/http-origin.ts';
import { eventually, mountImages, refusedMount } from '../support/mounted.ts';
import { nbdkit } from '../support/nbd-server.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { patternBytes } from '../support/remote-node.ts';
import { type Cleanup, scratchDirectory } from '../support/scratch.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';

const DISK_BYTES = 4 << 20;
const CONTENT = patternBytes(DISK_BYTES);

interface StatusDocument {
  readonly counters: { readonly hits: number };
}

interface Place {
  readonly cleanup: CleanupStack;
  readonly root: string;
  readonly mountpoint: string;
}

const placeOf = async (t: Cleanup): Promise<Place> => {
  const cleanup = new CleanupStack(t);
  const root = await scratchDirectory(cleanup);
  return { cleanup, root, mountpoint: join(root, 'mnt') };
};

/** A qcow2 with CONTENT, served over HTTP. */
const qcow2Origin = async ({ cleanup, root }: Place): Promise<HttpOrigin> => {
  const [flat, image] = [join(root, 'flat.img'), join(root, 'flat.qcow2')];
  await writeFile(flat, CONTENT);
  await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', flat, image]);
  return httpOrigin(cleanup, await readFile(image));
};

/** In a process of its own: the test's own threads serve the disk. */
const sameAsContent = (path: string, flat: string): Promise<string> => tool('cmp', [path, flat]);

test('a qcow2 on a web server is a flat file, with a password that nobody sees', async (t) => {
  const place = await placeOf(t);
  const origin = await qcow2Origin(place);
  const expected = `Basic ${Buffer.from('jo:secretword').toString('base64')}`;
  origin.behaviour = (asked, response) =>
    asked.authorization !== expected && Boolean(response.writeHead(401).end());
  const url = `http://jo:secretword@127.0.0.1:${origin.port}/disk.qcow2`;
  const { cleanup, mountpoint, root } = place;
  const mounted = await mountImages(cleanup, { backend: 'kernel', sources: [url], mountpoint });
  await sameAsContent(mounted.path('disk.raw'), join(root, 'flat.img'));
  await assert.rejects(writeFile(mounted.path('disk.raw'), 'x', { flag: 'r+' }), /EACCES|EROFS/);
  const document = (await vdiskfsJson(['status', mountpoint])) as StatusDocument;
  assert.equal(document.counters.hits, 0, 'no worker reads what lies on a server');
  const status = JSON.stringify(document);
  const table = await readFile('/proc/mounts', 'utf8');
  assert.match(table, new RegExp(`http://127.0.0.1:${origin.port}/disk.qcow2 ${mountpoint} `));
  assert.ok(!`${status}${table}${mounted.log}`.includes('secretword'));
  await mounted.unmount();
  const refused = await refusedMount({ backend: 'kernel', sources: [origin.url()], mountpoint });
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /HTTP 401.*user and password in the URL/);
});

test('a base on a web server: only where it is allowed, and the overlay takes the writes', async (t) => {
  const place = await placeOf(t);
  const { cleanup, mountpoint, root } = place;
  const origin = await qcow2Origin(place);
  const images = join(root, 'images');
  await mkdir(images);
  const overlay = join(images, 'top.qcow2');
  const made = await vdiskfs([
    'create',
    '-f',
    'qcow2',
    '-b',
    origin.url('b.qcow2'),
    '-F',
    'qcow2',
    overlay,
  ]);
  assert.equal(made.status, 0, made.stderr);
  const request = { backend: 'kernel', sources: [images], mountpoint } as const;
  const shut = await mountImages(cleanup, request);
  assert.equal((await stat(shut.path('top.raw'))).size, 0);
  assert.match(shut.log, /--backing-dir http:\/\/127/);
  await shut.unmount();
  const args = ['--backing-dir', `${origin.base}/`];
  const mounted = await mountImages(cleanup, { ...request, args });
  await sameAsContent(mounted.path('top.raw'), join(root, 'flat.img'));
  const file = await open(mounted.path('top.raw'), 'r+');
  const model = Buffer.from(CONTENT);
  for (const [offset, length] of [
    [100, 5000],
    [70_000, 200_000],
    [DISK_BYTES - 1000, 1000],
  ] as const) {
    const bytes = patternBytes(length, 9);
    await file.write(bytes, 0, length, offset);
    model.set(bytes, offset);
  }
  await file.sync();
  await file.close();
  await mounted.unmount();
  await assertClean(overlay);
  const [expected, got] = [join(root, 'model.img'), join(root, 'got.img')];
  await writeFile(expected, model);
  const flatten = ['convert', '--backing-dir', origin.base, '-O', 'raw', overlay, got];
  const done = await vdiskfs(flatten);
  assert.equal(done.status, 0, done.stderr);
  await tool('cmp', [expected, got]);
  await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', expected, overlay]);
});

const WRITES = 40;
const WRITE_BYTES = 30_000;

test('an NBD export is written through a mount, raw and qcow2, and survives its server', async (t) => {
  const { cleanup, mountpoint, root } = await placeOf(t);
  const [flat, image] = [join(root, 'flat.img'), join(root, 'image')];
  await writeFile(flat, CONTENT);
  await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', flat, image]);
  await truncate(image, 16 << 20);
  const raw = await nbdkit(cleanup, join(root, 'raw.s'), ['file', `file=${flat}`]);
  const qcow2 = await nbdkit(cleanup, join(root, 'qcow2.s'), ['file', `file=${image}`]);
  const sources = [`flat=${raw.url}`, `packed=${qcow2.url}`];
  const mounted = await mountImages(cleanup, { backend: 'kernel', sources, mountpoint });
  const model = Buffer.from(CONTENT);
  const views = ['flat.raw', 'packed.raw'].map((name) => mounted.path(name));
  // Both are open when the first server dies: without a server a view cannot be opened.
  for (const view of views)
    await tool('dd', [`if=${view}`, 'of=/dev/null', 'count=1', 'status=none']);
  // By other processes: one that holds a file of the mount cannot start the server that this file waits for, because the
  // child's exec closes its copy of the descriptor, which writes it out.
  const pieces = Array.from({ length: WRITES }, (_, i) => patternBytes(WRITE_BYTES, i));
  await writeFile(join(root, 'pieces'), Buffer.concat(pieces));
  const write = async (view: string, i: number, at: number): Promise<void> => {
    const how = `conv=notrunc${i % 5 === 0 ? ',fsync' : ''}`;
    const where = [`bs=${WRITE_BYTES}`, `skip=${i}`, 'count=1', `seek=${at}`, 'oflag=seek_bytes'];
    await tool('dd', [`if=${join(root, 'pieces')}`, `of=${view}`, how, ...where, 'status=none']);
  };
  const writing = (async () => {
    for (const [i, bytes] of pieces.entries()) {
      const at = (i * 98_765) % (DISK_BYTES - bytes.length);
      model.set(bytes, at);
      for (const view of views) await write(view, i, at);
    }
  })();
  const dying = (async () => {
    for (const server of [raw, qcow2]) {
      await sleep(100);
      await server.kill();
      await server.start();
    }
  })();
  await Promise.all([writing, dying]);
  const expected = join(root, 'model.img');
  await writeFile(expected, model);
  for (const view of views) {
    await tool('sync', [view]);
    await tool('cmp', [view, expected]);
  }
  await mounted.unmount();
  assert.ok((await readFile(flat)).equals(model));
  await assertClean(image);
  await qemuImg(['compare', '-f', 'raw', '-F', 'qcow2', expected, image]);
});

test('reads wait for a server that is away, others go on, and a killed reader is let go', async (t) => {
  const place = await placeOf(t);
  const { cleanup, mountpoint, root } = place;
  const origin = await qcow2Origin(place);
  const images = join(root, 'images');
  await mkdir(images);
  await writeFile(join(images, 'near.raw'), CONTENT);
  const sources = [images, `far=${origin.url('disk.qcow2')}`];
  const mounted = await mountImages(cleanup, { backend: 'kernel', sources, mountpoint });
  const far = mounted.path('far.raw');
  await tool('dd', [`if=${far}`, 'of=/dev/null', 'bs=4k', 'count=1', 'status=none']);
  await origin.stop();
  const ended = (args: readonly string[]) => {
    const child = spawn('dd', [`if=${far}`, 'of=/dev/null', 'status=none', ...args]);
    const end = new Promise<string>((resolve) =>
      child.once('exit', (code, signal) => resolve(signal ?? String(code))),
    );
    return { child, end };
  };
  const direct = ['bs=4k', 'count=1', 'skip=500', 'iflag=direct'];
  const killed = ended(direct);
  const waits = ended(['bs=64k', 'skip=20', 'count=8']);
  const began = Date.now();
  await sameAsContent(mounted.path('near.raw'), join(root, 'flat.img'));
  await tool('ls', ['-l', mountpoint]);
  assert.ok(Date.now() - began < 10_000, 'another view is not held up');
  assert.equal(await Promise.race([killed.end, waits.end, sleep(300, 'both wait')]), 'both wait');
  killed.child.kill('SIGKILL');
  assert.equal(await Promise.race([killed.end, sleep(10_000, 'hangs')]), 'SIGKILL');
  assert.equal(await Promise.race([waits.end, sleep(10, 'waits')]), 'waits');
  await origin.start();
  assert.equal(await waits.end, '0');
  await sameAsContent(far, join(root, 'flat.img'));
  await mounted.unmount();
});

test('a base that changes on its server is ESTALE, and the view shows the new one when it is opened again', async (t) => {
  const place = await placeOf(t);
  const { cleanup, mountpoint } = place;
  const origin = await httpOrigin(cleanup, CONTENT);
  const sources = [origin.url('disk.img')];
  const mounted = await mountImages(cleanup, { backend: 'kernel', sources, mountpoint });
  const view = mounted.path('disk.raw');
  const file = await open(view, 'r');
  await file.read(Buffer.alloc(4096), 0, 4096, 0);
  origin.content = patternBytes(DISK_BYTES, 5);
  origin.etag = '"two"';
  await assert.rejects(file.read(Buffer.alloc(4096), 0, 4096, DISK_BYTES / 2), /ESTALE|-116/);
  await file.close();
  await eventually('the new content is there', async () => {
    const bytes = await readFile(view).catch(() => Buffer.alloc(0));
    return bytes.equals(origin.content);
  });
  assert.match(mounted.log, /has changed on the server/);
});
