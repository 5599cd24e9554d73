/** Mounts by the real program, taken down when the test ends, also when it fails. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { vdiskfs } from './loaded-vdiskfs.ts';
import type { Cleanup } from './scratch.ts';
import { type Finished, PROGRAM, run } from './vdiskfs.ts';

const READY_MS = 60_000;
const END_MS = 15_000;

export interface MountRequest {
  readonly backend: 'kernel' | 'fuse-native';
  readonly sources: readonly string[];
  /** Made when it is not there. */
  readonly mountpoint: string;
  readonly args?: readonly string[];
  /** Beside what this process has. */
  readonly env?: Readonly<Record<string, string>>;
}

export class Mounted {
  readonly mountpoint: string;
  readonly #child: ChildProcess;
  readonly #ended: Promise<void>;
  #log = '';

  constructor(mountpoint: string, child: ChildProcess) {
    this.mountpoint = mountpoint;
    this.#child = child;
    this.#ended = new Promise((resolve) => child.once('exit', () => resolve()));
    child.stderr?.on('data', (chunk: Buffer) => {
      this.#log += chunk.toString('utf8');
    });
  }

  /** What the mount has logged so far. */
  get log(): string {
    return this.#log;
  }

  path(name: string): string {
    return join(this.mountpoint, name);
  }

  /** `vdiskfs umount`, and the end of the program. Throws when either fails. */
  async unmount(): Promise<void> {
    const done = await vdiskfs(['umount', this.mountpoint]);
    if (done.status !== 0) throw new Error(`umount exited ${done.status}: ${done.stderr}`);
    await within(this.#ended, END_MS, `the mount's program ends; its log:\n${this.#log}`);
  }

  /** As `unmount`, and by force when that fails. */
  async tearDown(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) {
      await run('umount', ['-l', this.mountpoint]);
      return;
    }
    await this.unmount().catch(async () => {
      await run('umount', ['-l', this.mountpoint]);
      await within(this.#ended, END_MS, 'the program ends after a lazy unmount').catch(() =>
        this.#child.kill('SIGKILL'),
      );
    });
  }
}

/** `vdiskfs mount --foreground`; resolves when it says that it is ready. */
export const mountImages = async (t: Cleanup, request: MountRequest): Promise<Mounted> => {
  await mkdir(request.mountpoint, { recursive: true });
  const child = spawn(process.execPath, [PROGRAM, ...argumentsOf(request)], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...request.env },
  });
  const mounted = new Mounted(request.mountpoint, child);
  t.after(() => mounted.tearDown());
  const ready = new Promise<void>((resolve, reject) => {
    let out = '';
    child.stdout.on('data', (chunk: Buffer) => {
      out += chunk.toString('utf8');
      if (out.includes(`ready ${request.mountpoint}\n`)) resolve();
    });
    child.once('error', reject);
    child.once('exit', (status) => reject(new Error(`mount exited ${status}: ${mounted.log}`)));
  });
  await within(ready, READY_MS, 'the mount is ready');
  return mounted;
};

/** A mount that is expected to be refused: how it ended. */
export const refusedMount = async (request: MountRequest): Promise<Finished> => {
  await mkdir(request.mountpoint, { recursive: true });
  return vdiskfs(argumentsOf(request));
};

const argumentsOf = (request: MountRequest): string[] => [
  'mount',
  '--foreground',
  '--backend',
  request.backend,
  ...(request.args ?? []),
  ...request.sources,
  request.mountpoint,
];

/** Rejects, naming what was waited for, when the promise takes longer. */
const within = async (promise: Promise<void>, limitMs: number, what: string): Promise<void> => {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${limitMs} ms: ${what}`)), limitMs);
  });
  try {
    await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
};

/** Waits until it holds, `limitMs` at most; for what a mount learns by itself. */
export const eventually = async (
  what: string,
  holds: () => Promise<boolean>,
  limitMs = 5000,
): Promise<void> => {
  const end = Date.now() + limitMs;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
};
