#!/bin/sh
# Bakes Ballast's guest agent into a disk image that is not in use: install.sh IMAGE [ballast-guest.tar]
# Nothing runs in the guest, so the image may be of any distribution with systemd. See README.md beside this file.
#
# Newer versions of virt-customize have `--tar-in`, which would be all; Debian 12's does not.
set -eu
image=${1:?"usage: install.sh IMAGE [ballast-guest.tar]"}
bundle=${2:-ballast-guest.tar}
[ -r "$bundle" ] || {
    echo "install.sh: there is no $bundle: \`make bundle\` in Ballast's source makes target/guest/ballast-guest.tar" >&2
    exit 1
}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
tar --extract --file "$bundle" --directory "$tree"

set -- --add "$image" --no-network
for file in $(cd "$tree" && find . -type f -o -type l); do
    file=${file#.}
    set -- "$@" --mkdir "${file%/*}"
    if [ -h "$tree$file" ]; then
        set -- "$@" --link "$(readlink "$tree$file"):$file"
    else
        # By upload, which leaves root the owner whoever runs this.
        set -- "$@" --upload "$tree$file:$file" --chmod "0$(stat -c %a "$tree$file"):$file"
    fi
done
virt-customize "$@"
