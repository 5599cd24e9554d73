/**
 * A disk that boots: GRUB, a Debian kernel and a small init, in one ext4 partition. Built without root and without
 * loop devices, once for each recipe, in `.cache/` of the checkout.
 *
 * The disk is NVMe in the machine, whose driver and ext4 are built into Debian's cloud kernel: no initramfs is needed.
 * Each boot counts itself in a file, writes data of its own, and checks what the boots before it wrote. One whose disk has the
 * serial number `busy` writes and reads on, past its own page cache, until it is sent a line.
 */
import { createHash } from 'node:crypto';
import {
  chmod,
  copyFile,
  mkdir,
  mkdtemp,
  readdir,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { tool } from './file-tools.ts';

const CACHE = fileURLToPath(new URL('../../../.cache/', import.meta.url));
/** Where the set-up puts the kernel's package. */
const KERNEL_PACKAGES = join(CACHE, 'packages');
const GRUB = '/usr/lib/grub/i386-pc';
const BUSYBOX = '/bin/busybox';

const DISK_MIB = 96;
const PARTITION_START_MIB = 1;
/** Boot code of the first sector; the partition table follows it. */
const BOOT_CODE_BYTES = 440;
const SECTOR_BYTES = 512;

/** Lines that the init writes to the serial port begin with it. */
export const GUEST_MARK = 'vdiskfs-guest:';

const INIT = `#!${BUSYBOX} sh
${BUSYBOX} --install -s /bin
export PATH=/bin
mount -t devtmpfs none /dev
mount -t proc none /proc
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
say() { echo "${GUEST_MARK} $*"; }
boots=0
[ -f /var/boots ] && read -r boots < /var/boots
say "boots before: $boots"
sha256sum -c -s /boot/sums && say "kernel intact" || say "kernel damaged"
if [ "$boots" -gt 0 ]; then
  sha256sum -c -s /var/sums && say "data intact" || say "data damaged"
fi
dd if=/dev/urandom of="/var/data$boots" bs=64k count=64 2> /dev/null
sha256sum /var/data* > /var/sums
mount -t sysfs none /sys
read -r serial < /sys/class/nvme/nvme0/serial
if [ "$serial" = busy ]; then
  { read -r _ < /dev/ttyS0; : > /dev/stop; } &
  rounds=0
  while [ ! -e /dev/stop ]; do
    slot=$((rounds % 8))
    dd if=/dev/urandom of=/dev/fresh bs=64k count=8 2> /dev/null
    cp /dev/fresh "/var/busy$slot" && sync || say "not written"
    echo 3 > /proc/sys/vm/drop_caches
    cmp -s /dev/fresh "/var/busy$slot" || say "round $rounds damaged"
    rounds=$((rounds + 1))
    say "rounds: $rounds"
  done
  sha256sum /var/data* /var/busy* > /var/sums
fi
echo $((boots + 1)) > /var/boots
sync
mount -o remount,ro / && say "written" || say "not written"
poweroff -f
`;

const GRUB_CONFIGURATION = `linux (hd0,msdos1)/boot/vmlinuz root=/dev/nvme0n1p1 rw console=ttyS0 quiet init=/init panic=-1
boot
`;

/** The newest kernel package of the cache. Throws, naming the set-up, when there is none. */
const kernelPackage = async (): Promise<string> => {
  const names = await readdir(KERNEL_PACKAGES).catch(() => []);
  const found = names.filter((name) => /^linux-image-.*_amd64\.deb$/.test(name)).sort();
  const newest = found.at(-1);
  if (newest === undefined) {
    throw new Error(`no kernel in ${KERNEL_PACKAGES}: run test/setup/prepare.sh`);
  }
  return join(KERNEL_PACKAGES, newest);
};

/** The guest's file system, as a directory. */
const layOutRoot = async (root: string, kernel: string): Promise<void> => {
  for (const name of ['boot', 'bin', 'dev', 'proc', 'sys', 'var']) {
    await mkdir(join(root, name), { recursive: true });
  }
  await copyFile(kernel, join(root, 'boot/vmlinuz'));
  const sum = (await tool('sha256sum', [kernel])).slice(0, 64);
  await writeFile(join(root, 'boot/sums'), `${sum}  /boot/vmlinuz\n`);
  await copyFile(BUSYBOX, join(root, 'bin/busybox'));
  await writeFile(join(root, 'init'), INIT);
  await chmod(join(root, 'init'), 0o755);
};

/** Writes a whole file into `disk` at an offset in bytes. */
const writeAt = (disk: string, file: string, offset: number, most?: number): Promise<string> =>
  tool('dd', [
    `if=${file}`,
    `of=${disk}`,
    'bs=64k',
    `seek=${offset}`,
    ...(most === undefined ? [] : [`count=${most}`]),
    `iflag=${most === undefined ? 'fullblock' : 'fullblock,count_bytes'}`,
    'oflag=seek_bytes',
    'conv=notrunc,sparse',
    'status=none',
  ]);

const build = async (work: string, disk: string): Promise<void> => {
  await tool('dpkg-deb', ['-x', await kernelPackage(), join(work, 'kernel')]);
  const boot = join(work, 'kernel/boot');
  const kernel = (await readdir(boot)).find((name) => name.startsWith('vmlinuz-'));
  if (kernel === undefined) throw new Error(`no vmlinuz in ${await kernelPackage()}`);
  const root = join(work, 'root');
  await layOutRoot(root, join(boot, kernel));

  const partition = join(work, 'partition.raw');
  const partitionMib = DISK_MIB - PARTITION_START_MIB;
  await tool('mkfs.ext4', ['-q', '-d', root, partition, `${partitionMib}M`]);

  // GRUB's second stage lies behind the first sector, where its own list of sectors expects it.
  const core = join(work, 'core.img');
  const configuration = join(work, 'grub.cfg');
  await writeFile(configuration, GRUB_CONFIGURATION);
  const prefix = ['-O', 'i386-pc', '-p', '(hd0,msdos1)/boot/grub', '-c', configuration];
  const modules = ['biosdisk', 'part_msdos', 'ext2', 'linux'];
  await tool('grub-mkimage', ['-d', GRUB, ...prefix, '-o', core, ...modules]);
  const gap = PARTITION_START_MIB * 1024 * 1024 - SECTOR_BYTES;
  if ((await stat(core)).size > gap) throw new Error('the boot loader does not fit');

  await tool('truncate', ['-s', `${DISK_MIB}M`, disk]);
  const start = (PARTITION_START_MIB * 1024 * 1024) / SECTOR_BYTES;
  await tool('sh', ['-c', `echo 'start=${start},type=83,bootable' | sfdisk -q '${disk}'`]);
  await writeAt(disk, join(GRUB, 'boot.img'), 0, BOOT_CODE_BYTES);
  await writeAt(disk, core, SECTOR_BYTES);
  await writeAt(disk, partition, PARTITION_START_MIB * 1024 * 1024);
};

/**
 * The path of a raw disk that boots; read it only, or put an overlay on it. Takes a few seconds the first time. Test
 * files that build it at the same time each build one; the last rename stays.
 */
export const bootDisk = async (): Promise<string> => {
  const grub = await tool('grub-mkimage', ['--version']);
  const recipe = [INIT, GRUB_CONFIGURATION, DISK_MIB, grub, await kernelPackage()].join('\0');
  const key = createHash('sha256').update(recipe).digest('hex').slice(0, 16);
  const disk = join(CACHE, `boot-disk-${key}.raw`);
  const there = await stat(disk).catch(() => null);
  if (there !== null) return disk;
  const work = await mkdtemp(join(CACHE, 'boot-disk-work-'));
  try {
    const fresh = join(work, 'disk.raw');
    await build(work, fresh);
    await rename(fresh, disk);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  return disk;
};
