/**
 * Loaded into the processes of a mount (`NODE_OPTIONS=--import …`): an exception that nobody catches, once, as soon as there is a file
 * `CRASH_BELOW/worker` (in the first worker that reads a request after that) or `CRASH_BELOW/main` (in the engine's main thread).
 */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { isMainThread } from 'node:worker_threads';

const LOOK_EVERY_MS = 20;

/** True for the one that finds the file. */
const takes = (name: string): boolean => {
  try {
    fs.unlinkSync(join(process.env['CRASH_BELOW'] ?? '', name));
    return true;
  } catch {
    return false;
  }
};

if (isMainThread && process.argv[1]?.endsWith('/engine.js') === true) {
  setInterval(() => {
    if (takes('main')) throw new Error('a crash of the main thread');
  }, LOOK_EVERY_MS).unref();
}

if (!isMainThread) {
  const { readSync } = fs;
  const crashing = (...args: readonly unknown[]): number => {
    const got = Reflect.apply(readSync, fs, args) as number;
    // Requests have no position; an error of a host file is met otherwise.
    if (args[4] === null && got > 0 && takes('worker')) throw new Error('a crash of a worker');
    return got;
  };
  fs.readSync = crashing as typeof readSync;
  syncBuiltinESMExports();
}
