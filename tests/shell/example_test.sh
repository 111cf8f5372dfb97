#!/usr/bin/env bash
# The quickstart's script: a run that stops at half time and goes on in the other layout writes the lines of one that
# did not stop, in a folder with a space; its log has the promised keys; wrong options are usage errors.
set -euo pipefail
example=$PWD/scripts/examples/kjv_moe.lua mascon=$PWD/scripts/mascon
command -v bible >/dev/null || { echo "the text is missing: apt-get install bible-kjv" && exit 77; }
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
export XDG_CACHE_HOME="$here/a cache"
mkdir "$here/a folder"
cd "$here/a folder"

fail() {
    echo "example: $*" >&2
    exit 1
}
train() { "$mascon" "$example" --batch 2 --seed 3 --run "$@" >>out.log 2>&1 || fail "$* failed: $(cat out.log)"; }
# What must not depend on when and how fast: times are taken out.
lines() { sed -E '/"kind":"(step|moe|eval)"/!d; s/"(t|tokens_per_s)":[^,}]*//g' "$1/log.jsonl"; }

train whole --steps 50
train halves --steps 50 --stop-at half
train halves --resume --layout single
[ "$(lines whole | wc -l)" = 52 ] || fail "wanted 50 steps, a line of the experts and an evaluation: $(lines whole)"
diff <(lines whole) <(lines halves) || fail "the resumed run went another way"

has() { grep -m 1 "\"kind\":\"$1\"" whole/log.jsonl | grep -q "\"$2\":" || fail "no $2 in a line of kind $1"; }
for key in t step tokens loss lm_loss grad_norm lr tokens_per_s; do has step "$key"; done
for key in load dead_expert_frac router_entropy cv utilisation; do has moe "moe/${key}[a-z_]*"; done
for key in aux_loss z_loss; do has moe "$key"; done
has eval val_bpb
has ckpt path
[ "$(cat halves/ckpt/latest)" = step_0000050.h5 ] || fail "latest is $(cat halves/ckpt/latest)"
if grep -q $'[\033\r]' out.log; then fail "control characters away from a terminal"; fi

for wrong in "--steps abc" "--batch 0" "--stop-at 1.5" "--layout both" "--resume --run nothing" "--stpes 3" more; do
    status=0
    # shellcheck disable=SC2086 # the words are options
    "$mascon" "$example" $wrong >wrong.log 2>&1 || status=$?
    [ $status = 2 ] || fail "$wrong: status $status, wanted 2: $(cat wrong.log)"
    if grep -q traceback wrong.log; then fail "$wrong: $(cat wrong.log)"; fi
done
echo "stopped, resumed and evaluated as if in one run"
