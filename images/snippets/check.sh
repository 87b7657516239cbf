#!/usr/bin/env bash
# Tries each snippet with the tool that it is for, in throw-away copies of Debian trees that have these tools, so that
# nothing is installed on this machine. One line for each check; the exit status is the number of those that failed.
#
#   images/snippets/check.sh [NAME ...]     all, or: shell domain cloud-init mkosi packer virt-customize container
#
# Needs root, and once some 500 MB of downloads; `make bundle` and `make image-debian` come first.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
guest=$target/guest
trees=$target/snippets
bundle=$guest/ballast-guest.tar

fail() {
    printf 'check: %s\n' "$*" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || fail "changing roots needs root"
[ -s "$bundle" ] || fail "there is no $bundle: run \`make bundle\`"
[ -s "$guest/debian-base.tar" ] || fail "there is no $guest/debian-base.tar: run \`make image-debian\`"
mkdir -p "$trees"
work=$(mktemp -d "$trees/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# Tree $1 of suite $2 with the packages that follow, made once.
tree() {
    local name=$1 suite=$2
    shift 2
    [ "$(cat "$trees/$name.packages" 2>/dev/null)" != "$*" ] || return 0
    echo "==> building a tree of $suite with $*"
    rm -rf "${trees:?}/$name"
    mmdebstrap --mode=root --variant=minbase "--include=$(tr ' ' , <<<"$*")" --skip=output/dev \
        '--aptopt=Apt::Install-Recommends "false"' --keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
        "$suite" "$trees/$name" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$trees/$name.log" 2>&1 || {
        tail -n 5 "$trees/$name.log" >&2
        return 1
    }
    echo "$*" >"$trees/$name.packages"
}

# Runs the script on standard input in a throw-away copy of a tree, with namespaces and a /dev of its own. The source is
# in /src, read-only; the work folder in /work; the bundle is /work/ballast-guest.tar; this machine's Rust in /rust.
inside() {
    local name=$1 layer
    layer=$(mktemp -d "$work/layer.XXXXXX")
    mkdir "$layer"/{upper,work,root}
    cp "$bundle" "$work/ballast-guest.tar"
    cat >"$layer/script"
    unshare --mount --uts --pid --ipc --fork --kill-child=KILL bash -euc '
        layer=$1 tree=$2 source=$3 work=$4 rust=$5 root=$1/root
        # A folder of its own for the upper layer: overlayfs refuses some file systems.
        mount -t tmpfs layer "$layer/work"
        mkdir "$layer/work"/{upper,work}
        mount -t overlay -o "lowerdir=$tree,upperdir=$layer/work/upper,workdir=$layer/work/work" overlay "$root"
        mount -t proc proc "$root/proc"
        mount -t sysfs -o ro sysfs "$root/sys"
        mount -t tmpfs dev "$root/dev"
        for d in null zero full random urandom tty; do : >"$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
        mkdir "$root/dev/pts" "$root/dev/shm"
        ln -s /proc/self/fd "$root/dev/fd"
        mkdir -p "$root/src" "$root/work"
        mount --bind -o ro "$source" "$root/src"
        mount --bind "$work" "$root/work"
        if [ -n "$rust" ]; then mkdir "$root/rust"; mount --bind -o ro "$rust" "$root/rust"; fi
        [ ! -e /etc/resolv.conf ] || cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
        cp "$layer/script" "$root/script"
        # What a snippet loads into its guest is not to be loaded into this kernel, nor started by a systemd that is not there.
        export SYSTEMD_OFFLINE=1
        exec chroot "$root" setpriv --bounding-set=-sys_module bash -eu -o pipefail /script </dev/null
    ' bash "$layer" "$trees/$name" "$root" "$work" "$(rustc --print sysroot 2>/dev/null || true)"
}

failed=0
# Reports check $1, done by function $2; what it said is shown when it failed.
report() {
    local name=$1 log=$work/log status
    # Not as a condition: the shell would go on after errors in it.
    set +e
    (set -e; "$2") >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" = 0 ]; then
        printf 'ok       %s\n' "$name"
    else
        failed=$((failed + 1))
        printf 'FAILED   %s\n' "$name"
        tail -n 25 "$log" | sed 's/^/         | /'
    fi
}

shell_scripts() {
    tree tools bookworm "${tools[@]}"
    inside tools <<'SCRIPT'
cd /src/images
shellcheck --severity=warning ./*.sh debian/*.sh workload/*.sh snippets/*.sh snippets/*/*.sh
SCRIPT
}

domain() {
    tree tools bookworm "${tools[@]}"
    inside tools <<'SCRIPT'
virt-xml-validate /src/host-agent/packaging/domain.xml domain
SCRIPT
}

cloud_init_schema() {
    tree tools bookworm "${tools[@]}"
    inside tools <<'SCRIPT'
cloud-init schema --config-file /src/images/snippets/cloud-init/user-data
SCRIPT
}

# The real cloud-init, all its stages, on the modules that the snippet uses.
cloud_init_run() {
    tree tools bookworm "${tools[@]}"
    inside tools <<'SCRIPT'
seed=/var/lib/cloud/seed/nocloud
mkdir -p $seed
cat >/etc/cloud/cloud.cfg.d/99-check.cfg <<'CFG'
datasource_list: [NoCloud]
network: {config: disabled}
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
CFG
boot() { # with checksum $1
    rm -rf /var/lib/cloud/instances /var/lib/cloud/instance /var/lib/cloud/sem /run/cloud-init /run/install-ballast-guest
    echo "instance-id: $1" >$seed/meta-data
    sed -e 's,url=.*,url=file:///work/ballast-guest.tar,' -e "s,sha256=.*,sha256=$1," \
        /src/images/snippets/cloud-init/user-data >$seed/user-data
    cloud-init init --local && cloud-init init && cloud-init modules --mode=config && cloud-init modules --mode=final
}
if boot "$(printf 0%.0s {1..64})"; then
    echo 'a wrong checksum is accepted'
    exit 1
fi
[ ! -e /usr/bin/ballast-guest ] || { echo 'the archive with the wrong checksum was unpacked'; exit 1; }
# Without a systemd, systemctl answers that it is ignored, and succeeds; modprobe fails, which the snippet allows.
boot "$(sha256sum /work/ballast-guest.tar | cut -d ' ' -f 1)"
systemctl is-enabled ballast-guest
ballast-guest --version
SCRIPT
}

mkosi_14() {
    tree tools bookworm "${tools[@]}"
    inside tools <<'SCRIPT'
cp -r /src/images/snippets/mkosi /tmp/mkosi && cd /tmp/mkosi && cp /work/ballast-guest.tar .
# As the README says for this version.
sed -i -e '/^Bootable=yes$/d' -e 's/^Format=.*/Format=gpt_ext4\nBootable=yes/' mkosi.conf
mkosi summary >summary 2>&1 || { cat summary; exit 1; }
grep -E 'Packages|Extra Trees|linux-image' summary
grep -q 'Extra Trees:.*ballast-guest.tar' summary
grep -q 'linux-image-cloud-amd64' summary
SCRIPT
}

mkosi_25() {
    tree mkosi trixie mkosi
    inside mkosi <<'SCRIPT'
cp -r /src/images/snippets/mkosi /tmp/mkosi && cd /tmp/mkosi && cp /work/ballast-guest.tar .
mkosi summary >summary 2>&1 || { cat summary; exit 1; }
grep -E 'Packages|Extra Trees|linux-image' summary
grep -q 'Extra Trees:.*ballast-guest.tar' summary
grep -q 'linux-image-cloud-amd64' summary
SCRIPT
}

packer_validate() {
    tree tools bookworm "${tools[@]}"
    inside tools <<'SCRIPT'
cp -r /src/images/snippets/packer /tmp/packer && cd /tmp/packer && cp /work/ballast-guest.tar .
# As the README says: plugins.pkr.hcl is for versions that this is older than.
rm plugins.pkr.hcl
ssh-keygen -q -t ed25519 -N '' -f packer-key
HOME=/tmp CHECKPOINT_DISABLE=1 packer validate -var image_checksum=none .
SCRIPT
}

virt_customize() {
    tree tools bookworm "${tools[@]}"
    mkdir "$work/debian"
    tar --extract --numeric-owner --file "$guest/debian-base.tar" --directory "$work/debian"
    mke2fs -q -t ext4 -d "$work/debian" "$work/image" 1500M
    inside tools <<'SCRIPT'
export LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg HOME=/tmp
/src/images/snippets/virt-customize/install.sh /work/image /work/ballast-guest.tar
SCRIPT
    debugfs -R 'dump /usr/bin/ballast-guest '"$work/agent" "$work/image"
    tar --extract --to-stdout --file "$bundle" usr/bin/ballast-guest | cmp - "$work/agent"
    debugfs -R 'stat /etc/systemd/system/sysinit.target.wants/ballast-guest.service' "$work/image" |
        grep -q '/usr/lib/systemd/system/ballast-guest.service'
}

# The Dockerfile by buildah, its two base images replaced: Debian is the base of our own image, and to compile it gets a
# compiler from Debian's packages and this machine's Rust.
container() {
    tree tools bookworm "${tools[@]}"
    cp "$guest/debian-base.tar" "$work/debian-base.tar"
    # Whom this machine trusts: crates.io may be reached through somebody else's certificate.
    cp -L /etc/ssl/certs/ca-certificates.crt "$work/trusted.crt"
    inside tools <<'SCRIPT'
export BUILDAH_ISOLATION=chroot HOME=/tmp
buildah() { command buildah --root /work/containers --runroot /run/containers --storage-driver overlay "$@"; }
image() { # $1: its name, from $2, by the script $3
    local c
    c=$(buildah from "$2")
    [ "$2" != scratch ] || buildah add --quiet "$c" /work/debian-base.tar /
    [ -z "${3:-}" ] || buildah run "$c" -- sh -euc "$3"
    buildah config --env PATH=/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin --entrypoint '[]' "$c"
    buildah commit --quiet --rm "$c" "$1"
}
image localhost/debian scratch
image localhost/rust localhost/debian 'apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev'
cd /src
for name in bundle guest; do
    buildah bud --pull-never --volume /rust:/rust:ro \
        --volume /work/trusted.crt:/etc/ssl/certs/ca-certificates.crt:ro --file images/snippets/container/Dockerfile --target "$name" \
        --ignorefile images/snippets/container/Dockerfile.dockerignore --layers --tag "localhost/$name" \
        --build-arg RUST=localhost/rust --build-arg BASE=localhost/debian .
done
for name in bundle guest; do
    tree=$(buildah mount "$(buildah from --pull-never "localhost/$name")")
    systemctl --root="$tree" is-enabled ballast-guest
    "$tree/usr/bin/ballast-guest" --version
done
SCRIPT
}

tools=(
    cloud-init mkosi packer guestfs-tools linux-image-cloud-amd64 buildah libvirt-clients libxml2-utils shellcheck
    openssh-client systemd systemd-sysv
)
for name in "${@:-all}"; do
    case $name in
        all | shell) report 'shell: shellcheck' shell_scripts ;;&
        all | domain) report 'domain.xml: virt-xml-validate' domain ;;&
        all | cloud-init)
            report 'cloud-init: schema' cloud_init_schema
            report 'cloud-init: run, and a wrong checksum refused' cloud_init_run
            ;;&
        all | mkosi)
            report 'mkosi 14: summary' mkosi_14
            report 'mkosi 25: summary' mkosi_25
            ;;&
        all | packer) report 'packer 1.6: validate' packer_validate ;;&
        all | virt-customize) report 'virt-customize: run' virt_customize ;;&
        all | container) report 'Dockerfile: built by buildah' container ;;&
        all | shell | domain | cloud-init | mkosi | packer | virt-customize | container) ;;
        *) fail "there is no check \`$name\`" ;;
    esac
done
exit "$failed"
