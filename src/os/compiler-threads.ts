/**
 * V8's helper threads: they compile functions to machine code and help to collect garbage. One that compiles runs for some
 * milliseconds, and the scheduler lets whoever is woken on its core wait for it, even beside a core that is free: a guest's request then
 * takes ten times as long. So they have a lower priority than what serves requests. Not the lowest: an engine on a busy
 * machine needs its functions compiled, and waits for its helpers where they collect garbage.
 */
import { opendirSync } from 'node:fs';
import { getPriority, setPriority } from 'node:os';

const POOL_THREADS = 4;
/** To be given to Node: so many there are, and they are looked for. */
export const COMPILER_THREADS_OPTION = `--v8-pool-size=${POOL_THREADS}`;
/** Those of the pool, and the one that waits for what is due later. */
export const COMPILER_THREADS = POOL_THREADS + 1;
/** A tenth of the processor, beside a thread that wants all of it. */
const NICER = 10;
const MAX_NICE = 19;

/** Of this process, in the order in which they were begun, which is that of the directory. */
const threads = function* (): Generator<number> {
  const directory = opendirSync('/proc/self/task');
  try {
    for (let entry = directory.readSync(); entry !== null; entry = directory.readSync())
      yield Number(entry.name);
  } finally {
    directory.closeSync();
  }
};

/**
 * Node begins them right after the main thread. Returns their ids; none in a process that was started without the option, or whose
 * directory tells of something else. Never throws: without it an engine is only less even.
 */
export const lowerCompilerThreads = (): readonly number[] => {
  if (!process.execArgv.includes(COMPILER_THREADS_OPTION)) return [];
  try {
    const [main, ...others] = threads();
    if (main !== process.pid) return [];
    const nice = Math.min(MAX_NICE, getPriority() + NICER);
    const helpers = others.slice(0, COMPILER_THREADS);
    for (const thread of helpers) setPriority(thread, nice);
    return helpers;
  } catch {
    return [];
  }
};
