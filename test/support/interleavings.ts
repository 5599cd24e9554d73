/**
 * Explores every interleaving of processes that share memory through `Atomics`, running the real code.
 *
 * A process is a deterministic function of what its atomic operations and its steps returned. To stop it in the
 * middle it is run again from the start with the recorded results, up to the next operation, which is then done for
 * real on the shared memory; the one after it suspends the run. A state is the memory plus what each process has seen;
 * a state that was met before is not explored again, so the search ends although the interleavings are countless.
 *
 * Ordinary stores belong to the operation before them: nobody else looks between the two. They are sought in a part of the memory alone.
 *
 * `Atomics.waitAsync` becomes a step that can be taken only when the word differs. Nothing else is assumed: every load
 * and every store is a point where another process may run.
 */

/** A step of a process that is no memory access: host I/O, a remap, an observation. */
export type Step = <T extends number | boolean>(name: string, effect: () => T) => T;

export interface Process {
  readonly name: string;
  /** Everything that it keeps between operations is local to the call: it runs many times. */
  readonly run: (step: Step) => Promise<void> | void;
  /** Its first operations, up to the step named `prepared`, happen before anything runs beside it. */
  readonly prepares?: boolean;
}

export interface World {
  readonly words: Int32Array;
  /** Words from here on are also changed by ordinary stores; all others through `Atomics` alone. */
  readonly ordinaryFrom?: number;
  /** State outside of the memory, changed only inside steps: saved and restored with the memory. */
  readonly host: number[];
}

export interface Exploration {
  readonly states: number;
  readonly endStates: number;
}

class Suspended extends Error {}
/** One for all: a stack trace for each suspended run would cost more than the run. */
const SUSPENDED = new Suspended();

interface Progress {
  readonly results: readonly (number | boolean)[];
  readonly done: boolean;
  /** Of the results; two halves, so that different histories do not meet by chance. */
  readonly hashA: number;
  readonly hashB: number;
}

interface State {
  readonly memory: ReadonlyMap<number, number>;
  readonly host: readonly number[];
  readonly processes: readonly Progress[];
  readonly trail: Trail | null;
}

interface Trail {
  readonly before: Trail | null;
  readonly step: string;
}

interface Run {
  readonly known: Progress;
  /** In which the next operation is done. */
  readonly from: State;
  position: number;
  result: number | boolean | null;
  name: string;
  blocked: boolean;
  readonly suspend: () => void;
}

type Operation = 'load' | 'store' | 'add' | 'sub' | 'exchange';
const REAL = {
  load: Atomics.load,
  store: Atomics.store,
  add: Atomics.add,
  sub: Atomics.sub,
  exchange: Atomics.exchange,
  notify: Atomics.notify,
  waitAsync: Atomics.waitAsync,
};
const NOTHING_SEEN: Progress = { results: [], done: false, hashA: 1, hashB: 2 };
/** Microtasks that an abandoned run may still have under way. */
const SETTLING_TICKS = 8;

export class Interleavings {
  readonly #world: World;
  readonly #processes: readonly Process[];
  /** First values of the words that were ever changed, so that a state can be restored. */
  readonly #initial = new Map<number, number>();
  readonly #ordinaryFrom: number;
  /** The words from `ordinaryFrom` on, as they were at first. */
  readonly #untouched: Int32Array;
  #memory = new Map<number, number>();
  #run: Run | null = null;

  constructor(world: World, processes: readonly Process[]) {
    this.#world = world;
    this.#processes = processes;
    this.#ordinaryFrom = world.ordinaryFrom ?? world.words.length;
    this.#untouched = world.words.slice(this.#ordinaryFrom);
  }

  /** Throws what the first failing interleaving threw, with the steps that led there. */
  async explore(atEnd: () => void = () => undefined): Promise<Exploration> {
    // A suspended run leaves rejected promises that nobody awaits; the test runner would take them for failures.
    const handlers = process.listeners('unhandledRejection');
    process.removeAllListeners('unhandledRejection');
    process.on('unhandledRejection', (reason: unknown) => {
      if (!(reason instanceof Suspended)) throw reason;
    });
    this.#patchAtomics();
    try {
      return await this.#search(await this.#prepared(), atEnd);
    } finally {
      Object.assign(Atomics, REAL);
      await new Promise((resolve) => setImmediate(resolve));
      process.removeAllListeners('unhandledRejection');
      for (const handler of handlers) process.on('unhandledRejection', handler);
    }
  }

  async #prepared(): Promise<State> {
    let state: State = {
      memory: new Map(),
      host: [...this.#world.host],
      processes: this.#processes.map(() => NOTHING_SEEN),
      trail: null,
    };
    for (const [i, p] of this.#processes.entries()) {
      if (p.prepares !== true) continue;
      do {
        const next = await this.#advance(state, i);
        if (next === null) throw new Error(`${p.name} cannot prepare itself`);
        state = next;
      } while (!state.trail?.step.startsWith(`${p.name}: prepared`));
    }
    return state;
  }

  async #search(first: State, atEnd: () => void): Promise<Exploration> {
    const seen = new Set<string>([keyOf(first)]);
    const open = [first];
    let endStates = 0;
    for (let state = open.pop(); state !== undefined; state = open.pop()) {
      let stuck = true;
      for (const i of this.#processes.keys()) {
        const reached = await this.#advance(state, i);
        if (reached === null) continue;
        stuck = false;
        const key = keyOf(reached);
        if (seen.has(key)) continue;
        seen.add(key);
        open.push(reached);
      }
      if (!stuck) continue;
      if (!state.processes.every((p) => p.done))
        throw this.#failure(new Error('deadlock'), state.trail);
      endStates++;
      this.#restore(state);
      atEnd();
    }
    return { states: seen.size, endStates };
  }

  /** One more operation of process `i`; null when it has ended or is blocked. */
  async #advance(state: State, i: number): Promise<State | null> {
    const known = state.processes[i];
    const process = this.#processes[i];
    if (known === undefined || process === undefined || known.done) return null;
    this.#restore(state);
    const { run, done } = await this.#execute(process, known, state);
    if (run.blocked) return null;
    this.#noteOrdinaryStores();
    const processes = [...state.processes];
    processes[i] =
      run.result === null ? { ...known, done } : { ...extended(known, run.result), done };
    const trail = { before: state.trail, step: `${process.name}: ${run.name} = ${run.result}` };
    return { memory: new Map(this.#memory), host: [...this.#world.host], processes, trail };
  }

  async #execute(
    process: Process,
    known: Progress,
    from: State,
  ): Promise<{ run: Run; done: boolean }> {
    let suspend = (): void => undefined;
    const suspension = new Promise<boolean>((resolve) => {
      suspend = () => resolve(false);
    });
    const progress = { position: 0, result: null, name: 'end', blocked: false };
    const run: Run = { known, from, ...progress, suspend };
    this.#run = run;
    const body = async (): Promise<boolean> => {
      await process.run((name, effect) => this.#operate(() => name, effect));
      return true;
    };
    const outcome = body().catch((error: unknown) => {
      if (error instanceof Suspended) return false;
      throw this.#failure(error, {
        before: from.trail,
        step: `${process.name}: ${run.name} = ${run.result}`,
      });
    });
    try {
      const done = await Promise.race([outcome, suspension]);
      for (let tick = 0; tick < SETTLING_TICKS; tick++) await null;
      return { run, done: done && !run.blocked };
    } finally {
      this.#run = null;
    }
  }

  #operate<T extends number | boolean>(name: () => string, effect: () => T): T {
    const run = this.#run;
    if (run === null) throw SUSPENDED;
    const at = run.position++;
    if (at < run.known.results.length) return run.known.results[at] as T;
    if (at > run.known.results.length || run.blocked) {
      run.suspend();
      throw SUSPENDED;
    }
    run.name = name();
    // What was done again to get here has stored once more what it had stored then.
    this.#restore(run.from);
    const result = effect();
    if (run.blocked) {
      run.suspend();
      throw SUSPENDED;
    }
    run.result = result;
    return result;
  }

  #access(op: Operation, at: number, value: number): number {
    const { words } = this.#world;
    return this.#operate(
      () => `${op} [${at}]${op === 'load' ? '' : ` ${value}`}`,
      () => {
        const old = REAL.load(words, at);
        const now =
          op === 'load' ? old : op === 'add' ? old + value : op === 'sub' ? old - value : value;
        if (now !== old) {
          if (!this.#initial.has(at)) this.#initial.set(at, old);
          REAL.store(words, at, now);
          this.#memory.set(at, now);
        }
        return op === 'store' ? value : old;
      },
    );
  }

  #patchAtomics(): void {
    const { words } = this.#world;
    const patched = (op: Operation) => (_: Int32Array, at: number, value: number) =>
      this.#access(op, at, value);
    const waitAsync = (_: Int32Array, at: number, value: number) => ({
      async: true,
      value: {
        // A thenable on purpose: the wait is a step of its own, taken when it is awaited.
        // biome-ignore lint/suspicious/noThenProperty: see above
        then: (resolve: (value: string) => void, reject: (error: unknown) => void): void => {
          try {
            this.#operate(
              () => `wait [${at}] != ${value}`,
              () => {
                if (REAL.load(words, at) === value && this.#run !== null) this.#run.blocked = true;
                return 0;
              },
            );
            resolve('not-equal');
          } catch (error) {
            reject(error);
          }
        },
      },
    });
    Object.assign(Atomics, {
      load: patched('load'),
      store: patched('store'),
      add: patched('add'),
      sub: patched('sub'),
      exchange: patched('exchange'),
      notify: () => 0,
      waitAsync,
    });
  }

  #noteOrdinaryStores(): void {
    const { words } = this.#world;
    for (let at = this.#ordinaryFrom; at < words.length; at++) {
      const now = words[at] ?? 0;
      const untouched = this.#untouched[at - this.#ordinaryFrom] ?? 0;
      if (now === untouched && !this.#memory.has(at)) continue;
      if (!this.#initial.has(at)) this.#initial.set(at, untouched);
      this.#memory.set(at, now);
    }
  }

  #restore(state: State): void {
    const { words, host } = this.#world;
    words.set(this.#untouched, this.#ordinaryFrom);
    for (const at of this.#memory.keys()) REAL.store(words, at, this.#initial.get(at) ?? 0);
    for (const [at, value] of state.memory) REAL.store(words, at, value);
    this.#memory = new Map(state.memory);
    host.splice(0, host.length, ...state.host);
  }

  #failure(error: unknown, trail: Trail | null): Error {
    const steps: string[] = [];
    for (let t = trail; t !== null && steps.length < 80; t = t.before) steps.unshift(t.step);
    const message = error instanceof Error ? error.message : String(error);
    return new Error(`${message}\nafter\n  ${steps.join('\n  ')}`, { cause: error });
  }
}

const extended = (known: Progress, result: number | boolean): Progress => {
  const value = Number(result);
  return {
    results: [...known.results, result],
    done: false,
    hashA: (Math.imul(known.hashA, 0x01000193) ^ value) | 0,
    hashB: (Math.imul(known.hashB ^ value, 0x5bd1e995) + known.results.length) | 0,
  };
};

const keyOf = (state: State): string => {
  const memory = [...state.memory].sort((a, b) => a[0] - b[0]).join(' ');
  const processes = state.processes.map(
    (p) => `${p.results.length},${p.hashA},${p.hashB},${p.done}`,
  );
  return `${memory}|${state.host.join(',')}|${processes.join('|')}`;
};
