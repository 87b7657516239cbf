#!/usr/bin/env bash
# Installs, upgrades, removes and purges the packages of `make deb` in a clean Debian tree: files and modes, enabled units,
# a changed configuration that survives, nothing left at the end. The units are verified and judged by systemd-analyze,
# and the daemon runs once, with the libraries that its package depends on and no others.
#
# The tree is built once (mmdebstrap: debootstrap by apt) and unpacked for every run, so that each is the first. It has
# what the packages depend on and nothing more. Tests run in namespaces that end with them, without a network.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

here=$(cd "$(dirname "$0")" && pwd)
target=${CARGO_TARGET_DIR:-$(dirname "$here")/target}
guest=$target/guest
debs=$target/debian
mirror=${MIRROR:-}
# What `systemd-analyze security` of systemd 252 (Debian 12) says, times ten, as in the README. Less is better.
judge=252
declare -A most=([ballast-host]=22 [ballast-guest]=18)

say() { printf '==> %s\n' "$*"; }
fail() {
    printf 'test-deb: %s\n' "$*" >&2
    exit 1
}

if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "a Debian tree needs root: run \`make test-deb\` as root, or install sudo"
    exec sudo env CARGO_TARGET_DIR="$target" MIRROR="$mirror" PATH="$PATH" "$0"
fi
host_deb=$(echo "$debs"/ballast-host_*.deb)
guest_deb=$(echo "$debs"/ballast-guest_*.deb)
[ -f "$host_deb" ] && [ -f "$guest_deb" ] || fail "there are no packages in $debs: run \`make deb\`"

# --- the clean tree, with a network -----------------------------------------------------------------------------------

build_tree() {
    local codename components depends recipe proxy
    # shellcheck disable=SC1091
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC1091
    components=$(. /etc/os-release && [ "$ID" = ubuntu ] && echo main,universe || echo main)
    # The first choice of each, without versions.
    depends=$(for deb in "$host_deb" "$guest_deb"; do dpkg-deb --field "$deb" Depends; done |
        tr , '\n' | sed 's/|.*//; s/(.*//; s/ //g' | grep . | sort -u | paste -sd ,)
    recipe="2 $codename $depends"
    exec 9>"$guest/deb-tree.lock"
    flock 9
    if [ "$(cat "$guest/deb-tree.recipe" 2>/dev/null)" != "$recipe" ]; then
        say "a clean tree of $codename with $depends (half a minute)"
        # As for the Debian image: kept beside the result, as /tmp may be too small or forbid what a tree needs, and
        # without devices, so that it can be unpacked where none can be made.
        rm -rf "$guest"/deb-tree.new.*
        local new
        new=$(mktemp -d "$guest/deb-tree.new.XXXXXX")
        chmod 755 "$new"
        local options=(--mode=root --variant=minbase --skip=output/dev "--components=$components" "--include=$depends"
            '--aptopt=Apt::Install-Recommends "false"' '--aptopt=Acquire::Retries "3"')
        proxy=$(apt-config dump --format '%v%n' Acquire::http::Proxy)
        [ -z "$proxy" ] || options+=("--aptopt=Acquire::http::Proxy \"$proxy\"")
        rm -f "$guest/deb-tree.recipe"
        TMPDIR=$new mmdebstrap "${options[@]}" "$codename" "$new/tree.tar" ${mirror:+"$mirror"} >"$guest/deb-tree.log" 2>&1 || {
            tail -n 30 "$guest/deb-tree.log" | cut -c 1-300 >&2
            fail "the tree could not be built, see $guest/deb-tree.log. When a package could not be fetched: put this
machine on line, or name a mirror that it reaches (make test-deb MIRROR=http://mirror/debian); then run it again"
        }
        mv "$new/tree.tar" "$guest/deb-tree.tar"
        rm -r "$new"
        echo "$recipe" >"$guest/deb-tree.recipe"
    fi
    exec 9>&-
}

if [ "${1:-}" != inside ]; then
    mkdir -p "$guest"
    build_tree
    # A network of its own keeps what the daemon listens on off this machine.
    exec unshare --mount --pid --fork --kill-child --net -- "$0" inside
fi

# --- the tests, without one -------------------------------------------------------------------------------------------

begin=$SECONDS
work=$(mktemp -d "$guest/deb-test.XXXXXX")
root=$work/root
trap 'umount "$root/proc" "$root/dev" 2>/dev/null; rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT TERM
mkdir "$root"
tar -xf "$guest/deb-tree.tar" -C "$root" --numeric-owner
mount -t proc proc "$root/proc"
mkdir -p "$root/dev"
mount --bind /dev "$root/dev"

inside() { chroot "$root" "$@"; }
# As unattended-upgrades does: what the operator has changed stays.
install() {
    cp "$@" "$root/tmp/"
    inside dpkg --install --force-confdef --force-confold "${@/#*\///tmp/}" >"$work/dpkg.log" 2>&1 || {
        cat "$work/dpkg.log" >&2
        fail "dpkg --install ${*##*/} fails"
    }
    rm "$root"/tmp/*.deb
}
# Every file with its mode and owner, but the package manager's own and what systemctl notes.
files() {
    find "$root" -xdev \( -path "$root/proc" -o -path "$root/tmp" -o -path "$root/run/systemd" -o -path "$root/var/lib/dpkg" -o -path "$root/var/cache" \
        -o -path "$root/var/log" \) -prune -o -printf '%M %u:%g /%P\n' | sort
}
is() { # what, wanted, found
    [ "$2" = "$3" ] || fail "$1: \`$3\`, not \`$2\`"
}
has() { inside grep -q -- "$1" "$2" || fail "$2 does not say \`$1\`"; }
enabled() { inside systemctl is-enabled "$1" 2>/dev/null || true; }
# Package $1 as a later version of it: another configuration comes with it.
later() {
    local tree=$work/later
    rm -rf "$tree"
    dpkg-deb --raw-extract "$1" "$tree"
    sed -i 's/^Version: .*/Version: 99.0-1/' "$tree/DEBIAN/control"
    [ ! -d "$tree/etc" ] || echo '# news of 99' >>"$tree/etc/ballast/host.toml"
    # The sums that dpkg --verify looks at.
    (cd "$tree" && find . -path ./DEBIAN -prune -o -type f -printf '%P\n' | sort | xargs md5sum >DEBIAN/md5sums)
    dpkg-deb --build --root-owner-group -Znone "$tree" "$work/$2_99.deb" >/dev/null
}
later "$host_deb" host
later "$guest_deb" guest

files >"$work/before"
say "install"
install "$host_deb" "$guest_deb"
files >"$work/installed"
# Folders and what others share are left out; so is what enabling adds, which comes below.
expected='-rw-r--r-- /etc/ballast/host.toml
-rw-r--r-- /usr/lib/modules-load.d/ballast-guest.conf
-rw-r--r-- /usr/lib/modules-load.d/ballast-host.conf
-rw-r--r-- /usr/lib/systemd/system/ballast-guest.service
-rw-r--r-- /usr/lib/systemd/system/ballast-host.service
-rw-r--r-- /usr/lib/sysusers.d/ballast-host.conf
-rw-r--r-- /usr/share/bash-completion/completions/ballast-guest
-rw-r--r-- /usr/share/bash-completion/completions/ballast-host
-rw-r--r-- /usr/share/doc/ballast-guest/examples/guest.toml
-rw-r--r-- /usr/share/doc/ballast-host/examples/domain.xml
-rw-r--r-- /usr/share/doc/ballast-host/examples/host.toml
-rw-r--r-- /usr/share/fish/vendor_completions.d/ballast-guest.fish
-rw-r--r-- /usr/share/fish/vendor_completions.d/ballast-host.fish
-rw-r--r-- /usr/share/man/man8/ballast-guest.8.gz
-rw-r--r-- /usr/share/man/man8/ballast-guest-need.8.gz
-rw-r--r-- /usr/share/man/man8/ballast-host.8.gz
-rw-r--r-- /usr/share/man/man8/ballast-host-explain.8.gz
-rw-r--r-- /usr/share/man/man8/ballast-host-status.8.gz
-rw-r--r-- /usr/share/zsh/vendor-completions/_ballast-guest
-rw-r--r-- /usr/share/zsh/vendor-completions/_ballast-host
-rwxr-xr-x /usr/bin/ballast-guest
-rwxr-xr-x /usr/bin/ballast-host'
while read -r mode path; do
    grep -qF -- "$mode root:root $path" "$work/installed" || fail "installing brings no $path with mode $mode, root's"
done <<<"$expected"
# The other way round: what is installed is what belongs to a package.
comm -13 "$work/before" "$work/installed" | grep -- '^-' | awk '{ print $3 }' |
    grep -v -e '^/etc/group-\?$' -e '^/etc/gshadow-\?$' -e ^/etc/.pwd.lock -e '^/var/lib/systemd/deb-systemd-helper-enabled/' |
    while read -r path; do
        inside dpkg --search "$path" >/dev/null 2>&1 || fail "installing leaves $path, which belongs to no package"
    done
is "the service on the host" enabled "$(enabled ballast-host)"
is "the service in the guest" enabled "$(enabled ballast-guest)"
inside getent group ballast >/dev/null || fail "there is no group ballast"
is "what differs from the packages" "" "$(inside dpkg --verify ballast-host ballast-guest)"
gzip -dc "$root/usr/share/man/man8/ballast-host.8.gz" | grep -q '^\.SH FILES' || fail "the man page has no FILES"
for program in ballast-host ballast-guest; do
    inside bash -n "/usr/share/bash-completion/completions/$program" || fail "bash cannot read $program's completions"
done

say "units"
# No --man: the tree has no man.
complaints=$(inside systemd-analyze verify --man=no ballast-host.service ballast-guest.service 2>&1) || true
is "systemd-analyze verify" "" "$complaints"
version=$(inside systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')
for unit in ballast-host ballast-guest; do
    inside systemd-analyze security --no-pager --offline=true --threshold="${most[$unit]}" "$unit.service" >"$work/security" 2>&1 &&
        good=yes || good=
    score=$(tail -n 1 "$work/security")
    say "  ${score##*level for }"
    [ "$version" != "$judge" ] || [ -n "$good" ] ||
        fail "$unit.service is more exposed than the ${most[$unit]} tenths it had: $(cat "$work/security")"
done

say "run"
inside ballast-host run --check >"$work/check" || fail "the configuration as installed is refused"
sed -e 's/^\[libvirt\]/[[vm]]\nname = "none"\nqmp = "\/tmp\/run\/none.qmp"/' \
    -e 's/^\[daemon\]/&\nstate-dir = "\/tmp\/run"\ncontrol-socket = "\/tmp\/run\/control.sock"\nvsock = false/' "$root/etc/ballast/host.toml" >"$root/tmp/host.toml"
mkdir "$root/tmp/run"
# Not by `inside`: the process to be ended is the daemon, with no shell before it.
chroot "$root" ballast-host run --config /tmp/host.toml 2>"$work/daemon.log" &
daemon=$!
for _ in $(seq 100); do
    [ ! -S "$root/tmp/run/control.sock" ] || break
    sleep 0.1
done
inside ballast-host status --json --config /tmp/host.toml >"$work/status" ||
    { cat "$work/daemon.log" >&2 && fail "the daemon does not answer"; }
grep -q '"name": "none"' "$work/status" || fail "the daemon does not wait for its VM: $(cat "$work/status")"
kill -TERM "$daemon"
wait "$daemon" || fail "the daemon ends with an error: $(cat "$work/daemon.log")"
rm -r "$root/tmp/run" "$root/tmp/host.toml"
inside ballast-guest once >/dev/null || fail "the guest agent does not run"

# The packages in a machine of their own, because a tree has no systemd that runs. The tree is its initramfs.
boot() {
    local extra=$work/extra accel
    [ -s "$guest/initramfs.cpio" ] || fail "there is no kernel to boot: run \`make image\`"
    mkdir -p "$extra"/m "$extra"/etc/ballast "$extra"/etc/systemd/system/{multi-user.target.wants,ballast-host.service.d,ballast-guest.service.d}
    (cd "$extra/m" && cpio --extract --quiet --make-directories 'lib/modules/*' <"$guest/initramfs.cpio" && mv lib/modules/* . && rm -r lib)
    cp "$(command -v busybox)" "$here/deb/inside.sh" "$work/host_99.deb" "$extra/m/"
    cp "$here/deb/init" "$extra/init"
    echo 0123456789abcdef0123456789abcdef >"$extra/etc/machine-id"
    echo 'cid = 1' >"$extra/etc/ballast/guest.toml"
    sed 's/^\[libvirt\]/[[vm]]\nname = "itself"\nqmp = "\/run\/none.qmp"\ncid = 1/' "$root/etc/ballast/host.toml" >"$extra/etc/ballast/host.toml"
    for unit in ballast-host ballast-guest; do
        printf '[Service]\nWatchdogSec=4s\n' >"$extra/etc/systemd/system/$unit.service.d/soon.conf"
    done
    printf '[Service]\nType=idle\nExecStart=/bin/sh /m/inside.sh\nStandardOutput=tty\nStandardError=tty\nTTYPath=/dev/ttyS0\n' \
        >"$extra/etc/systemd/system/inside.service"
    ln -s ../inside.service "$extra/etc/systemd/system/multi-user.target.wants/"
    chmod 755 "$extra/init"
    pack "$root" >"$work/initrd"
    pack "$extra" >>"$work/initrd"
    accel=$(awk '{ print $NF }' "$guest/accel" 2>/dev/null || true)
    timeout 600 qemu-system-x86_64 -nodefaults -no-user-config -display none -accel "${accel:-tcg}" -m 1280 -smp 2 -no-reboot \
        -kernel "$guest/vmlinuz" -initrd "$work/initrd" -serial "file:$work/console" -device virtio-balloon-pci,deflate-on-oom=on \
        -append "console=ttyS0 quiet panic=-1 systemd.show_status=0 systemd.mask=serial-getty@ttyS0.service" </dev/null ||
        fail "the machine does not end: $(tail -n 40 "$work/console")"
    grep -a 'in the machine:' "$work/console" | tr -d '\r' | sed 's/^test-deb: in the machine:/   /'
    grep -aq 'in the machine: all well' "$work/console" || fail "$(tail -n 120 "$work/console")"
}
pack() { (cd "$1" && find . -xdev -path ./proc/\* -prune -o -print0 | cpio --quiet --null --create --format=newc); }
say "boot"
boot

say "upgrade"
echo '# ours' >>"$root/etc/ballast/host.toml"
chmod 640 "$root/etc/ballast/host.toml"
sha=$(sha256sum <"$root/etc/ballast/host.toml")
inside systemctl disable ballast-guest >/dev/null 2>&1
install "$work/host_99.deb" "$work/guest_99.deb"
is "the version" 99.0-1 "$(inside dpkg-query -W -f '${Version}' ballast-host)"
is "the changed configuration" "$sha" "$(sha256sum <"$root/etc/ballast/host.toml")"
is "its mode" 640 "$(stat -c %a "$root/etc/ballast/host.toml")"
has 'news of 99' /etc/ballast/host.toml.dpkg-dist
is "the service that was enabled" enabled "$(enabled ballast-host)"
is "the service that the operator disabled" disabled "$(enabled ballast-guest)"

say "remove"
inside dpkg --remove ballast-host ballast-guest >"$work/dpkg.log" 2>&1 || fail "dpkg --remove fails: $(cat "$work/dpkg.log")"
[ ! -e "$root/usr/bin/ballast-host" ] && [ ! -e "$root/usr/bin/ballast-guest" ] || fail "a removed binary is there"
is "the configuration after removing" "$sha" "$(sha256sum <"$root/etc/ballast/host.toml")"
install "$work/host_99.deb"
is "the configuration after installing again" "$sha" "$(sha256sum <"$root/etc/ballast/host.toml")"
is "the service after installing again" enabled "$(enabled ballast-host)"

say "purge"
# What a daemon that ran would have left.
mkdir -p "$root/var/lib/ballast" "$root/run/ballast"
echo '{}' >"$root/var/lib/ballast/journal"
inside dpkg --purge ballast-host ballast-guest >"$work/dpkg.log" 2>&1 || fail "dpkg --purge fails: $(cat "$work/dpkg.log")"
files >"$work/after"
# Backups that every change of a group makes; folders of systemd's that any first service makes.
left=$(comm -13 "$work/before" "$work/after" | grep -v -e ' /etc/group-$' -e ' /etc/gshadow-$' -e ' /etc/.pwd.lock$' \
    -e '^d.* /var/lib/systemd/deb-systemd-helper-\(enabled\|masked\)\(/.*\)\?$' -e '^d.* /etc/systemd/system/[a-z-]*\.target\.wants$' || true)
is "what purging leaves" "" "$left"
is "what purging takes from others" "" "$(comm -23 "$work/before" "$work/after")"
! inside getent group ballast >/dev/null || fail "the group ballast is still there"

say "an untouched configuration gets what is new"
install "$host_deb"
install "$work/host_99.deb"
has 'news of 99' /etc/ballast/host.toml
[ ! -e "$root/etc/ballast/host.toml.dpkg-dist" ] || fail "an untouched configuration was kept"

say "packages: all well, $((SECONDS - begin)) s"
