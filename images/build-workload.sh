#!/usr/bin/env bash
# The disks of real workloads for test guests: `workload.ext4`, a Debian userland with servers and loaders, read-only;
# and `workload-data.ext4`, their data and room to write, on which every machine's writes vanish with it. Guests still
# boot from the small initramfs and mount these afterwards. Built once: again only when the recipe has changed.
#
# No loop device, no root mount but mmdebstrap's own, in a namespace that ends with it. No qemu-utils.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$(dirname "$here")/target}
guest=$target/guest
# A mirror of the distribution, where its own servers cannot be reached.
mirror=${MIRROR:-}

# What the works of tests/src/lab/work.rs call; ecj only builds the Java one and is removed again.
packages=(
    redis-server redis-tools nginx-light wrk postgresql gcc libc6-dev sysbench stress-ng iperf3 openjdk-17-jre-headless ecj
)
# Room for what works write, and for a swap file.
free_mib=900

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'build-workload: %s\n' "$*" >&2
    exit 1
}

# shellcheck disable=SC1091
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC1091
components=$(. /etc/os-release && [ "$ID" = ubuntu ] && echo main,universe || echo main)

recipe=$({
    cat "$0" "$here"/workload/*
    echo "$codename"
} | sha256sum | cut -d ' ' -f 1)
is_built() {
    [ -s "$guest/workload.ext4" ] && [ -s "$guest/workload-data.ext4" ] &&
        [ "$(cat "$guest/workload.recipe" 2>/dev/null)" = "$recipe" ]
}
! is_built || exit 0

if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "building a Debian tree needs root: run \`make workload\` as root, or install sudo"
    exec sudo env CARGO_TARGET_DIR="$target" MIRROR="$mirror" PATH="$PATH" "$0"
fi
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: run \`make setup\`"
mkdir -p "$guest"
# Two builds at once would only wait for the same network.
exec 9>"$guest/workload.lock"
flock 9
! is_built || exit 0

# Kept beside the result: /tmp may be too small. What a killed build left is older than the lock.
rm -rf "$guest"/workload.new.*
work=$(mktemp -d "$guest/workload.new.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

begin=$SECONDS
say "workload image: installing ${#packages[@]} packages of $codename into a tree (1 to 3 minutes, some 250 MB to download)"
options=(
    --mode=root --variant=apt "--components=$components" "--include=$(IFS=,; echo "${packages[*]}")"
    '--aptopt=Apt::Install-Recommends "false"' '--aptopt=Acquire::Retries "3"'
    --dpkgopt=path-exclude=/usr/share/{doc,man,info,locale,i18n}/'*'
    # A cluster of our own comes later, on the other disk.
    '--essential-hook=mkdir -p "$1/etc/postgresql-common" && echo create_main_cluster = false >"$1/etc/postgresql-common/createcluster.conf"'
    "--customize-hook=cp -r '$here/workload' \"\$1/build\""
    '--customize-hook=chroot "$1" sh /build/inside.sh'
    '--customize-hook=rm -r "$1/build"'
)
proxy=$(apt-config dump --format '%v%n' Acquire::http::Proxy)
[ -z "$proxy" ] || options+=("--aptopt=Acquire::http::Proxy \"$proxy\"")
mmdebstrap "${options[@]}" "$codename" "$work/tree" ${mirror:+"$mirror"} >"$guest/workload.log" 2>&1 || {
    tail -n 15 "$guest/workload.log" | cut -c 1-300 >&2
    fail "the tree could not be built, see $guest/workload.log. When a package could not be fetched: put this machine
on line, or name a mirror that it reaches (make workload MIRROR=http://mirror/debian); then run \`make workload\` again"
}

say "workload image: packing two file systems"
mv "$work/tree/data" "$work/data"
rm -rf "$work/tree/var/lib/apt/lists" "$work/tree/var/cache"
# Where the guest mounts what must be there, and what it must be able to write.
mkdir -p "$work/tree"/{data,proc,sys,dev,tmp,run,var/cache}

# Packs folder $1 into the file system $2 with label $3 and $4 MiB to spare.
pack() {
    local used
    used=$(du -sm --apparent-size "$1" | cut -f 1)
    # A twentieth for what ext4 itself needs; the journal only where something is written.
    /sbin/mke2fs -q -t ext4 -L "$3" -m 0 -E root_owner=0:0 "${@:5}" -d "$1" "$2" "$((used + used / 10 + 48 + $4))M" >/dev/null ||
        fail "mke2fs cannot pack $1"
}
pack "$work/tree" "$work/root.ext4" w-root 0 -O '^has_journal'
pack "$work/data" "$work/data.ext4" w-data "$free_mib"

rm -f "$guest/workload.recipe"
mv "$work/root.ext4" "$guest/workload.ext4"
mv "$work/data.ext4" "$guest/workload-data.ext4"
echo "$recipe" >"$guest/workload.recipe"
say "workload image: $(du -m "$guest/workload.ext4" | cut -f 1) + $(du -m "$guest/workload-data.ext4" | cut -f 1) MB, built in $((SECONDS - begin)) s"
