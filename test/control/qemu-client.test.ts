/** QEMU's own QMP client library speaks with the control socket as it does with QEMU. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { controlMount } from './control-mount.ts';

const PROJECT = fileURLToPath(new URL('../../../', import.meta.url));

const session = (
  socketPath: string,
): Promise<{ status: number | null; out: string; err: string }> =>
  new Promise((resolve, reject) => {
    const child = spawn('python3', [`${PROJECT}test/control/qemu-client-session.py`, socketPath], {
      // The cache of test/setup/qemu-client.sh.
      env: {
        ...process.env,
        PYTHONPATH: `${PROJECT}.cache/qemu-client`,
        PYTHONDONTWRITEBYTECODE: '1',
      },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 60_000,
    });
    let out = '';
    let err = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString('utf8');
    });
    child.stderr.on('data', (chunk: Buffer) => {
      err += chunk.toString('utf8');
    });
    child.once('error', reject);
    child.once('close', (status) => resolve({ status, out, err }));
  });

test('greeting, commands, errors and events are what its library expects', async (t) => {
  const m = await controlMount(t, { sizeMib: 8 });
  const { status, out, err } = await session(m.socketPath);
  assert.equal(status, 0, err);
  assert.deepEqual(JSON.parse(out), {
    major: 7,
    devices: ['base', 'vm'],
    missing: 'DeviceNotFound',
    events: ['created', 'running', 'waiting', 'pending', 'BLOCK_JOB_COMPLETED', 'concluded'],
    jobs: [['job0', 'concluded']],
    answers: 20,
  });
});
