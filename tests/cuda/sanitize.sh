#!/usr/bin/env bash
# compute-sanitizer over the specs that compare a GPU's kernels with the CPU's, on a machine with a GPU.
#
#   tests/cuda/sanitize.sh [memcheck|racecheck|initcheck|synccheck] [spec names ...]    default: memcheck, all
#
# MASCON_BUILD_DIR names the build (default: build). LuaJIT's own compiler is off: under the sanitizer its code ends the
# process.
set -euo pipefail
cd "$(dirname "$0")/../.."
tool=${1-memcheck}
[ $# -eq 0 ] || shift
if [ $# -eq 0 ]; then
    for spec in tests/spec/device_*_spec.lua; do
        name=$(basename "$spec" _spec.lua)
        case $name in device_checkpoint | device_graph | device_memory) ;; *) set -- "$@" "$name" ;; esac
    done
    set -- "$@" moe grouped_linear
fi
command -v compute-sanitizer >/dev/null || { echo "sanitize: compute-sanitizer of the CUDA toolkit is missing" >&2; exit 2; }
fault=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for name in "$@"; do
    status=0
    MASCON_TEST_DEVICE=cuda compute-sanitizer --tool "$tool" --error-exitcode 9 \
        luajit -joff "$(command -v busted)" --ignore-lua "tests/spec/${name}_spec.lua" >"$log" 2>&1 || status=$?
    printf '%-20s %s %s\n' "$name" "$([ $status -eq 0 ] && echo clean || echo "FAILED ($status)")" \
        "$(grep -h 'SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')"
    [ $status -eq 0 ] || { fault=1; grep -v 'Host Frame' "$log" | head -n 40; }
done
exit $fault
