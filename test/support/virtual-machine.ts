/** Boots a disk in a virtual machine and talks to its serial port. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { GUEST_MARK } from './boot-disk.ts';

const MEMORY_MIB = 256;
const BOOT_LIMIT_MS = 60_000;

export interface Machine {
  /** A raw file: the machine's only disk. */
  readonly disk: string;
  /** QEMU's host cache mode. */
  readonly cache: 'none' | 'writeback';
  /** When it is given up; a minute when not given. */
  readonly limitMs?: number;
  /** It goes on writing and reading until it is sent a line. */
  readonly busy?: boolean;
}

/** A machine that runs. */
export interface RunningMachine {
  /** What its init has said so far, without its mark. */
  readonly lines: readonly string[];
  /** Lets a busy one come to its end. */
  stop(): void;
  /**
   * Resolves, with all of its lines, when it has powered off. Throws, with the end of its console, when it did not in time.
   * Has to be waited for.
   */
  readonly end: Promise<readonly string[]>;
}

/** VDISKFS_TEST_ACCEL chooses the accelerator (`tcg`). */
export const startMachine = (machine: Machine): RunningMachine => {
  const drive = `if=none,id=disk,format=raw,cache=${machine.cache},file=${machine.disk}`;
  const child = spawn(
    'qemu-system-x86_64',
    [
      ...['-accel', process.env['VDISKFS_TEST_ACCEL'] ?? 'tcg', '-m', String(MEMORY_MIB)],
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
      ...['-serial', 'stdio', '-drive', drive],
      ...['-device', `nvme,drive=disk,serial=${machine.busy === true ? 'busy' : 'boot'}`],
    ],
    { timeout: machine.limitMs ?? BOOT_LIMIT_MS, killSignal: 'SIGKILL' },
  );
  let out = '';
  let complaints = '';
  child.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString('latin1');
  });
  child.stderr.on('data', (chunk: Buffer) => {
    complaints += chunk.toString('utf8');
  });
  // One that has ended takes no line.
  child.stdin.on('error', () => undefined);
  const lines = (): string[] =>
    out
      .split(/\r?\n/)
      .slice(0, -1)
      .filter((line) => line.startsWith(GUEST_MARK))
      .map((line) => line.slice(GUEST_MARK.length).trim());
  const end = once(child, 'close').then(([status, signal]) => {
    if (status === 0) return lines();
    throw new Error(
      `the machine ended with ${status ?? signal}: ${complaints}\n${out.slice(-2000)}`,
    );
  });
  return {
    get lines() {
      return lines();
    },
    stop: () => void child.stdin.write('stop\n'),
    end,
  };
};

/** Runs the machine until it powers off; the lines of its init, without their mark. Errors: as `end`. */
export const bootMachine = async (machine: Machine): Promise<readonly string[]> =>
  startMachine(machine).end;
