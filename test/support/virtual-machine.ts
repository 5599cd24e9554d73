/** Boots a disk in a virtual machine and reads its serial port. */

import { GUEST_MARK } from './boot-disk.ts';
import { run } from './vdiskfs.ts';

const MEMORY_MIB = 256;
const BOOT_LIMIT_MS = 60_000;

export interface Machine {
  /** A raw file: the machine's only disk. */
  readonly disk: string;
  /** QEMU's host cache mode. */
  readonly cache: 'none' | 'writeback';
  /** When it is given up; a minute when not given. */
  readonly limitMs?: number;
}

/**
 * Runs the machine until it powers off; the lines of its init, without their mark. VDISKFS_TEST_ACCEL chooses the
 * accelerator (`tcg`). Throws, with the end of its console, when it does not power off in time.
 */
export const bootMachine = async (machine: Machine): Promise<string[]> => {
  const drive = `if=none,id=disk,format=raw,cache=${machine.cache},file=${machine.disk}`;
  const done = await run(
    'qemu-system-x86_64',
    [
      ...['-accel', process.env['VDISKFS_TEST_ACCEL'] ?? 'tcg', '-m', String(MEMORY_MIB)],
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
      ...['-serial', 'stdio', '-drive', drive, '-device', 'nvme,drive=disk,serial=boot'],
    ],
    { timeoutMs: machine.limitMs ?? BOOT_LIMIT_MS },
  );
  if (done.status !== 0) {
    const how = done.status ?? done.signal;
    throw new Error(`the machine ended with ${how}: ${done.stderr}\n${done.stdout.slice(-2000)}`);
  }
  return done.stdout
    .split(/\r?\n/)
    .filter((line) => line.startsWith(GUEST_MARK))
    .map((line) => line.slice(GUEST_MARK.length).trim());
};
