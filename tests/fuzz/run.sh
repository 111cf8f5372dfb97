#!/usr/bin/env bash
# Runs the fuzzers of the build in $MASCON_BUILD_DIR (default: build/), each from fresh seeds.
#
#   tests/fuzz/run.sh [SECONDS] [reply|open|talk|planner]...
#
# SECONDS is for each of them; 150 and all four by default. What a fuzzer finds is kept in the build's
# fuzz/findings/ and shown; status 1. Run by CTest for a few seconds with a fixed seed ($SEED).
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-150}
shift || true
[ $# -gt 0 ] || set -- reply open talk planner
build=${MASCON_BUILD_DIR:-build}
seed=${SEED:-20261122}

fail() {
    echo "fuzz: $*" >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
findings=$(realpath "$build")/fuzz/findings
mkdir -p "$findings"
export TMPDIR=$work FINDINGS=$findings

# What must not be: an allocation by a file's word, 10 seconds without an answer (of a listing and a read), a leak.
limits=(-timeout=10 -malloc_limit_mb=66 -rss_limit_mb=1024 -detect_leaks=1 -max_len=65536)

native() { # NAME LEAST
    local program log=$work/$1.log runs
    program=$(realpath "$build")/fuzz/fuzz_$1
    [ -x "$program" ] || fail "$program is not built"
    mkdir -p "$work/corpus-$1"
    "$program" "$work/corpus-$1" "$work/seeds/$1" "${limits[@]}" -seed="$seed" -max_total_time="$seconds" \
        -artifact_prefix="$findings/" -print_final_stats=1 >"$log" 2>&1 || {
        grep -v '^#\|^\s*NEW_FUNC\|^Recommended\|Uses:' "$log" | tail -n 60
        fail "$1: it found something; the input is in $findings, and as base64 above"
    }
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    [ "${runs:-0}" -ge "$2" ] || fail "$1: only ${runs:-0} inputs were tried, wanted $2: $(tail -n 5 "$log")"
    echo "$1: $runs inputs, nothing found; $(sed -n 's/.*\(cov: [0-9]*\).*/\1/p' "$log" | tail -n 1)"
}

for name; do
    case $name in
        reply | open | talk)
            [ -d "$work/seeds" ] || "$build/lib/mascon/fuzz_seeds" "$work/seeds" tests/golden/*.h5 ||
                fail "the seeds cannot be made"
            ;;&
        reply) native reply 1000 ;;
        open | talk) native "$name" 50 ;;
        planner) scripts/mascon tests/fuzz/planner.lua "$seconds" "$seed" ;;
        *) fail "unknown fuzzer $name; there are reply, open, talk and planner" ;;
    esac
done
