#!/usr/bin/env bash
# Everything that a guest needs of Ballast, as one archive to be unpacked at / of an image by whatever builds it: mkosi,
# Docker, virt-customize, Packer, cloud-init. Unpacked is installed and enabled; no command has to run in the image.
#
# Files only, no folders: unpacking it changes neither owner nor mode of what is there already. Reproducible, and
# written only when it changed.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
guest=$target/guest
agent=${1:-$target/x86_64-unknown-linux-gnu/guest/ballast-guest}
packaging=$root/guest-agent/packaging

[ -x "$agent" ] || {
    printf 'bundle: there is no %s: run `make bundle`\n' "$agent" >&2
    exit 1
}
mkdir -p "$guest"
tree=$(mktemp -d "$guest/bundle.XXXXXX")
trap 'rm -rf "$tree" "$tree.tar"' EXIT

install -D -m 755 "$agent" "$tree/usr/bin/ballast-guest"
install -D -m 644 "$packaging/ballast-guest.service" -t "$tree/usr/lib/systemd/system"
install -D -m 644 "$packaging/ballast-guest.modules-load.conf" "$tree/usr/lib/modules-load.d/ballast-guest.conf"
# For builders that apply presets at the end (mkosi, Fedora's and SUSE's first boot): there, what no preset names is off.
install -d "$tree/usr/lib/systemd/system-preset"
echo 'enable ballast-guest.service' >"$tree/usr/lib/systemd/system-preset/80-ballast-guest.preset"
# What `systemctl enable` does.
install -d "$tree/etc/systemd/system/sysinit.target.wants"
ln -s /usr/lib/systemd/system/ballast-guest.service "$tree/etc/systemd/system/sysinit.target.wants/"

(cd "$tree" && find . -type f -o -type l | sed 's,^\./,,' | sort |
    tar --create --file "$tree.tar" --format=gnu --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        --no-recursion --files-from=-)
cmp -s "$tree.tar" "$guest/ballast-guest.tar" || mv "$tree.tar" "$guest/ballast-guest.tar"
(cd "$guest" && sha256sum ballast-guest.tar >ballast-guest.tar.sha256)
