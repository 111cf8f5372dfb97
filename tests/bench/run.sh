#!/bin/sh
# run.sh [build folder]: every benchmark, one line a case, peers in the same run where they are installed.
# Nothing here is a test: numbers of a busy machine mean little, and the last line says how busy it was.
set -eu
cd "$(dirname "$0")/../.."
build=$(realpath "${1:-build}")
cmake --build "$build" --target bench >"$build/bench.log" 2>&1 || { cat "$build/bench.log"; exit 1; }
export LUA_PATH="$PWD/lua/?.lua;$PWD/lua/?/init.lua;$build/lua/?.lua;;" LUA_CPATH="$build/lib/?.so;;"
export OMP_WAIT_POLICY=passive MASCON_BUILD_DIR="$build"

# PyTorch may belong to the system's Python while another stands first in PATH.
python=
for candidate in python3 /usr/bin/python3; do
    if "$candidate" -c 'import torch' 2>/dev/null; then
        python=$candidate
        break
    fi
done
torch() { # FILE
    if [ -n "$python" ]; then
        "$python" "tests/bench/$1"
    else
        echo "${1%_torch.py} torch: peer not installed (apt-get install python3-torch)"
    fi
}

echo "$(uname -sm), $(nproc) cores,$(sed -n 's/^model name[^:]*:/ /p;' /proc/cpuinfo | head -n 1), $(date +%F)"
luajit tests/bench/small_ops.lua
torch small_ops_torch.py
luajit tests/bench/temporaries.lua
luajit tests/bench/train.lua
torch train_torch.py
luajit tests/bench/checkpoint.lua "${TMPDIR:-/tmp}" 256 4400 # 4096 44000 is the full run
"$build/bench/bench_bytes" 0.5 "${TMPDIR:-/tmp}"
if [ -x "$build/bench/bench_grouped" ]; then
    "$build/bench/bench_grouped" | sed 's/^/grouped /'
else
    echo 'grouped: peer not installed (oneDNN: apt-get install libdnnl-dev)'
fi
echo "load of the last minute: $(cut -d' ' -f1 /proc/loadavg)"
