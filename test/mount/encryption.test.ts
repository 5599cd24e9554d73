/** Encrypted images in a mount: with their key, without it, with a wrong one; and where the key is not. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { open, readdir, readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import {
  makeLuksImage,
  PASSPHRASE,
  qemuDecrypt,
  qemuKeyOptions,
  writeKey,
} from '../support/encrypted.ts';
import { failingTool, sha256, tool } from '../support/file-tools.ts';
import { eventually, refusedMount } from '../support/mounted.ts';
import { qemuImg, qemuIo } from '../support/qemu-img.ts';
import { SEED } from '../support/run-parameters.ts';
import { vdiskfs, vdiskfsJson } from '../support/vdiskfs.ts';
import { MIB, pattern } from './suite/bytes.ts';
import { KERNEL, placeOf } from './suite/subject.ts';

interface Status {
  readonly pid: number;
  readonly 'supervisor-pid': number;
  readonly views: readonly {
    readonly name: string;
    readonly error: string | null;
    readonly readOnlyReason: string | null;
  }[];
}

const statusOf = async (mountpoint: string): Promise<Status> =>
  (await vdiskfsJson(['status', mountpoint])) as Status;

/** Writes of any alignment, to the view and to the model; fsynced. */
const writeBoth = async (view: string, model: Buffer, seed: number): Promise<void> => {
  const random = seededRandom(seed);
  const file = await open(view, 'r+');
  try {
    for (let i = 0; i < 40; i++) {
      const start = random.below(model.length - 1);
      const end = Math.min(model.length, start + 1 + random.below(i % 4 === 0 ? 400_000 : 3000));
      const bytes = Buffer.alloc(end - start);
      random.fill(bytes);
      bytes.copy(model, start);
      await file.write(bytes, 0, bytes.length, start);
    }
    await file.sync();
  } finally {
    await file.close();
  }
};

test(`what is written to an encrypted view is encrypted, and QEMU decrypts it (seed ${SEED})`, async (t) => {
  const place = await placeOf(t, KERNEL);
  const image = place.image('disk.qcow2');
  await makeLuksImage(image, { bytes: 4 * MIB });
  const { file } = await writeKey(place.images);
  const mounted = await place.mount(['--secret', `id=disk-key,file=${file},image=disk`]);
  const view = mounted.path('disk.raw');
  const model = Buffer.alloc(4 * MIB);
  await writeBoth(view, model, SEED);
  await tool('fallocate', ['-p', '-o', '1000000', '-l', '300001', view]);
  model.fill(0, 1_000_000, 1_300_001);
  // Past the kernel's cache: it is decrypted again, in pieces of all sizes.
  for (const size of ['512', '4k', '1M']) {
    const out = `${place.root}/out`;
    await tool('dd', [`if=${view}`, `of=${out}`, `bs=${size}`, 'iflag=direct']);
    assert.ok(model.equals(await readFile(out)), size);
  }
  const before = await statusOf(mounted.mountpoint);
  process.kill(before.pid, 'SIGKILL');
  await eventually('another engine opens it with the same key', async () => {
    const now = await statusOf(mounted.mountpoint).catch(() => null);
    return now !== null && now.pid !== before.pid;
  });
  await writeBoth(view, model, SEED + 1);
  assert.ok(model.equals(await readFile(view)));
  await mounted.unmount();
  await qemuImg(['check', '-q', ...qemuKeyOptions(image)]);
  await qemuDecrypt(image, `${place.root}/theirs`);
  assert.ok(model.equals(await readFile(`${place.root}/theirs`)));
  // What was written would be found in plain clusters; zeros are everywhere.
  const raw = await readFile(image);
  const written = model.findIndex((byte) => byte !== 0);
  assert.equal(raw.indexOf(model.subarray(written, written + 64)), -1);
});

test('without its key an encrypted view is listed and not opened, and the others are served', async (t) => {
  const place = await placeOf(t, KERNEL);
  await makeLuksImage(place.image('locked.qcow2'), { bytes: MIB });
  await writeFile(place.image('plain.raw'), pattern(MIB));
  const mounted = await place.mount();
  assert.deepEqual((await readdir(mounted.mountpoint)).sort(), ['locked.raw', 'plain.raw']);
  await failingTool('dd', [`if=${mounted.path('locked.raw')}`, 'of=/dev/null', 'count=1']);
  await assert.rejects(readFile(mounted.path('locked.raw')), { code: 'EACCES' });
  assert.equal(await sha256(mounted.path('plain.raw')), await sha256(place.image('plain.raw')));
  assert.match(mounted.log, /locked.*is encrypted, and no key was given for it.*--secret/);
  const [locked] = (await statusOf(mounted.mountpoint)).views;
  assert.match(locked?.error ?? '', /no key was given/);
  assert.ok((await readdir(mounted.mountpoint)).includes('locked.raw'));
  await mounted.unmount();
});

test('an image with the old encryption is a read-only view, which says why', async (t) => {
  const place = await placeOf(t, KERNEL);
  const image = place.image('old.qcow2');
  const { file } = await writeKey(place.images);
  const [object = '', key = '', flag = '', options = ''] = qemuKeyOptions(image);
  const aes = 'encrypt.format=aes,encrypt.key-secret=key';
  await qemuImg(['create', '-q', object, key, '-f', 'qcow2', '-o', aes, image, '1M']);
  await qemuIo(options, ['write -P 7 100k 300k'], [object, key, flag]);
  const mounted = await place.mount(['--secret', `id=k,file=${file}`]);
  const view = mounted.path('old.raw');
  await qemuDecrypt(image, `${place.root}/theirs`);
  assert.equal(await sha256(view), await sha256(`${place.root}/theirs`));
  await failingTool('dd', ['if=/dev/zero', `of=${view}`, 'count=1', 'conv=notrunc']);
  const [status] = (await statusOf(mounted.mountpoint)).views;
  assert.match(status?.readOnlyReason ?? '', /old AES encryption/);
  await mounted.unmount();
});

test('a wrong key is told by the id of its secret, and the right one beside it opens the view', async (t) => {
  const place = await placeOf(t, KERNEL);
  await makeLuksImage(place.image('disk.qcow2'), { bytes: MIB });
  const { file } = await writeKey(place.root);
  await writeFile(`${place.root}/wrong`, PASSPHRASE.trim());
  const wrong = `id=old-key,file=${place.root}/wrong`;
  const alone = await place.mount(['--secret', wrong]);
  await assert.rejects(readFile(alone.path('disk.raw')), { code: 'EACCES' });
  assert.match(alone.log, /disk.*the key of secret 'old-key' does not open it/);
  assert.ok(!alone.log.includes(PASSPHRASE.trim()));
  await alone.unmount();
  const both = await place.mount(['--secret', wrong, '-o', `secret="id=new-key,file=${file}"`]);
  assert.ok((await readFile(both.path('disk.raw'))).every((byte) => byte === 0));
  await both.unmount();
});

test('a secret that cannot be read refuses the mount, and a single encrypted image without a key too', async (t) => {
  const place = await placeOf(t, KERNEL);
  await makeLuksImage(place.image('disk.qcow2'), { bytes: MIB });
  const mountpoint = `${place.root}/never`;
  const request = { backend: KERNEL.backend, sources: [place.images], mountpoint };
  const args = ['--secret', `id=a,file=${place.root}/none`];
  const missing = await refusedMount({ ...request, args });
  assert.equal(missing.status, 1);
  assert.match(missing.stderr, /none: the key of secret 'a' cannot be read: no such file/);
  const single = await refusedMount({ ...request, sources: [place.image('disk.qcow2')] });
  assert.equal(single.status, 1);
  assert.match(single.stderr, /disk\.qcow2: is encrypted, and no key was given for it/);
});

test('the key is in no command line, environment, log or status of the mount', async (t) => {
  const place = await placeOf(t, KERNEL);
  await makeLuksImage(place.image('disk.qcow2'), { bytes: MIB });
  const { file } = await writeKey(place.root);
  const mountpoint = `${place.root}/daemon`;
  await tool('mkdir', [mountpoint]);
  place.cleanup.after(async () => void (await vdiskfs(['umount', mountpoint])));
  const done = await vdiskfs(['mount', '--secret', `id=k,file=${file}`, place.images, mountpoint]);
  assert.equal(done.status, 0, done.stderr);
  await readFile(`${mountpoint}/disk.raw`);
  const key = PASSPHRASE.trim();
  const status = await statusOf(mountpoint);
  assert.ok(!JSON.stringify(status).includes(key));
  for (const pid of [status.pid, status['supervisor-pid']]) {
    for (const name of ['cmdline', 'environ'])
      assert.ok(!readFileSync(`/proc/${pid}/${name}`, 'latin1').includes(key), name);
    // The daemon's log is what its stderr is.
    assert.ok(!readFileSync(`/proc/${pid}/fd/2`, 'latin1').includes(key));
    assert.ok(readdirSync(`/proc/${pid}/fd`).length > 0);
  }
  const unmounted = await vdiskfs(['umount', mountpoint]);
  assert.equal(unmounted.status, 0, unmounted.stderr);
});
