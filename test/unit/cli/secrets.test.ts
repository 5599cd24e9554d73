import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { Secrets } from '../../../src/block/secrets.ts';
import { UsageError } from '../../../src/cli/command.ts';
import { parseSecrets } from '../../../src/cli/secrets.ts';
import { scratchDirectory } from '../../support/scratch.ts';

test('both spellings of a secret are the same, and commas can be doubled', () => {
  const expected = [{ id: 'a', file: '/k,1', image: null }];
  assert.deepEqual(parseSecrets(['id=a,file=/k,,1']), expected);
  assert.deepEqual(parseSecrets([], ['secret,id=a,file=/k,,1']), expected);
  assert.deepEqual(parseSecrets(['image=disk,file=/k,id=a']), [
    { id: 'a', file: '/k', image: 'disk' },
  ]);
});

test('a secret that is not understood is refused, and what it may hold is not repeated', () => {
  for (const [secrets, objects] of [
    [['id=a'], []],
    [['file=/k'], []],
    [['id=,file=/k'], []],
    [['id=a,file=/k,password=hunter2'], []],
    [['hunter2'], []],
    [['id=a,file=/k', 'id=a,file=/l'], []],
    [[], ['secret,id=a,data=hunter2']],
    [[], ['tls-creds-x509,id=a']],
    [[], ['secret,id=a,file=/k,image=disk']],
  ] as const) {
    assert.throws(
      () => parseSecrets(secrets, objects),
      (error: unknown) => error instanceof UsageError && !error.message.includes('hunter2'),
    );
  }
});

test('a secret is for all images or for one, and every byte of its file counts', async (t) => {
  const directory = await scratchDirectory(t);
  const file = `${directory}/key`;
  await writeFile(file, 'hunter2\n');
  const idsFor = async (image: string | null, path: string): Promise<readonly string[]> => {
    const found = await new Secrets([{ id: 'a', file, image }], { keep: false }).forImage(path);
    return found.map((s) => Buffer.from(s.bytes).toString());
  };
  assert.deepEqual(await idsFor(null, '/x/disk.qcow2'), ['hunter2\n']);
  for (const name of ['disk', 'disk.qcow2', 'disk.raw', 'disk.qcow2.raw', '/x/disk.qcow2'])
    assert.equal((await idsFor(name, '/x/disk.qcow2')).length, 1, name);
  for (const name of ['dis', '/y/disk.qcow2', 'x'])
    assert.equal((await idsFor(name, '/x/disk.qcow2')).length, 0, name);
});

test('a key is not in what prints its secret', async (t) => {
  const directory = await scratchDirectory(t);
  await writeFile(`${directory}/key`, 'hunter2');
  const secrets = new Secrets([{ id: 'a', file: `${directory}/key`, image: null }], { keep: true });
  const secret = await secrets.byId('a');
  const text = [JSON.stringify(secret), inspect(secret), inspect(secrets, { depth: 9 })].join();
  assert.ok(text.includes('a'));
  assert.ok(!/hunter2|104,117|68 75/.test(text), text);
});

test('a key file that is empty, too long or not there is an error that names it', async (t) => {
  const directory = await scratchDirectory(t);
  const file = `${directory}/key`;
  const secrets = new Secrets([{ id: 'a', file, image: null }], { keep: false });
  await assert.rejects(secrets.check(), { path: file, errno: 'EACCES' });
  await writeFile(file, '');
  await assert.rejects(secrets.check(), /the key of secret 'a' is empty/);
  await writeFile(file, Buffer.alloc(100_000));
  await assert.rejects(secrets.check(), /longer than 65536 bytes/);
});
