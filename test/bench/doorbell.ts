/**
 * How long it takes from a worker's ring until the main thread runs, for each way to ring. `node dist/test/bench/doorbell.js`
 * prints medians and 99th percentiles in microseconds; the figures in ARCHITECTURE.md come from it. `futex` is the bare
 * wake-up of a thread that sleeps in `Atomics.wait`: the measure of the others, no way to run an event loop.
 */
import { writeSync } from 'node:fs';
import {
  isMainThread,
  type MessagePort,
  parentPort,
  Worker,
  workerData,
} from 'node:worker_threads';
import { Doorbell, ringDoorbell } from '../../mount/kernel/doorbell.ts';

const ROUNDS = 5000;
const PAUSE_MS = 0.2;

type Way = 'futex' | 'pipe' | 'message' | 'waitAsync';

interface Setup {
  readonly way: Way;
  readonly writeEnd: number;
  readonly shared: SharedArrayBuffer;
}

/** Wraps: only differences below 2 s are used. */
const nowNanoseconds = (): number => Number(process.hrtime.bigint() % 2n ** 31n);

/** Words: 0 when it was rung, 1 rounds rung, 2 rounds answered. */
const ring = ({ way, writeEnd, shared }: Setup, port: MessagePort): void => {
  const words = new Int32Array(shared);
  for (let round = 1; round <= ROUNDS; round++) {
    Atomics.wait(words, 3, 0, PAUSE_MS);
    Atomics.store(words, 0, nowNanoseconds());
    Atomics.store(words, 1, round);
    if (way === 'pipe') ringDoorbell(writeEnd);
    else if (way === 'message') port.postMessage(0);
    else Atomics.notify(words, 1);
    for (
      let answered = Atomics.load(words, 2);
      answered < round;
      answered = Atomics.load(words, 2)
    ) {
      Atomics.wait(words, 2, answered);
    }
  }
};

const measure = (way: Way): Promise<number[]> =>
  new Promise((resolve) => {
    const shared = new SharedArrayBuffer(64);
    const words = new Int32Array(shared);
    const waits: number[] = [];
    const answer = (): void => {
      if (Atomics.load(words, 1) === Atomics.load(words, 2)) return;
      waits.push((nowNanoseconds() - Atomics.load(words, 0) + 2 ** 31) % 2 ** 31);
      Atomics.store(words, 2, Atomics.load(words, 1));
      Atomics.notify(words, 2);
    };
    const doorbell = new Doorbell(answer);
    const workerData: Setup = { way, writeEnd: doorbell.writeEnd, shared };
    const worker = new Worker(new URL(import.meta.url), { workerData });
    worker.on('message', answer);
    const watch = async (): Promise<void> => {
      while (waits.length < ROUNDS) {
        const wait = Atomics.waitAsync(words, 1, waits.length, 1000);
        if (wait.async) await wait.value;
        answer();
      }
    };
    const sleep = (): void => {
      while (waits.length < ROUNDS) {
        Atomics.wait(words, 1, waits.length, 1000);
        answer();
      }
    };
    if (way === 'waitAsync') void watch();
    // When the worker runs: it is started by messages that a sleeping thread would not serve.
    if (way === 'futex') worker.once('online', sleep);
    worker.once('exit', () => {
      doorbell.close();
      resolve(waits);
    });
  });

if (isMainThread) {
  for (const way of ['futex', 'pipe', 'message', 'waitAsync'] as const) {
    const waits = (await measure(way)).sort((a, b) => a - b);
    const at = (part: number): string =>
      ((waits[Math.floor(waits.length * part)] ?? 0) / 1000).toFixed(1);
    writeSync(
      1,
      `${way.padEnd(10)} median ${at(0.5)} µs, 99 % ${at(0.99)} µs, worst ${at(0.9999)} µs\n`,
    );
  }
} else if (parentPort !== null) ring(workerData as Setup, parentPort);
