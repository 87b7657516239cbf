#!/usr/bin/env bash
# Runs every test of the workspace and ends with one line, `N passed, N failed, N skipped`, summed over all test binaries. A
# test that cannot run here says SKIPPED and why, and cargo counts it as passed: these words come again before that line. The
# exit status is cargo's: a test that does not compile fails although it is not counted.
set -uo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
log=$target/test.log

cargo test --workspace --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# A test's word may come in the middle of another one's line.
grep -ao 'SKIPPED: .*' "$log"
skipped=$(grep -ac 'SKIPPED: ' "$log")
# test result: ok. 7 passed; 0 failed; 1 ignored; ...
sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$log" |
    awk -v skipped="$skipped" '{ passed += $1; failed += $2 }
        END { printf "%d passed, %d failed, %d skipped\n", passed - skipped, failed, skipped }'
exit "$status"
