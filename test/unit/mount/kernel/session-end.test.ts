/** The end of a session whose views still have requests that wait for their turn. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Entry } from '../../../../mount/directory.ts';
import { startRehearsedSession } from '../../../../mount/kernel/rehearsed-session.ts';
import { memoryDirectory } from '../../../support/memory-directory.ts';

const REQUESTS = 1000;
/** What is served of one view at a time. */
const AT_ONCE = 32;
const NODE_ID = 2;

test('has come when all of them are answered, also those that start in a later turn', async () => {
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
  const options = { directory, tableBytes: 0, payloadBytes: 64 << 10 };
  const { session, writes, end } = startRehearsedSession(options);
  for (let sent = 0; sent < REQUESTS; ) {
    if (writes.send({ nodeId: NODE_ID, offset: 0, lengthBytes: 512 })) sent++;
    else await sleep(1);
  }
  while (session.counters().faults < REQUESTS) await sleep(1);
  assert.equal(answered, 0, 'the first ones hang');
  const ended = end();
  await sleep(5);
  letGo();
  await ended;
  assert.equal(answered, REQUESTS);
});
