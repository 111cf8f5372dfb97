#!/usr/bin/env bash
# Installs what is missing, builds and runs every test through CTest.
#
#   scripts/test.sh              build/, warnings are errors
#   scripts/test.sh --sanitize   build-sanitize/, under AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/test.sh --cuda       every spec on the GPU, too; where there is none they count as skipped
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

dir=build
options=(-DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=ON -DMASCON_WERROR=ON)
cuda=OFF
while [ $# -gt 0 ]; do
    case $1 in
        --sanitize)
            dir=build-sanitize
            options+=(-DMASCON_SANITIZE=ON)
            ;;
        --cuda) cuda=ON ;;
        -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) printf 'test.sh: unknown option %s; wanted --sanitize or --cuda\n' "$1" >&2; exit 2 ;;
    esac
    shift
done

run scripts/setup.sh --test
say "building in $dir"
build "$dir" "${options[@]}" -DMASCON_CUDA=AUTO -DMASCON_TEST_CUDA=$cuda
exec ctest --test-dir "$dir" --output-on-failure --no-tests=error --parallel "$(nproc)"
