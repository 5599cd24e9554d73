/**
 * What a supervisor leaves to the one that takes over from it, in the service manager's store of descriptors: the descriptor
 * of the mount, and a memory file with what was settled with the kernel and the node ids.
 *
 * The file is a log of JSON lines; a record is in it before anybody hears of what it says. A last line without its end,
 * torn by SIGKILL, counts for nothing.
 */
import { closeSync, fstatSync, readSync, writeSync } from 'node:fs';
import type { InitOutcome } from '../../mount/kernel/init.ts';
import type { PassthroughUse } from '../../mount/kernel/passthrough.ts';
import type { Log } from '../base/log.ts';
import type { KeptLock } from '../block/qemu-locks.ts';
import { openMemoryFile } from '../os/descriptors.ts';
import { FILE_SYSTEM_TYPE, mountedAt } from './mount-table.ts';
import type { ProcessIdentity } from './process-identity.ts';
import type { Service } from './service.ts';
import type { KeptStandIns } from './stand-in-store.ts';

const FUSE_NAME = 'vdiskfs-fuse';
const STATE_NAME = 'vdiskfs-state';
const LOCK_NAME = 'vdiskfs-lock-';
const VERSION = 1;

interface Settled {
  readonly version: number;
  readonly mountpoint: string;
  /** `major:minor` of the mount: another one at the same place is not this one. */
  readonly device: string;
  readonly init: InitOutcome;
}

type Entry =
  | { readonly settled: Settled }
  | { readonly ids: readonly (readonly [string, number])[] }
  | { readonly passthrough: PassthroughUse }
  | { readonly activity: ActivityChange }
  | { readonly standIns: KeptStandIns | null }
  | { readonly generation: number; readonly engine: ProcessIdentity };

/** See `EngineConfig.activityChanges`. */
export interface ActivityChange {
  readonly path: string;
  readonly differs: boolean;
}

/** What a new supervisor begins with. */
export interface TakenOver {
  readonly mountpoint: string;
  readonly fuse: { readonly descriptor: number; readonly init: InitOutcome };
  /** Of the last engine. */
  readonly generation: number;
  /** That engine: it may not have died yet. */
  readonly engine: ProcessIdentity | null;
  /** Keys of node ids in the order in which they were given; a later one of the same key replaces an earlier one. */
  readonly ids: readonly (readonly [string, number])[];
  readonly passthroughUses: readonly PassthroughUse[];
  /** See `EngineConfig`. */
  readonly activityChanges: readonly string[];
  readonly standIns: KeptStandIns | null;
  /** Descriptors with image locks on them; `tenure` see `ImageLock`. */
  readonly locks: readonly { readonly descriptor: number; readonly tenure: string }[];
  /** The memory file, which goes on to be written, and where its last whole record ends. */
  readonly state: { readonly descriptor: number; readonly endBytes: number };
}

export class KeptState {
  readonly #service: Service;
  readonly #descriptor: number;
  #bytes: number;

  private constructor(service: Service, state: TakenOver['state']) {
    this.#service = service;
    this.#descriptor = state.descriptor;
    this.#bytes = state.endBytes;
  }

  /** Of a new mount: puts both descriptors into the store, and what is settled into the file. */
  static begin(
    service: Service,
    { mountpoint, fuse }: { readonly mountpoint: string; readonly fuse: TakenOver['fuse'] },
  ): KeptState {
    const kept = new KeptState(service, { descriptor: openMemoryFile(STATE_NAME), endBytes: 0 });
    const device = mountedAt(mountpoint)?.device ?? '';
    kept.#append({ settled: { version: VERSION, mountpoint, device, init: fuse.init } });
    service.store(STATE_NAME, kept.#descriptor);
    service.store(FUSE_NAME, fuse.descriptor);
    return kept;
  }

  /** Of a mount that was taken over: what is in the store stays there. */
  static goOn(service: Service, taken: TakenOver): KeptState {
    return new KeptState(service, taken.state);
  }

  /** Before an engine hears of them. */
  idsGiven(ids: readonly (readonly [string, number])[]): void {
    this.#append({ ids });
  }

  passthroughChanged(use: PassthroughUse): void {
    this.#append({ passthrough: use });
  }

  activityChanged({ path, differs }: ActivityChange): void {
    this.#append({ activity: { path, differs } });
  }

  standInsTold(standIns: KeptStandIns | null): void {
    this.#append({ standIns });
  }

  /** Before the engine is told to begin. */
  engineBegins(generation: number, engine: ProcessIdentity): void {
    this.#append({ generation, engine });
  }

  lockOpened(lock: KeptLock, descriptor: number): void {
    this.#service.store(lockName(lock), descriptor);
  }

  lockClosed(lock: KeptLock): void {
    this.#service.forget(lockName(lock));
  }

  /** The mount has ended: nobody is to take it over. */
  close(): void {
    this.#service.forget(FUSE_NAME);
    this.#service.forget(STATE_NAME);
    closeSync(this.#descriptor);
  }

  #append(entry: Entry): void {
    const line = Buffer.from(`${JSON.stringify(entry)}\n`);
    for (let done = 0; done < line.length; )
      done += writeSync(this.#descriptor, line, done, line.length - done, this.#bytes + done);
    this.#bytes += line.length;
  }
}

/** Names in the store hold no colon. */
const lockName = ({ key, tenure }: KeptLock): string =>
  `${LOCK_NAME}${key.replaceAll(':', '-')}.${tenure}`;

const tenureOf = (name: string): string => name.slice(name.lastIndexOf('.') + 1);

/**
 * What an earlier supervisor of this service has left, if its mount is still there; null else, and the store is emptied. Touches
 * nothing in the mount: nobody answers there.
 */
export const takeOver = (service: Service, log: Log): TakenOver | null => {
  const { passed } = service;
  if (passed.length === 0) return null;
  const named = (name: string): number | null =>
    passed.find((p) => p.name === name)?.descriptor ?? null;
  const [fuse, state] = [named(FUSE_NAME), named(STATE_NAME)];
  const locks = passed
    .filter((p) => p.name.startsWith(LOCK_NAME))
    .map(({ name, descriptor }) => ({ descriptor, tenure: tenureOf(name) }));
  const found = fuse === null || state === null ? null : replay(state);
  const mount = found === null ? null : mountedAt(found.settled.mountpoint);
  const isThere =
    mount !== null && mount.type === FILE_SYSTEM_TYPE && mount.device === found?.settled.device;
  if (!isThere || found === null || fuse === null || state === null) {
    for (const name of new Set(passed.map((p) => p.name))) service.forget(name);
    for (const { descriptor } of passed) closeSync(descriptor);
    log.info('supervisor', 'what was kept of an earlier one belongs to no mount: it is let go');
    return null;
  }
  const { settled, endBytes, ...rest } = found;
  const { mountpoint, init } = settled;
  return {
    mountpoint,
    fuse: { descriptor: fuse, init },
    locks,
    state: { descriptor: state, endBytes },
    ...rest,
  };
};

interface Replayed
  extends Pick<
    TakenOver,
    'generation' | 'engine' | 'ids' | 'passthroughUses' | 'activityChanges' | 'standIns'
  > {
  readonly settled: Settled;
  readonly endBytes: number;
}

/** Null for a file of another version. */
const replay = (descriptor: number): Replayed | null => {
  const found: { settled: Settled | null } = { settled: null };
  let generation = 0;
  let engine: ProcessIdentity | null = null;
  const ids: (readonly [string, number])[] = [];
  const uses = new Map<number, PassthroughUse>();
  const changes = new Set<string>();
  let standIns: KeptStandIns | null = null;
  const text = textOf(descriptor);
  const endBytes = text.lastIndexOf(0x0a) + 1;
  for (const entry of entriesIn(text.subarray(0, endBytes))) {
    if ('settled' in entry) found.settled = entry.settled;
    else if ('ids' in entry) ids.push(...entry.ids);
    else if ('generation' in entry) ({ generation, engine } = entry);
    else if ('standIns' in entry) ({ standIns } = entry);
    else if ('activity' in entry) {
      const { path, differs } = entry.activity;
      if (differs) changes.add(path);
      else changes.delete(path);
    } else if (entry.passthrough.handles > 0) uses.set(entry.passthrough.nodeId, entry.passthrough);
    else uses.delete(entry.passthrough.nodeId);
  }
  const { settled } = found;
  if (settled === null || settled.version !== VERSION) return null;
  return {
    settled,
    generation,
    engine,
    ids,
    passthroughUses: [...uses.values()],
    activityChanges: [...changes],
    standIns,
    endBytes,
  };
};

const textOf = (descriptor: number): Buffer => {
  const text = Buffer.alloc(fstatSync(descriptor).size);
  let got = 0;
  while (got < text.length) {
    const more = readSync(descriptor, text, got, text.length - got, got);
    if (more === 0) break;
    got += more;
  }
  return text.subarray(0, got);
};

const entriesIn = (text: Buffer): Entry[] =>
  text
    .toString('utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Entry);
