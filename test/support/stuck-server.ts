/**
 * A mount with a view `stuck.raw` that never answers and a view `quick.raw` that does, in a process of its own:
 *
 *     node stuck-server.js MOUNTPOINT
 *
 * Prints `ready`, and `held` when HELD requests of the stuck view have arrived. On the line `go` of stdin, or its end, it
 * lets them go; on `again` it holds those that come afterwards.
 */
import { readSync, writeSync } from 'node:fs';
import { answerInit } from '../../mount/kernel/init.ts';
import { KernelSession } from '../../mount/kernel/session.ts';
import { silentLog } from '../../src/base/log.ts';
import { mountFuse } from '../../src/daemon/mounting.ts';
import { memoryDirectory, memoryView } from './memory-directory.ts';

const [mountpoint = ''] = process.argv.slice(2);
const VIEW_BYTES = 64 << 20;
/** Fewer requests than the load has under way, more than name look-ups are. */
const HELD = 256;

let letGo = (): void => undefined;
let stuck: Promise<void> = Promise.resolve();
/** Requests of the whole mount when the next load began. */
let requestsBefore = 0;

const descriptor = await mountFuse({
  source: 'stuck-server',
  mountpoint,
  readOnly: false,
  allowOther: false,
  flags: 0,
});
const request = new Uint8Array(16_384);
const length = readSync(descriptor, request);
const { outcome, bytes } = answerInit(request.subarray(0, length));
writeSync(descriptor, bytes);
const directory = memoryDirectory([
  memoryView('stuck.raw', VIEW_BYTES, () => stuck),
  memoryView('quick.raw', VIEW_BYTES, async (buffer) => void buffer.fill(7)),
]);
const session = new KernelSession({
  directory,
  mountpoint,
  readOnly: false,
  allowOther: false,
  threads: 2,
  measure: false,
  log: silentLog,
  descriptor,
  init: outcome,
  generation: 0,
  tableBytes: 0,
  tasks: null,
  passthrough: { inherited: [], changed: () => undefined },
});
/** What comes from now on waits, until the next line. */
const arm = (): void => {
  stuck = new Promise((resolve) => {
    letGo = resolve;
  });
  requestsBefore = session.counters().requests;
  const watch = setInterval(() => {
    if (session.counters().requests - requestsBefore < HELD) return;
    clearInterval(watch);
    writeSync(1, 'held\n');
  }, 20);
  watch.unref();
};

arm();
process.stdin.on('data', (text: Buffer) => {
  letGo();
  if (text.toString('utf8').startsWith('again')) arm();
});
process.stdin.on('end', () => letGo());
writeSync(1, 'ready\n');
await session.ended;
process.exit(0);
