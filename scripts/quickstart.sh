#!/usr/bin/env bash
# From an empty clone to a trained mixture-of-experts language model in under 5 minutes on two cores:
# installs what is missing, builds, trains on the King James text to half time with one parameter per
# expert, saves, and goes on from that file in a new process with all experts in one parameter.
# With a GPU and nvcc it trains the larger model of scripts/examples/moe_lm.lua there, in two halves, too.
#
#   scripts/quickstart.sh      everything lands in runs/quickstart
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

case "${1-}" in
    '') ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
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

# The CUDA plugin takes minutes to compile: only where there is a GPU.
cuda=OFF
if [ -e /dev/nvidiactl ] || nvidia-smi -L >/dev/null 2>&1; then
    cuda=AUTO
    say "there is a GPU"
fi

step "2. build (output in build/build.log)"
build build -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF -DMASCON_CUDA=$cuda
say "$(scripts/mascon version) is built"

where=cpu
if [ $cuda = AUTO ]; then
    why=$(scripts/mascon - <<'END'
local ok, why = pcall(require("mascon").set_default_device, "cuda")
io.write(ok and "" or tostring(why):gsub("^%S+:%d+: ", ""))
END
    )
    if [ -z "$why" ]; then where=cuda; else say "going on without the GPU: $why"; fi
fi

if [ $where = cuda ]; then
    # The dictionary of the package dict-gcide where it is, 40 MB; else the King James text, which has a tenth of that
    # and is sooner known by heart.
    text=/usr/share/dictd/gcide.dict.dz
    options=(--minutes 4 --stop-after 2)
    if [ ! -f $text ]; then
        text=$(scripts/mascon - <<<'print(require("mascon").data.kjv())')
        options=(--minutes 1 --stop-after 0.5 --dropout 0.4)
    fi
    step "3. learn $text on the GPU to half time, and save"
    run scripts/mascon scripts/examples/moe_lm.lua --run "$run" --model small --data "$text" "${options[@]}"

    step "4. a new process reads that file and trains to the end"
    run scripts/mascon scripts/examples/moe_lm.lua --run "$run" --resume
    measured="the last 5 % of the text"
    script=scripts/examples/moe_lm.lua
else
    step "3. train to half time, one parameter per expert, and save"
    run scripts/mascon scripts/examples/kjv_moe.lua --run "$run" --layout per_expert --stop-at half

    step "4. a new process reads that file into one parameter for all experts and trains to the end"
    run scripts/mascon scripts/examples/kjv_moe.lua --run "$run" --layout single --resume
    measured="the last 10 % of the text (the best n-gram model of it: 2.31)"
    script=scripts/examples/kjv_moe.lua
fi

bpb=$(sed -n 's/.*"kind":"eval".*"val_bpb":\([0-9.]*\).*/\1/p' "$run/log.jsonl" | tail -n 1)
[ -n "$bpb" ] || fail "$run/log.jsonl holds no evaluation"
step "done in $((SECONDS / 60)) min $((SECONDS % 60)) s"
cat <<END
validation   ${bpb:0:6} bits per byte over $measured
checkpoints  $(find "$run/ckpt" -name '*.h5' | sort | tr '\n' ' ')
log          $run/log.jsonl, a JSON object a line
the script   $script
END
