/** A guest that writes all over its disk, and verifies what it has written, while something is done to the disk. */
import { type Finished, run } from '../support/vdiskfs.ts';
import type { ControlMount } from './control-mount.ts';

/** Its exit status says whether it found what it wrote. */
export const verifyingGuest = (
  m: ControlMount,
  { sizeMib = 64, writtenMib }: { readonly sizeMib?: number; readonly writtenMib: number },
): Promise<Finished> =>
  run(
    'fio',
    [
      '--name=guest',
      `--filename=${m.view}`,
      `--size=${sizeMib}M`,
      '--rw=randwrite',
      '--bsrange=512-64k',
      '--direct=1',
      '--ioengine=libaio',
      '--iodepth=16',
      `--io_size=${writtenMib}M`,
      '--verify=crc32c',
      '--do_verify=1',
      '--verify_fatal=1',
      '--verify_state_save=0',
      '--randseed=7',
    ],
    { timeoutMs: 90_000 },
  );
