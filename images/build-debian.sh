#!/usr/bin/env bash
# A Debian 12 with systemd and the agent in it that boots by itself: debian.qcow2, for people to start from and for one
# end-to-end test. In two steps, each made again only when its recipe has changed:
#
#   debian-base.tar   mmdebstrap: packages, kernel, boot loader         a minute and some 90 MB of downloads
#   debian.qcow2      base + ballast-guest.tar -> mke2fs -d -> qcow2    seconds; again with each new agent
#
# No loop device, no root mount but mmdebstrap's own, in a namespace that ends with it. GRUB is put where
# grub-install would put it, by dd: boot.img as it comes expects core.img in the sector behind it, and core.img, as it
# comes, expects its own rest in the next.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$(dirname "$here")/target}
guest=$target/guest
suite=bookworm
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
# A mirror of Debian, where its own servers cannot be reached. MIRROR is one of the distribution that builds.
# shellcheck disable=SC1091
mirror=${DEBIAN_MIRROR:-$(. /etc/os-release && [ "$ID" = debian ] && echo "${MIRROR:-}")} || mirror=
# What a guest can use at most; the file grows with what it does use.
disk_mib=4096
label=ballast-root

packages=(
    systemd systemd-sysv systemd-resolved udev dbus kmod e2fsprogs iproute2 ca-certificates
    linux-image-cloud-amd64 initramfs-tools zstd
    # Commands, clean shutdown and passwords from the host, without network or secrets in the image.
    qemu-guest-agent
    # Gone again once they have made the boot loader: inside.sh.
    grub-pc-bin grub-common
)

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'build-debian: %s\n' "$*" >&2
    exit 1
}

[ -s "$guest/ballast-guest.tar" ] || fail "there is no $guest/ballast-guest.tar: run \`make image-debian\`"
base_recipe=$(cat "$0" "$here"/debian/* | sha256sum | cut -d ' ' -f 1)
recipe=$({
    echo "$base_recipe"
    sha256sum <"$guest/ballast-guest.tar"
} | sha256sum | cut -d ' ' -f 1)
is_made() { [ -s "$guest/$1" ] && [ "$(cat "$guest/$1.recipe" 2>/dev/null)" = "$2" ]; }
! is_made debian.qcow2 "$recipe" || exit 0

if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "building a Debian tree needs root: run \`make image-debian\` as root, or install sudo"
    exec sudo env CARGO_TARGET_DIR="$target" DEBIAN_MIRROR="$mirror" PATH="$PATH" "$0"
fi
PATH=$PATH:/usr/sbin:/sbin
for program in mmdebstrap sfdisk qemu-img mke2fs; do
    command -v "$program" >/dev/null || fail "$program is missing: run \`make setup\`"
done
# Two builds at once would only wait for the same network.
exec 9>"$guest/debian.lock"
flock 9
! is_made debian.qcow2 "$recipe" || exit 0

# Kept beside the result: /tmp may be too small. What a killed build left is older than the lock.
rm -rf "$guest"/debian.new.*
work=$(mktemp -d "$guest/debian.new.XXXXXX")
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Puts $1 of the work folder where it belongs, made by recipe $2.
keep() {
    rm -f "$guest/$1.recipe"
    mv "$work/$1" "$guest/$1"
    echo "$2" >"$guest/$1.recipe"
    # For whoever called sudo.
    [ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-0}" "$guest/$1" "$guest/$1.recipe"
}

build_base() {
    local options proxy
    options=(
        --mode=root --variant=minbase "--include=$(IFS=,; echo "${packages[*]}")" --skip=output/dev
        '--aptopt=Apt::Install-Recommends "false"' '--aptopt=Acquire::Retries "3"'
        --dpkgopt=path-exclude=/usr/share/{doc,man,info,locale}/'*'
        --dpkgopt=path-include=/usr/share/doc/'*'/copyright
        # The image has no swap to resume from, and waiting for one takes time.
        '--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" && echo RESUME=none >"$1/etc/initramfs-tools/conf.d/resume"'
        "--customize-hook=copy-in '$here/debian/inside.sh' /"
        '--customize-hook=chroot "$1" sh /inside.sh && rm "$1/inside.sh"'
    )
    [ ! -e "$keyring" ] || options+=("--keyring=$keyring")
    proxy=$(apt-config dump --format '%v%n' Acquire::http::Proxy)
    [ -z "$proxy" ] || options+=("--aptopt=Acquire::http::Proxy \"$proxy\"")
    TMPDIR=$work mmdebstrap "${options[@]}" "$suite" "$work/debian-base.tar" ${mirror:+"$mirror"} >"$guest/debian.log" 2>&1 || {
        tail -n 15 "$guest/debian.log" | cut -c 1-300 >&2
        fail "the tree could not be built, see $guest/debian.log. When a package could not be fetched: put this machine
on line, or name a mirror that it reaches (make image-debian DEBIAN_MIRROR=http://mirror/debian); then run it again"
    }
    keep debian-base.tar "$base_recipe"
}

# What is this machine's, or one build's, and not the image's; and what every copy must find out for itself.
make_general() {
    local tree=$1
    rm -rf "$tree"/etc/apt/apt.conf.d/99mmdebstrap "$tree"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$tree"/var/log/{apt,*.log} \
        "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/* "$tree"/var/lib/systemd/random-seed
    cat >"$tree/etc/apt/sources.list" <<SOURCES
deb http://deb.debian.org/debian $suite main
deb http://deb.debian.org/debian $suite-updates main
deb http://security.debian.org/debian-security $suite-security main
SOURCES
    # Where the kernel's device file system goes; the base has none, so that it can be unpacked where devices cannot be made.
    mkdir -p "$tree/dev"
    # Empty: systemd makes one at the first boot, and does not take that boot for an installation with questions to ask.
    : >"$tree/etc/machine-id"
    rm -f "$tree/var/lib/dbus/machine-id"
    echo debian >"$tree/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n' >"$tree/etc/hosts"
    ln -sfn ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
    echo 'LANG=C.UTF-8' >"$tree/etc/default/locale"
    echo "LABEL=$label / ext4 errors=remount-ro 0 1" >"$tree/etc/fstab"
    install -D -m 644 "$here/debian/80-dhcp.network" -t "$tree/etc/systemd/network"
    install -m 644 "$here/debian/grub.cfg" -t "$tree/boot/grub"
}

# An image that anybody may copy: no secret in it, nobody can log in, the agent starts, a kernel is there.
check() {
    local tree=$1 open
    open=$(cut -d : -f 1,2 "$tree/etc/shadow" | grep -v ':[!*]' || true)
    [ -z "$open" ] || fail "accounts that are not locked: $open"
    [ ! -s "$tree/etc/machine-id" ] || fail "the image has a machine-id"
    if compgen -G "$tree/etc/ssh/ssh_host_*" >/dev/null || [ -e "$tree/root/.ssh/authorized_keys" ] ||
        grep -rqi 'proxy' "$tree/etc/apt/apt.conf.d"; then
        fail "the image has SSH keys or this machine's proxy in it"
    fi
    systemctl --root="$tree" --quiet is-enabled ballast-guest || fail "the agent is not enabled"
    local name
    for name in vmlinuz initrd.img; do
        [ -s "$tree/$(readlink "$tree/$name")" ] || fail "there is no /$name in the image"
    done
}

pack() {
    local tree=$work/tree core
    mkdir "$tree"
    tar --extract --numeric-owner --xattrs --xattrs-include='*' --file "$guest/debian-base.tar" --directory "$tree"
    tar --extract --no-same-owner --file "$guest/ballast-guest.tar" --directory "$tree"
    make_general "$tree"
    check "$tree"
    # Only what GRUB 2.06 can read, whatever this machine's mke2fs makes by default.
    mke2fs -q -t ext4 -L "$label" -m 1 -E root_owner=0:0 -d "$tree" \
        -O none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum \
        "$work/root.ext4" "$((disk_mib - 1))M" >/dev/null || fail "mke2fs cannot pack the tree"

    core=$tree/boot/grub/i386-pc/core.img
    # Between the first sector and the first partition, at 1 MiB.
    [ "$(stat -c %s "$core")" -lt $((2047 * 512)) ] || fail "GRUB's core.img does not fit before the partition"
    truncate -s "${disk_mib}M" "$work/disk"
    echo 'start=2048, type=83, bootable' | sfdisk --quiet --label dos "$work/disk"
    # The partition table begins at byte 446, the disk's signature at 440.
    dd status=none conv=notrunc bs=440 count=1 if="${core%core.img}boot.img" of="$work/disk"
    dd status=none conv=notrunc bs=512 seek=1 if="$core" of="$work/disk"
    dd status=none conv=notrunc,sparse bs=1M seek=1 if="$work/root.ext4" of="$work/disk"
    qemu-img convert -q -c -f raw -O qcow2 "$work/disk" "$work/debian.qcow2"
    keep debian.qcow2 "$recipe"
}

begin=$SECONDS
if ! is_made debian-base.tar "$base_recipe"; then
    say "Debian image: installing ${#packages[@]} packages of $suite and what they need into a tree (1 to 3 minutes)"
    build_base
fi
say "Debian image: packing it with the agent"
pack
say "Debian image: $guest/debian.qcow2, $(du -m "$guest/debian.qcow2" | cut -f 1) MB, built in $((SECONDS - begin)) s"
