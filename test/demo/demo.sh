#!/usr/bin/env bash
# `npm run demo`: the main job of vdiskfs on a real disk image. Does its own set-up, prints each command as a person would
# type it, and takes everything down again, also when a step fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash test/setup/prepare.sh

program=$PWD/dist/src/cli/main.js
work=$(mktemp -d "${TMPDIR:-/tmp}/vdiskfs-demo-XXXXXX")
loop=''
cd "$work"
mkdir images mnt guest

vdiskfs() { node "$program" "$@"; }

take_down() {
  trap - EXIT INT TERM
  if mountpoint -q "$work/guest"; then umount "$work/guest" || umount -l "$work/guest"; fi
  if [ -n "$loop" ]; then losetup -d "$loop" 2> /dev/null || true; fi
  if mountpoint -q "$work/mnt"; then vdiskfs umount "$work/mnt" || vdiskfs umount --lazy "$work/mnt" || true; fi
  cd /
  rm -rf "$work"
}
trap take_down EXIT
trap 'exit 1' INT TERM

bold='' plain=''
if [ -t 1 ]; then bold=$(tput bold 2> /dev/null || true) plain=$(tput sgr0 2> /dev/null || true); fi
say() { printf '\n%s\n' "$*"; }
show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }
# Shows a command and runs it.
try() { show "$*"; "$@"; }

say 'A disk as a guest would have it: one partition, ext4, a file. Its image is a qcow2 with a backing image.'
mkdir -p root/etc
echo 'Hello from inside of the virtual disk.' > root/etc/motd
head -c 3000000 /dev/urandom > root/data.bin
mkfs.ext4 -q -d root -L guest partition.raw 63M > /dev/null
truncate -s 64M disk.raw
echo '2048,,L' | sfdisk -q disk.raw
dd if=partition.raw of=disk.raw bs=1M seek=1 conv=notrunc,sparse status=none
show qemu-img convert -O qcow2 disk.raw images/base.qcow2
qemu-img convert -f raw -O qcow2 disk.raw images/base.qcow2
try vdiskfs create -f qcow2 -b base.qcow2 -F qcow2 images/vm.qcow2

say 'Mount the directory of images.'
try vdiskfs mount images mnt

say 'Each image is a flat raw file now; the backing image is shown read-only.'
try ls -ls mnt
try sfdisk -l mnt/vm.raw
try vdiskfs status mnt

if [ "$(id -u)" -eq 0 ]; then
  say 'Use it as a disk: attach it, mount its partition, read a file of the guest.'
  show losetup -f --show -P mnt/vm.raw
  loop=$(losetup -f --show -P mnt/vm.raw)
  echo "$loop"
  [ -b "${loop}p1" ] || partx -u "$loop"
  try mount -o ro "${loop}p1" guest
  try cat guest/etc/motd
  cmp root/data.bin guest/data.bin && echo 'data.bin is what was put there.'
  try umount guest
  try losetup -d "$loop"
  loop=''
else
  say 'Without root there are no loop devices; the file can be read all the same.'
  show dd if=mnt/vm.raw of=part.raw bs=1M skip=1
  dd if=mnt/vm.raw of=part.raw bs=1M skip=1 status=none
  try debugfs -R 'cat /etc/motd' part.raw
fi

say 'Writes go to the overlay; the backing image stays as it was.'
show "echo changed | dd of=mnt/vm.raw bs=512 seek=1 conv=notrunc"
echo changed | dd of=mnt/vm.raw bs=512 seek=1 conv=notrunc status=none
try vdiskfs umount mnt
try vdiskfs check images/vm.qcow2
try qemu-img check images/vm.qcow2
say 'Done; everything is unmounted and removed.'
