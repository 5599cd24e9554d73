/** The end of a session whose views still have requests that wait for their turn. */
import assert from 'node:assert/strict';
import { closeSync, openSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Entry } from '../../../../mount/directory.ts';
import { RehearsedWrites } from '../../../../mount/kernel/rehearsed-writes.ts';
import { KernelSession } from '../../../../mount/kernel/session.ts';
import type { WorkerSetup } from '../../../../mount/kernel/worker-pool.ts';
import { present } from '../../../../src/base/assert.ts';
import { silentLog } from '../../../../src/base/log.ts';
import { memoryDirectory } from '../../../support/memory-directory.ts';

const REQUESTS = 1000;
/** What is served of one view at a time. */
const AT_ONCE = 32;
const NODE_ID = 2;

test('has come when all of them are answered, also those that start in a later turn', async (t) => {
  const descriptor = openSync('/dev/null', 'r+');
  t.after(() => closeSync(descriptor));
  let letGo = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  let answered = 0;
  // The first ones hang, and those behind them are answered at once when they do not.
  const view = {
    isHeld: false,
    letGo: () => undefined,
    writeAtOnce: () => {
      if (answered < AT_ONCE) return false;
      answered++;
      return true;
    },
    write: async () => {
      await held;
      answered++;
    },
  };
  const directory = {
    ...memoryDirectory([]),
    byNodeId: () => ({ nodeId: NODE_ID, name: 'disk.raw', view }) as unknown as Entry,
  };
  let setup: WorkerSetup | undefined;
  let end = (): void => undefined;
  const over = new Promise<void>((resolve) => {
    end = resolve;
  });
  const session = new KernelSession({
    directory,
    mountpoint: 'nowhere',
    readOnly: false,
    allowOther: false,
    threads: 1,
    measure: false,
    log: silentLog,
    descriptor,
    init: { minor: 0, flags: 0, flags2: 0, maxWriteBytes: 64 << 10 },
    generation: 0,
    tableBytes: 0,
    tasks: null,
    passthrough: { inherited: [], changed: () => undefined },
    inPlaceOfThreads: {
      runWorkers: ([given]) => {
        setup = given;
        return over;
      },
      notifications: {
        nameChanged: () => undefined,
        contentChanged: async () => undefined,
        close: async () => undefined,
      },
    },
  });
  const writes = new RehearsedWrites(present(setup, 'a session starts a worker'));
  for (let sent = 0; sent < REQUESTS; ) {
    if (writes.send({ nodeId: NODE_ID, offset: 0, lengthBytes: 512 })) sent++;
    else await sleep(1);
  }
  while (session.counters().faults < REQUESTS) await sleep(1);
  assert.equal(answered, 0, 'the first ones hang');
  end();
  await sleep(5);
  letGo();
  await session.ended;
  assert.equal(answered, REQUESTS);
});
