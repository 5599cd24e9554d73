/** Calls to the host that do not return for a while, in this process: what a disk that hangs does to one of them. */
import files from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { mock } from 'node:test';
import type { Cleanup } from './scratch.ts';

export interface Stall {
  /** The call has come. */
  readonly reached: Promise<void>;
  /** It is done, and so are all that come after it. */
  readonly end: () => void;
}

/** Calls of one function of `node:fs/promises`, by what has its name there, with this path as the first argument. */
export const stall = (t: Cleanup, name: 'open' | 'rename' | 'readdir', path: string): Stall => {
  let [reach, end] = [(): void => undefined, (): void => undefined];
  const reached = new Promise<void>((resolve) => {
    reach = resolve;
  });
  const ended = new Promise<void>((resolve) => {
    end = resolve;
  });
  const call = files[name] as (...args: unknown[]) => Promise<unknown>;
  const stalled = mock.method(files, name, async (...args: unknown[]) => {
    if (args[0] === path) {
      reach();
      await ended;
    }
    return call(...args);
  });
  syncBuiltinESMExports();
  t.after(async () => {
    end();
    stalled.mock.restore();
    syncBuiltinESMExports();
  });
  return { reached, end };
};
