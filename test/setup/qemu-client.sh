#!/usr/bin/env bash
# QEMU's own QMP client library, out of Debian's source package of QEMU: fetched into the ignored cache, used by tests, never
# part of the tree. Does nothing when it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=.cache/qemu-client
[ -d "$target/qemu/qmp" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$target"
# Sources of packages in a private directory: the machine's own lists stay as they are.
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  [ -f "$file" ] && sed -n 's/^deb /deb-src /p' "$file" >> "$work/all.list"
done
for file in /etc/apt/sources.list.d/*.sources; do
  [ -f "$file" ] && { sed 's/^Types:.*$/Types: deb-src/' "$file"; echo; } >> "$work/all.sources"
done
list=$work/all.list
[ -s "$work/all.sources" ] && list=$work/all.sources
private=(-o "Dir::Etc::sourcelist=$list" -o Dir::Etc::sourceparts=- -o "Dir::State::Lists=$work/lists" -o APT::Sandbox::User=root -qq)
for try in 1 2 3; do
  apt-get "${private[@]}" update < /dev/null &&
    (cd "$work" && apt-get "${private[@]}" source --download-only qemu < /dev/null) && break
  [ "$try" -lt 3 ] || { echo 'setup: cannot fetch the source package of QEMU' >&2; exit 1; }
  sleep $((try * 3))
done
tar -xJf "$work"/qemu_*.orig.tar.xz -C "$target" --wildcards '*/python/qemu/qmp/*' --strip-components=2
