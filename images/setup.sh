#!/usr/bin/env bash
# Everything `make demo`, `make test` and `make bench` need and a fresh Debian or Ubuntu lacks: system packages, a
# stock guest kernel, and a vsock device. Quick when all of it is there already; safe to run again at any time.
#
# With `deb` also what `make deb` needs: cargo-deb.
#
# The guest kernel is unpacked, never installed: the machine's own boot set-up is not touched.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
guest=$target/guest
tools=$target/tools
# Debian 12 has none.
cargo_deb=3.8.0

# Debian 12 and 13, Ubuntu 22.04 and 24.04 name them all the same.
packages=(
    qemu-system-x86 busybox-static cpio zstd xz-utils util-linux e2fsprogs   # real guests
    mmdebstrap                                                     # their workloads
    debian-archive-keyring fdisk                                   # the Debian image
    iproute2 iperf3 ca-certificates                                # networks, service levels, downloads
    gcc libc6-dev pkg-config libvirt-dev dpkg-dev                  # building, packaging
    libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
)

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo env LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
    else
        fail "\`$*\` needs root: run it yourself, or install sudo"
    fi
}

updated=
apt_update() {
    [ -z "$updated" ] || return 0
    say "apt-get update"
    as_root apt-get update -qq || fail "apt-get update failed: is this machine on line?"
    updated=yes
}

check_machine() {
    [ "$(uname -m)" = x86_64 ] || fail "guests are x86_64; this machine is $(uname -m)"
    command -v apt-get >/dev/null || fail "needs Debian or Ubuntu (apt-get); packages wanted: ${packages[*]}"
    command -v cargo >/dev/null || fail "there is no Rust toolchain (cargo): install it from https://rustup.rs, open a new shell, run this again"
    local minor
    minor=$(rustc --version | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p')
    [ "${minor:-0}" -ge 95 ] || fail "Rust 1.95 or newer is needed, this is $(rustc --version): run \`rustup update stable\`"
}

install_missing() {
    local missing=() package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    apt_update
    say "installing ${#missing[@]} packages: ${missing[*]}"
    as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$target/apt.log" 2>&1 ||
        fail "apt-get install failed, see $target/apt.log"
}

install_packages() {
    install_missing "${packages[@]}"
    # By its program, and after the others: where the emulator is a backported one, so is qemu-img, and the stock package
    # would conflict with it; where only qemu-img was backported, apt has just removed it for the stock emulator's sake.
    command -v qemu-img >/dev/null || install_missing qemu-utils
}

# The first dependency of package $1 whose name begins with $2.
depends_on() {
    apt-cache depends "$1" 2>/dev/null | sed -n "s/^ *Depends: \($2.*\)/\1/p" | head -n 1
}

# Debian has a kernel made for virtual machines; Ubuntu's comes in two packages.
kernel_packages() {
    local image
    image=$(depends_on linux-image-cloud-amd64 linux-image-)
    if [ -n "$image" ]; then
        echo "$image"
        return
    fi
    image=$(depends_on linux-image-virtual linux-image-)
    [ -z "$image" ] || echo "$image" "linux-modules-${image#linux-image-}"
}

unpack_kernel() {
    [ ! -s "$guest/kernel" ] || return 0
    local names
    names=$(kernel_packages)
    if [ -z "$names" ]; then
        apt_update
        names=$(kernel_packages)
    fi
    [ -n "$names" ] || fail "apt knows neither linux-image-cloud-amd64 (Debian) nor linux-image-virtual (Ubuntu)"
    say "fetching the guest kernel: $names"
    local work=$guest/kernel.new
    rm -rf "$work"
    mkdir -p "$work/root"
    # shellcheck disable=SC2086 # one or two names
    (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root $names) ||
        { apt_update && (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root $names); } ||
        fail "cannot download $names"
    local package
    for package in "$work"/*.deb; do
        dpkg -x "$package" "$work/root"
    done
    rm -rf "$guest/modules" "$guest/vmlinuz"
    mv "$work"/root/boot/vmlinuz-* "$guest/vmlinuz"
    # Newer packages have /usr/lib/modules.
    mv "$work"/root/lib/modules/* "$guest/modules" 2>/dev/null ||
        mv "$work"/root/usr/lib/modules/* "$guest/modules"
    chmod u+rw,a+r "$guest/vmlinuz"
    rm -rf "$work"
    echo "$names" >"$guest/kernel"
}

build_vsock_device() {
    [ ! -e /dev/vhost-vsock ] || return 0
    [ ! -x "$tools/bin/vhost-device-vsock" ] || return 0
    say "this machine has no /dev/vhost-vsock: building vhost-device-vsock 0.3.0 (a minute)"
    CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$tools" vhost-device-vsock --version 0.3.0 ||
        fail "vhost-device-vsock does not build; \`modprobe vhost_vsock\` would make it unnecessary"
    rm -rf "$tools/build"
}

# The test of the metrics wants a real Prometheus (19 MB). Unpacked, never installed: its package would start a server on
# every machine that runs the tests. Without it that test says SKIPPED.
unpack_prometheus() {
    [ ! -x "$tools/bin/promtool" ] || return 0
    ! { command -v prometheus && command -v promtool; } >/dev/null || return 0
    say "fetching prometheus"
    local work=$tools/prometheus.new
    rm -rf "$work"
    mkdir -p "$work/root" "$tools/bin"
    if (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root prometheus) ||
        { apt_update && (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root prometheus); }; then
        dpkg -x "$work"/prometheus_*.deb "$work/root"
        mv "$work/root/usr/bin/prometheus" "$work/root/usr/bin/promtool" "$tools/bin/"
    else
        say "apt has no prometheus: the test of the metrics against a real one is left out"
    fi
    rm -rf "$work"
}

build_cargo_deb() {
    [ "$("$tools/bin/cargo-deb" --version 2>/dev/null)" != "cargo-deb $cargo_deb" ] || return 0
    say "building cargo-deb $cargo_deb (a minute)"
    CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --root "$tools" cargo-deb --version "=$cargo_deb" ||
        fail "cargo-deb $cargo_deb does not build"
    rm -rf "$tools/build"
}

mkdir -p "$guest" "$tools"
check_machine
install_packages
unpack_kernel
unpack_prometheus
build_vsock_device
[ "${1:-}" != deb ] || build_cargo_deb
