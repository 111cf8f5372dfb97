#!/usr/bin/env bash
# Which example scripts/quickstart.sh trains: in a tree with stand-ins for setup.sh, mascon, cmake and nvidia-smi.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT

fail() {
    echo "quickstart: $*" >&2
    exit 1
}
equal() { [ "$1" = "$2" ] || fail "got '$1', wanted '$2'"; }
contains() { case $1 in *"$2"*) ;; *) fail "'$2' is not in '$1'" ;; esac }

mkdir "$here/bin" "$here/scripts"
cp scripts/quickstart.sh scripts/common.sh "$here/scripts"
stand_in() {
    printf '#!/bin/bash\nhere=%s\n' "$here" >"$here/$1"
    cat >>"$here/$1"
    chmod +x "$here/$1"
}
stand_in scripts/setup.sh <<'END'
END
stand_in bin/cmake <<'END'
[ "$1" = --build ] || echo "$*" >"$here/cmake"
END
stand_in bin/nvidia-smi <<'END'
[ -f "$here/gpu" ]
END
# On standard input comes a question: where the text is, or why there is no GPU.
stand_in scripts/mascon <<'END'
case $1 in
    version) echo mascon 0 ;;
    -) if grep -q kjv; then echo "$here/kjv.txt"; elif [ ! -f "$here/driver" ]; then echo -n "no driver"; fi ;;
    *)
        echo "$*" >>"$here/trained"
        mkdir -p runs/quickstart/ckpt
        echo '{"kind":"eval","step":2,"val_bpb":1.23456789,"bytes":3}' >>runs/quickstart/log.jsonl
        touch runs/quickstart/ckpt/step_0000002.h5
        ;;
esac
END
quickstart() {
    rm -f "$here/trained" "$here/cmake"
    PATH=$here/bin:$PATH bash "$here/scripts/quickstart.sh"
}

kjv="scripts/examples/kjv_moe.lua --run runs/quickstart --layout"
if [ ! -e /dev/nvidiactl ]; then
    text=$(quickstart)
    equal "$(cat "$here/trained")" "$kjv per_expert --stop-at half
$kjv single --resume"
    contains "$(cat "$here/cmake")" "-DMASCON_CUDA=OFF"
    contains "$text" "1.2345 bits per byte over the last 10 % of the text (the best n-gram model of it: 2.31)"
    contains "$text" "checkpoints  runs/quickstart/ckpt/step_0000002.h5"
fi

# A GPU that cannot be used.
touch "$here/gpu"
text=$(quickstart)
contains "$(cat "$here/cmake")" "-DMASCON_CUDA=AUTO"
contains "$text" "going on without the GPU: no driver"
contains "$(cat "$here/trained")" "$kjv single --resume"

# One that can.
touch "$here/driver"
text=$(quickstart)
moe="scripts/examples/moe_lm.lua --run runs/quickstart"
contains "$(head -n 1 "$here/trained")" "$moe --model small --data "
[ -f /usr/share/dictd/gcide.dict.dz ] || contains "$(head -n 1 "$here/trained")" "$here/kjv.txt --minutes 1"
equal "$(tail -n 1 "$here/trained")" "$moe --resume"
contains "$text" "1.2345 bits per byte over the last 5 % of the text"
[ -d "$here/runs/quickstart.previous" ] || fail "the run before is gone"

# No number, no success.
sed -i 's/"eval"/"other"/' "$here/scripts/mascon"
if quickstart >/dev/null 2>&1; then fail "it succeeded without an evaluation"; fi
echo "with a GPU it trains there, without one as ever"
