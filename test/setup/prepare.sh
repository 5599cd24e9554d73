#!/usr/bin/env bash
# Makes a fresh machine (Debian 12, Node 20, npm) ready to build, demonstrate and test vdiskfs: Debian packages that are
# missing, npm packages, the build. Does nothing, and says nothing, when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf 'setup: %s\n' "$*"; }

missing_packages() {
  local package rest
  while read -r package rest; do
    case "$package" in '' | '#'*) continue ;; esac
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
  done < test/setup/packages.txt
}

install_packages() {
  local packages=$1 try
  export DEBIAN_FRONTEND=noninteractive
  for try in 1 2 3; do
    # The list of packages may be missing or old on a new machine: it is fetched before the first try.
    apt-get update -qq < /dev/null || say "apt-get update failed (try $try)"
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $packages < /dev/null > /dev/null && return 0
    say "apt-get install failed (try $try)"
    sleep $((try * 5))
  done
  return 1
}

if ! command -v dpkg-query > /dev/null; then
  say "this is no Debian: install yourself what test/setup/packages.txt lists"
else
  missing=$(missing_packages)
  if [ -n "$missing" ]; then
    if [ "$(id -u)" -ne 0 ]; then
      say "these Debian packages are missing; install them as root, then run this again:"
      say "  apt-get install --no-install-recommends $missing"
      exit 1
    fi
    say "installing Debian packages: $missing"
    install_packages "$missing"
  fi
fi

# The kernel that the boot test's guest runs: downloaded, never installed.
kernel_directory=.cache/packages
if command -v apt-get > /dev/null && ! compgen -G "$kernel_directory/linux-image-*_amd64.deb" > /dev/null; then
  mkdir -p "$kernel_directory"
  for try in 1 2 3; do
    kernel=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/^ *Depends: *\(linux-image-.*\)$/\1/p' | head -n 1)
    if [ -n "$kernel" ]; then
      say "downloading the kernel of the boot test's guest: $kernel"
      (cd "$kernel_directory" && apt-get download -qq -o APT::Sandbox::User=root "$kernel" < /dev/null) && break
    fi
    [ "$try" -lt 3 ] || { say "cannot download a kernel: the boot test needs linux-image-cloud-amd64"; exit 1; }
    # The list of packages may be missing or older than the archive.
    if [ "$(id -u)" -eq 0 ]; then apt-get update -qq < /dev/null || true; fi
    sleep $((try * 3))
  done
fi

if command -v apt-get > /dev/null; then bash test/setup/qemu-client.sh; fi

if [ ! -f node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
  say "installing npm packages"
  for try in 1 2 3; do
    npm ci --no-audit --no-fund --loglevel=error < /dev/null && break
    [ "$try" -lt 3 ] || exit 1
    sleep $((try * 5))
  done
  touch node_modules/.package-lock.json
fi

npm run --silent build
