import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { describe, test } from 'node:test';
import { vdiskfs, vdiskfsJson } from '../support/loaded-vdiskfs.ts';
import { assertClean, qemuImg, qemuImgJson } from '../support/qemu-img.ts';
import { scratchDirectory, suiteDirectory } from '../support/scratch.ts';

describe('names of backing files', () => {
  const scratch = suiteDirectory();

  const overlay = async (name: string, format: string): Promise<string> => {
    const path = `${scratch.path}/top.qcow2`;
    await qemuImg(['create', '-q', '-u', '-f', 'qcow2', '-b', name, '-F', format, path, '1M']);
    return path;
  };

  test('file: and json: names are opened, and shown as qemu-img shows them', async () => {
    const base = `${scratch.path}/base.qcow2`;
    const raw = `${scratch.path}/ba:se.img`;
    await writeFile(raw, Buffer.alloc(1 << 20, 7));
    await qemuImg(['convert', '-f', 'raw', '-O', 'qcow2', `file:${raw}`, base]);
    const file = { driver: 'file', filename: base };
    const names: readonly (readonly [name: string, format: string])[] = [
      [`file:${base}`, 'qcow2'],
      [`file:${raw}`, 'raw'],
      [`json:${JSON.stringify({ driver: 'qcow2', file })}`, 'qcow2'],
      [`json:${JSON.stringify({ 'file.driver': 'file', 'file.filename': base })}`, 'qcow2'],
      [`json:${JSON.stringify({ driver: 'raw', file: { ...file, filename: raw } })}`, 'raw'],
    ];
    for (const [name, format] of names) {
      const top = await overlay(name, format);
      assert.deepEqual(await vdiskfsJson(['info', top]), await qemuImgJson('info', [top]));
      assert.equal((await vdiskfs(['info', top])).stdout, await qemuImg(['info', top]));
      assert.deepEqual(
        await vdiskfsJson(['info', '--backing-chain', top]),
        await qemuImgJson('info', ['--backing-chain', top]),
      );
      assert.deepEqual(await vdiskfsJson(['map', top]), await qemuImgJson('map', [top]));
      const done = await vdiskfs(['compare', top, `${scratch.path}/base.qcow2`]);
      assert.equal(done.status, 0, `${name}: ${done.stdout}${done.stderr}`);
    }
  });

  test('a relative json: name is looked for beside the image that has it', async () => {
    await qemuImg(['create', '-q', '-f', 'qcow2', `${scratch.path}/near.qcow2`, '1M']);
    const name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"near.qcow2"}}';
    const top = await overlay(name, 'qcow2');
    const done = await vdiskfs(['map', top], { cwd: '/' });
    assert.equal(done.status, 0, done.stderr);
  });

  test('create and rebase take such names, and QEMU opens what they wrote', async () => {
    const base = `${scratch.path}/base2.qcow2`;
    await qemuImg(['create', '-q', '-f', 'qcow2', base, '3M']);
    const name = `json:${JSON.stringify({ driver: 'qcow2', file: { driver: 'file', filename: base } })}`;
    const top = `${scratch.path}/made.qcow2`;
    const made = await vdiskfs(['create', '-f', 'qcow2', '-b', name, '-F', 'qcow2', top]);
    assert.equal(made.status, 0, made.stderr);
    await qemuImg(['compare', base, top]);
    const moved = await vdiskfs(['rebase', '-b', `file:${base}`, '-F', 'qcow2', top]);
    assert.equal(moved.status, 0, moved.stderr);
    await qemuImg(['compare', base, top]);
    await assertClean(top);
  });

  test('the gate holds for them, and what we lack is refused by name', async (t) => {
    const elsewhere = await scratchDirectory(t);
    const secret = `${elsewhere}/secret.img`;
    await writeFile(secret, 'secret');
    const cases: readonly (readonly [unknown, RegExp])[] = [
      [`file:${secret}`, /outside the allowed directories/],
      [{ driver: 'raw', file: { driver: 'file', filename: secret } }, /outside the allowed/],
      [{ 'file.filename': secret }, /outside the allowed/],
      [{ driver: 'raw', file: { driver: 'rbd', pool: 'p', image: 'i' } }, /driver 'rbd' is not/],
      [{ driver: 'qcow2', file: { driver: 'file', filename: 'x' }, backing: null }, /'backing'/],
    ];
    for (const [name, message] of cases) {
      const text = typeof name === 'string' ? name : `json:${JSON.stringify(name)}`;
      const top = await overlay(text, 'raw');
      const done = await vdiskfs(['map', top]);
      assert.equal(done.status, 1, text);
      assert.match(done.stderr, message);
      assert.equal((await vdiskfs(['info', top])).status, 0, 'info opens no child');
    }
  });
});
