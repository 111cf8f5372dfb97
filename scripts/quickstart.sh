#!/usr/bin/env bash
# From an empty clone to a trained mixture-of-experts language model in under 5 minutes on two cores:
# installs what is missing, builds, trains on the King James text to half time with one parameter per
# expert, saves, and goes on from that file in a new process with all experts in one parameter.
#
#   scripts/quickstart.sh      everything lands in runs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

case "${1-}" in
    '') ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) printf 'quickstart.sh: unknown option %s; it takes none\n' "$1" >&2; exit 2 ;;
esac

run=runs/quickstart
step() { printf '\n== %s\n' "$*"; }

# An earlier run is kept once, never mixed with this one.
if [ -e "$run" ]; then
    rm -rf "$run.previous"
    mv "$run" "$run.previous"
    say "the earlier $run is now $run.previous"
fi

step "1. packages"
run scripts/setup.sh
say "all there"

step "2. build (output in build/build.log)"
build build -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF
say "$(scripts/mascon version) is built"

step "3. train to half time, one parameter per expert, and save"
run scripts/mascon scripts/examples/kjv_moe.lua --run "$run" --layout per_expert --stop-at half

step "4. a new process reads that file into one parameter for all experts and trains to the end"
run scripts/mascon scripts/examples/kjv_moe.lua --run "$run" --layout single --resume

bpb=$(sed -n 's/.*"kind":"eval".*"val_bpb":\([0-9.]*\).*/\1/p' "$run/log.jsonl" | tail -n 1)
[ -n "$bpb" ] || fail "$run/log.jsonl holds no evaluation"
step "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
cat <<END
validation   ${bpb:0:6} bits per byte over the last 10 % of the text (the best n-gram model of it: 2.31)
checkpoints  $(find "$run" -name '*.h5' | sort | tr '\n' ' ')
log          $run/log.jsonl, a JSON object a line
the script   scripts/examples/kjv_moe.lua
END
