#!/usr/bin/env bash
# Packs what `make deb` has built: man pages and completions first, then target/debian/ballast-{host,guest}_*.deb.
# It compiles nothing but the example that writes the guest agent's pages.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
triple=x86_64-unknown-linux-gnu

# Beside each binary, where cargo-deb looks for what was built.
host=$target/release
guest=$target/$triple/guest
rm -rf "$host/packaging" "$guest/packaging"
cargo build --quiet -p ballast-guest --example generate
for what in man completions; do
    "$host/ballast-host" generate "$what" "$host/packaging/$what"
    "$target/debug/examples/generate" "$what" "$guest/packaging/$what"
done
gzip --best --no-name "$host"/packaging/man/* "$guest"/packaging/man/*

rm -rf "$target/debian"
mkdir -p "$target/debian"
pack() {
    "$target/tools/bin/cargo-deb" --no-build --quiet --output "$target/debian/" "$@"
}
pack -p ballast-host
# Built for its own target, so that it is static; stripped already.
pack -p ballast-guest --target "$triple" --profile guest --no-strip
(cd "$target/debian" && ls -l ./*.deb | awk '{ printf "    %s, %.1f MiB\n", substr($9, 3), $5 / 1048576 }')
