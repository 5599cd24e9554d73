import assert from 'node:assert/strict';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { guestOffset } from '../../src/base/units.ts';
import { assertClean, qemuImg } from '../support/qemu-img.ts';
import { scratchDirectory } from '../support/scratch.ts';
import { testGraph } from '../support/test-graph.ts';

const MIB = 1 << 20;

test('an image that was written with space ahead is clean, and takes what its content does', async (t) => {
  const directory = await scratchDirectory(t);
  const path = join(directory, 'disk.qcow2');
  await qemuImg(['create', '-q', '-f', 'qcow2', path, '1G']);
  const graph = await testGraph({ directory, growsHereAlone: true });
  const node = await graph.open({ path, format: 'qcow2', readOnly: false });
  let most = 0;
  for (let at = 0; at < 48 * MIB; at += MIB) {
    await node.write(guestOffset(at), new Uint8Array(MIB).fill(1 + at / MIB));
    const { size, blocks } = await stat(path);
    most = Math.max(most, blocks * 512 - size);
  }
  assert.ok(most > MIB / 4, 'some was taken');
  await node.flush();
  // Others see the file while it has some.
  await assertClean(path);
  await graph.close(node);
  await assertClean(path);
  const { size, blocks } = await stat(path);
  assert.ok(blocks * 512 <= size + 65_536, `${blocks * 512} for ${size}`);
  const info = JSON.parse(await qemuImg(['info', '--output=json', path])) as {
    readonly 'actual-size': number;
  };
  assert.ok(info['actual-size'] < 49 * MIB);
});
