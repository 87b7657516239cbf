#!/usr/bin/env bash
# The guest that tests boot: busybox, the modules a virtual machine needs, the guest agent, and `ballast-testd`, which
# takes commands from the harness on the second serial line. Built in well under a second, written only when it
# changed, and never compressed: unpacking is what costs time under emulation.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
guest=$target/guest
binaries=$target/x86_64-unknown-linux-gnu/guest
image=$guest/initramfs.cpio

# Without the first group there is no test; the second only widens what tests can try.
needed=(virtio_pci virtio_balloon virtio_blk vmw_vsock_virtio_transport vsock_loopback)
wanted=(virtio_net virtio_console zram lzo-rle)

fail() {
    printf 'build-initramfs: %s\n' "$*" >&2
    exit 1
}
[ -d "$guest/modules" ] || fail "there is no guest kernel in $guest: run \`make setup\`"
for binary in ballast-guest ballast-testd; do
    [ -x "$binaries/$binary" ] || fail "there is no $binaries/$binary: run \`make image\`"
done

tree=$(mktemp -d "$guest/tree.XXXXXX")
trap 'rm -rf "$tree" "$tree.cpio"' EXIT
mkdir -p "$tree"/{bin,data,dev,disk,lib/modules,proc,root,run,sys,tmp,w}

cp "$(command -v busybox)" "$tree/bin/busybox"
for applet in $(busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
done
cp "$binaries/ballast-guest" "$binaries/ballast-testd" "$tree/bin/"

# Module names use - and _ interchangeably, files do not.
module_file() {
    find "$guest/modules" -name "${1//[-_]/[-_]}.ko*" -print -quit
}

# Unpacks module $1 and what it depends on into the image, and appends them in load order to `modules`.
loaded=' '
add_module() {
    local name=${1//-/_} file depends dependency
    [[ $loaded != *" $name "* ]] || return 0
    loaded+="$name "
    file=$(module_file "$1")
    # Not a file: built into this kernel, or not part of it.
    [ -n "$file" ] || return 1
    local copy=$tree/lib/modules/$name.ko
    case $file in
        *.ko) cp "$file" "$copy" ;;
        *.ko.zst) zstd -qdc "$file" >"$copy" ;;
        *.ko.xz) xz -dc "$file" >"$copy" ;;
        *) fail "unknown compression: $file" ;;
    esac
    depends=$(tr '\0' '\n' <"$copy" | sed -n 's/^depends=//p' | tr ',' ' ')
    for dependency in $depends; do
        add_module "$dependency" || fail "$name depends on $dependency, which $guest/modules lacks"
    done
    echo "$name" >>"$tree/lib/modules/order"
}
for module in "${needed[@]}"; do
    add_module "$module" || grep -q "/${module//[-_]/[-_]}\.ko" "$guest/modules/modules.builtin" ||
        fail "the guest kernel has no module $module"
done
for module in "${wanted[@]}"; do
    add_module "$module" || true
done

install -m 755 "$root/images/init" "$tree/init"

# Packs folder $1 into image $2, unless that is what it holds already: machines are cloned from one boot of an image.
pack() {
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -mindepth 1 -print0 | sort -z |
        cpio --quiet --null --create --reproducible --format=newc --owner=0:0) >"$tree.cpio"
    cmp -s "$tree.cpio" "$2" || mv "$tree.cpio" "$2"
}
pack "$tree" "$image"

# iperf3 and its libraries for machines on a network, 8 MiB. Apart, because a guest's memory holds its image: the kernel
# unpacks archives that follow each other into one tree.
if iperf3=$(command -v iperf3); then
    rm -rf "${tree:?}"/*
    install -D "$iperf3" "$tree/bin/iperf3"
    ldd "$iperf3" | grep -o '/[^ ]*' | while read -r library; do
        install -D "$library" "$tree$library"
    done
    pack "$tree" "$guest/iperf3.cpio"
    cat "$image" "$guest/iperf3.cpio" >"$tree.cpio"
    cmp -s "$tree.cpio" "$guest/initramfs-net.cpio" || mv "$tree.cpio" "$guest/initramfs-net.cpio"
fi

# The host agent too, for the tests of AF_VSOCK inside one guest, apart for the same reason.
if [ -x "$binaries/ballast-host" ]; then
    rm -rf "${tree:?}"/*
    install -D "$binaries/ballast-host" "$tree/bin/ballast-host"
    pack "$tree" "$guest/host-agent.cpio"
    cat "$image" "$guest/host-agent.cpio" >"$tree.cpio"
    cmp -s "$tree.cpio" "$guest/initramfs-host.cpio" || mv "$tree.cpio" "$guest/initramfs-host.cpio"
fi
