/** Calls to the host that do not return for a while, or fail, in this process: what a bad disk does to one of them. */
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

type Call = 'open' | 'rename' | 'readdir';

/** Calls of one function of `node:fs/promises`, by what has its name there, with this path as the first argument. */
const before = (t: Cleanup, name: Call, path: string, happens: () => Promise<void>): void => {
  const call = files[name] as (...args: unknown[]) => Promise<unknown>;
  const replaced = mock.method(files, name, async (...args: unknown[]) => {
    if (args[0] === path) await happens();
    return call(...args);
  });
  syncBuiltinESMExports();
  t.after(async () => {
    replaced.mock.restore();
    syncBuiltinESMExports();
  });
};

export const stall = (t: Cleanup, name: Call, path: string): Stall => {
  let [reach, end] = [(): void => undefined, (): void => undefined];
  const reached = new Promise<void>((resolve) => {
    reach = resolve;
  });
  const ended = new Promise<void>((resolve) => {
    end = resolve;
  });
  t.after(async () => end());
  before(t, name, path, () => {
    reach();
    return ended;
  });
  return { reached, end };
};

/** They fail with EIO. */
export const breakCall = (t: Cleanup, name: Call, path: string): void =>
  before(t, name, path, async () => {
    throw Object.assign(new Error(`EIO: i/o error, ${name} '${path}'`), { code: 'EIO', errno: -5 });
  });
