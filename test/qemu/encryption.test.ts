/** Encrypted images go back and forth between vdiskfs and QEMU. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { before, describe, test } from 'node:test';
import { seededRandom } from '../../src/base/random.ts';
import { guestOffset } from '../../src/base/units.ts';
import type { Node } from '../../src/block/node.ts';
import { splitOptions } from '../../src/image/create-options.ts';
import {
  keyOf,
  makeImage,
  makeLuksImage,
  PASSPHRASE,
  qemuDecrypt,
  qemuKeyOptions,
  writeKey,
} from '../support/encrypted.ts';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { qemuImg, qemuImgJson, qemuIo } from '../support/qemu-img.ts';
import { countOf, SEED } from '../support/run-parameters.ts';
import { suiteDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const LUKS = 'encrypt.format=luks,encrypt.key-secret=key';
const WRITES = ['write -P 0x11 0 4k', 'write -P 0x22 70000 100000', 'write -z 1M 300k'];

const nothing = async (): Promise<void> => undefined;

const keyed = async (path: string, commands: readonly string[]): Promise<void> => {
  const [object = '', secret = '', flag = '', image = ''] = qemuKeyOptions(path);
  await qemuIo(image, commands, [object, secret, flag]);
};

describe('encrypted images', () => {
  const scratch = suiteDirectory();
  let secret = '';
  before(async () => {
    const { id, file } = await writeKey(scratch.path);
    secret = `id=${id},file=${file}`;
  });
  const at = (name: string): string => `${scratch.path}/${name}`;

  const run = async (args: readonly string[]): Promise<string> => {
    const [command = '', ...rest] = args;
    const done = await vdiskfs([command, '--secret', secret, ...rest]);
    assert.equal(done.status, 0, `${args.join(' ')}: ${done.stderr}`);
    return done.stdout;
  };

  const withImage = async (
    path: string,
    readOnly: boolean,
    use: (node: Node) => Promise<void>,
  ): Promise<void> => {
    const graph = await testGraph({ directory: scratch.path, secrets: [keyOf(scratch.path)] });
    const node = await graph.open({ path, format: 'qcow2', readOnly });
    try {
      await use(node);
    } finally {
      await graph.close(node);
    }
  };

  /** Both programs decrypt the same, and QEMU finds nothing wrong. */
  const assertShared = async (image: string): Promise<Buffer> => {
    await qemuImg(['check', '-q', ...qemuKeyOptions(image)]);
    await qemuDecrypt(image, `${image}.theirs`);
    const theirs = await readFile(`${image}.theirs`);
    const ours = Buffer.alloc(theirs.length);
    await withImage(image, true, (node) => node.read(guestOffset(0), ours));
    assert.ok(theirs.equals(ours), image);
    return theirs;
  };

  test('QEMU made it: vdiskfs tells the same of it, reads it, and what it writes QEMU reads', async () => {
    const image = at('theirs.qcow2');
    const [object = '', key = ''] = qemuKeyOptions(image);
    const essiv = `${LUKS},encrypt.iter-time=10,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv`;
    await qemuImg(['create', '-q', object, key, '-f', 'qcow2', '-o', essiv, image, '3M']);
    await keyed(image, WRITES);
    assert.deepEqual(await vdiskfsJson(['info', image]), await qemuImgJson('info', [image]));
    assert.equal((await vdiskfs(['info', image])).stdout, await qemuImg(['info', image]));
    const before = await assertShared(image);
    assert.ok(before.subarray(70_000, 170_000).every((byte) => byte === 0x22));
    const text = Buffer.from('between two sectors'.repeat(40));
    await withImage(image, false, (node) => node.write(guestOffset(99_999), text));
    const now = await assertShared(image);
    assert.equal(now.toString('latin1', 99_999, 100_018), 'between two sectors');
    assert.equal(now[99_998], 0x22);
  });

  for (const [name, options] of [
    ['xts-256', 'cluster_size=64k'],
    ['xts-192', 'encrypt.cipher-alg=aes-192,encrypt.hash-alg=sha512'],
    ['cbc-128', 'encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=plain'],
    ['v2-small', 'compat=0.10,cluster_size=512,encrypt.hash-alg=sha1,encrypt.ivgen-alg=essiv'],
  ] as const) {
    test(`vdiskfs made it (${name}): QEMU tells the same of it, and both write it`, async () => {
      const image = at(`${name}.qcow2`);
      const settings = `${LUKS},encrypt.iter-time=5,${options}`;
      await run(['create', '-f', 'qcow2', '-o', settings, image, '3M']);
      assert.deepEqual(await vdiskfsJson(['info', image]), await qemuImgJson('info', [image]));
      await keyed(image, WRITES);
      const content = await assertShared(image);
      assert.ok(content.subarray(0, 4096).every((byte) => byte === 0x11));
      assert.ok(content.subarray(170_000).every((byte) => byte === 0));
      const [ours, theirs] = [
        await vdiskfsJson(['map', image]),
        await qemuImgJson('map', qemuKeyOptions(image)),
      ];
      assert.deepEqual(ours, theirs);
      const found = (await vdiskfsJson(['check', image])) as Record<string, unknown>;
      const reference = await qemuImgJson('check', qemuKeyOptions(image));
      assert.deepEqual({ ...found, filename: '' }, { ...(reference as object), filename: '' });
    });
  }

  test('turns of random writes by both leave what each of them wrote', async () => {
    const image = at('turns.qcow2');
    const bytes = 2 << 20;
    await makeLuksImage(image, { bytes, options: { cluster_size: '4096' } });
    const model = Buffer.alloc(bytes);
    const random = seededRandom(SEED);
    for (let turn = 0; turn < countOf(4); turn++) {
      await withImage(image, false, async (node) => {
        for (let i = 0; i < 30; i++) {
          const start = random.below(bytes - 20_000);
          const end = start + 1 + random.below(20_000);
          const value = random.below(4) === 0 ? 0 : 1 + random.below(255);
          if (value === 0) await node.discard(guestOffset(start), end - start);
          else await node.write(guestOffset(start), Buffer.alloc(end - start, value));
          model.fill(value, start, end);
        }
      });
      const commands = Array.from({ length: 10 }, () => {
        const start = random.below(bytes - 20_000);
        const length = 1 + random.below(20_000);
        const value = 1 + random.below(255);
        model.fill(value, start, start + length);
        return `write -P ${value} ${start} ${length}`;
      });
      await keyed(image, commands);
      assert.ok((await assertShared(image)).equals(model), `seed ${SEED}, turn ${turn}`);
    }
  });

  test('the old AES encryption is read, and never written', async () => {
    const image = at('old.qcow2');
    const [object = '', key = ''] = qemuKeyOptions(image);
    const old = 'encrypt.format=aes,encrypt.key-secret=key,cluster_size=4k';
    await qemuImg(['create', '-q', object, key, '-f', 'qcow2', '-o', old, image, '1M']);
    // Not in the order of the disk: the place in the file would decrypt to noise.
    await keyed(image, ['write -P 7 512k 8k', 'write -P 9 12k 300']);
    assert.deepEqual(await vdiskfsJson(['info', image]), await qemuImgJson('info', [image]));
    const content = await assertShared(image);
    assert.equal(content[512 << 10], 7);
    const refused = await vdiskfs(['resize', '--secret', secret, image, '2M']);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /old AES encryption/);
  });

  test('an encrypted overlay over an encrypted base, rebased and resized, shows what it showed', async () => {
    const [base, top] = [at('base.qcow2'), at('top.qcow2')];
    await makeLuksImage(base, { bytes: 1 << 20 });
    await keyed(base, ['write -P 5 0 600k']);
    await makeLuksImage(top, { bytes: 1 << 20, backing: { filename: base, format: 'qcow2' } });
    await withImage(top, false, (node) => node.write(guestOffset(100_000), Buffer.alloc(1000, 6)));
    await run(['rebase', '-b', '', top]);
    await run(['resize', top, '+1M']);
    const content = await assertShared(top);
    const model = Buffer.alloc(2 << 20);
    model.fill(5, 0, 600 << 10).fill(6, 100_000, 101_000);
    assert.ok(content.equals(model));
  });

  test('a snapshot of an encrypted image is made, shown and applied as QEMU does it', async () => {
    const image = at('snapshots.qcow2');
    await makeLuksImage(image, { bytes: 1 << 20 });
    await keyed(image, ['write -P 1 0 300k']);
    await run(['snapshot', '-c', 'ours', image]);
    await withImage(image, false, (node) => node.write(guestOffset(1000), Buffer.alloc(5000, 2)));
    const [object = '', key = '', flag = '', options = ''] = qemuKeyOptions(image);
    await qemuImg(['snapshot', object, key, flag, '-c', 'theirs', options]);
    await keyed(image, ['write -P 3 2000 90000']);
    const now = await assertShared(image);
    assert.equal(now[1500], 2);
    assert.equal(now[50_000], 3);
    await run(['snapshot', '-a', 'ours', image]);
    const then = await assertShared(image);
    assert.ok(then.subarray(0, 300 << 10).every((byte) => byte === 1));
    await qemuImg(['snapshot', object, key, flag, '-a', 'theirs', options]);
    const theirs = await assertShared(image);
    assert.equal(theirs[1500], 2);
    assert.equal(theirs[50_000], 1);
    for (const name of ['ours', 'theirs']) await run(['snapshot', '-d', name, image]);
    await assertShared(image);
  });

  test('the encryption header counts: its refcounts are checked and mended as QEMU does', async () => {
    const image = at('damaged.qcow2');
    await makeLuksImage(image, { bytes: 1 << 20 });
    const sound = await readFile(image);
    // The first refcount block lies in cluster 2, the header of the encryption in 4 and on.
    const damaged = Buffer.from(sound);
    damaged.fill(0, 2 * 65_536 + 2 * 4, 2 * 65_536 + 2 * 7);
    await writeFile(image, damaged);
    const accept = [2] as const;
    const ours = (await vdiskfsJson(['check', image], accept)) as Record<string, unknown>;
    const theirs = await qemuImgJson('check', qemuKeyOptions(image), accept);
    assert.deepEqual({ ...ours, filename: '' }, { ...(theirs as object), filename: '' });
    assert.equal(ours['corruptions'], 3);
    assert.equal((await vdiskfs(['check', '-r', 'all', image])).status, 0);
    await assertShared(image);
    assert.ok(sound.equals(await readFile(image)));
  });

  test('converted to an encrypted image and back, content stays, and no cluster of it is in the clear', async () => {
    const [source, image] = [at('plain.raw'), at('converted.qcow2')];
    const bytes = Buffer.alloc(3 << 20);
    seededRandom(SEED).fill(bytes.subarray(0, 2 << 20));
    await writeFile(source, bytes);
    const options = `${LUKS},encrypt.iter-time=1`;
    await run(['convert', '-f', 'raw', '-O', 'qcow2', '-o', options, source, image]);
    assert.ok((await assertShared(image)).equals(bytes));
    await run(['convert', '-O', 'raw', image, at('back.raw')]);
    assert.ok(bytes.equals(await readFile(at('back.raw'))));
    const stored = await readFile(image);
    for (let offset = 0; offset < 2 << 20; offset += 100_000)
      assert.equal(stored.indexOf(bytes.subarray(offset, offset + 32)), -1);
  });

  test('packed and encrypted at once is refused before anything is written over', async () => {
    const [source, target] = [at('source.raw'), at('kept.qcow2')];
    await writeFile(source, Buffer.alloc(1 << 20, 1));
    await writeFile(target, 'precious');
    const args = ['convert', '--secret', secret, '-c', '-O', 'qcow2', '-o', LUKS, source, target];
    const refused = await vdiskfs(args);
    assert.equal(refused.status, 1);
    assert.match(refused.stderr, /cannot be both encrypted and packed/);
    assert.equal(await readFile(target, 'utf8'), 'precious');
    const image = at('existing.qcow2');
    await makeLuksImage(image, { bytes: 1 << 20 });
    const before = await readFile(image);
    const into = await vdiskfs([
      'convert',
      '--secret',
      secret,
      '-n',
      '-c',
      '-O',
      'qcow2',
      source,
      image,
    ]);
    assert.equal(into.status, 1);
    assert.match(into.stderr, /compressed clusters are not/);
    assert.ok(before.equals(await readFile(image)));
  });

  test('keys that are missing, wrong, empty or not there are told apart', async () => {
    const image = at('locked.qcow2');
    await makeLuksImage(image, { bytes: 1 << 20 });
    await writeFile(at('wrong'), PASSPHRASE.trim());
    await writeFile(at('empty'), '');
    for (const [args, message] of [
      [[], /locked\.qcow2: is encrypted, and no key was given for it: give it with --secret/],
      [
        ['--secret', `id=mine,file=${at('wrong')}`],
        /locked\.qcow2: is encrypted, and the key of secret 'mine' does not open it/,
      ],
      [['--secret', `id=mine,file=${at('empty')}`], /empty: the key of secret 'mine' is empty/],
      [['--object', `secret,id=mine,file=${at('none')}`], /none: the key .* no such file/],
      [['--secret', `${secret},image=other`], /no key was given/],
    ] as const) {
      const done = await vdiskfs(['convert', ...args, '-O', 'raw', image, at('never.raw')]);
      assert.equal(done.status, 1);
      assert.match(done.stderr, message);
      assert.ok(!done.stderr.includes(PASSPHRASE.trim()));
    }
    for (const args of [
      ['--secret', `${secret},image=locked`],
      ['--object', `secret,id=mine,file=${keyOf(scratch.path).file}`],
    ]) {
      const done = await vdiskfs(['compare', ...args, image, image]);
      assert.equal(done.status, 0, done.stderr);
    }
    const onLine = await vdiskfs(['convert', '--object', 'secret,id=a,data=hidden', image, 'x']);
    assert.equal(onLine.status, 2);
    assert.ok(!onLine.stderr.includes('hidden'));
  });

  test('ciphers that are not handled are refused by name, and change nothing else', async () => {
    const image = at('other.qcow2');
    await makeLuksImage(image, { bytes: 1 << 20 });
    const sound = await readFile(image);
    const header = sound.indexOf('LUKS');
    for (const [offset, text, message] of [
      [8, 'serpent', /the cipher serpent-xts-plain64, which is not supported/],
      [8, 'cast5', /the cipher cast5-xts-plain64/],
      [40, 'ecb-plain64', /the cipher mode aes-ecb-plain64/],
      [40, 'xts-benbi', /the cipher mode aes-xts-benbi/],
      [72, 'whirlpool', /the hash whirlpool/],
    ] as const) {
      const changed = Buffer.from(sound);
      changed.fill(0, header + offset, header + offset + 32).write(text, header + offset);
      await writeFile(image, changed);
      await assert.rejects(withImage(image, true, nothing), message);
    }
  });

  test('options that do not go together are refused before the file is touched', async () => {
    await writeFile(at('kept'), PASSPHRASE);
    for (const [options, message] of [
      ['encrypt.format=luks', /encrypt\.key-secret: it is needed/],
      ['encrypt.format=luks,encrypt.key-secret=other', /there is no secret 'other'/],
      ['encrypt.key-secret=key', /encrypt\.key-secret: it needs encrypt\.format/],
      [`${LUKS},preallocation=metadata`, /preallocation: its clusters would read as noise/],
      [`${LUKS},data_file=d,data_file_raw=on`, /data_file_raw: what lies in the data file/],
      [`${LUKS},encrypt.cipher-alg=serpent-256`, /serpent-256' is not one of aes-128/],
      [`${LUKS},encrypt.cipher-alg=aes-192,encrypt.cipher-mode=cbc`, /aes-192 does not go/],
      [`${LUKS},encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1`, /makes no key of AES/],
    ] as const) {
      const settings = Object.fromEntries(splitOptions(options));
      await assert.rejects(makeImage(at('kept'), { bytes: 1 << 20, options: settings }), message);
      assert.equal(await readFile(at('kept'), 'utf8'), PASSPHRASE);
    }
  });
});
