#!/usr/bin/env bash
# mascon convert takes files as h5py writes them, compressed, chunked and big-endian, and h5py reads what it makes:
# the stored layout and, through views, the other one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mascon=$here/../../scripts/mascon
python=python3
"$python" -c 'import h5py, numpy' 2>/dev/null || python=/usr/bin/python3
if ! "$python" -c 'import h5py, numpy' 2>/dev/null; then
    echo 'python3 with h5py and numpy is missing: apt-get install python3-h5py python3-numpy'
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# element [expert, row, column] is expert * 10000 + row * 100 + column
cat >"$folder/make.py" <<'PYTHON'
import sys
import h5py
import numpy as np

G, N, K = 12, 30, 40
all_ = np.arange(G)[:, None, None] * 10000 + np.arange(N)[None, :, None] * 100 + np.arange(K)[None, None, :]
packing = dict(chunks=(7, 9), compression="gzip", shuffle=True, fletcher32=True)
with h5py.File(sys.argv[1] + "/many.h5", "w") as f:
    f.attrs["step"] = 5
    f.attrs["comment"] = "of variable length"
    for i in range(G):
        f.create_dataset(f"m/weight{i}", data=all_[i].astype(">f4"), **packing)
        f.create_dataset(f"m/bias{i}", data=all_[i, :, 0].astype("<f4"))
with h5py.File(sys.argv[1] + "/one.h5", "w", libver=("v110", "v110")) as f:
    f.create_dataset("m/weight", data=all_.astype("<f4"), chunks=(5, 7, 9), compression="gzip")
    f.create_dataset("m/bias", data=all_[:, :, 0].astype(">f4"), chunks=True, compression="gzip", compression_opts=9)
PYTHON
cat >"$folder/check.py" <<'PYTHON'
import sys
import h5py
import numpy as np

G, N, K = 12, 30, 40
all_ = np.arange(G)[:, None, None] * 10000 + np.arange(N)[None, :, None] * 100 + np.arange(K)[None, None, :]
with h5py.File(sys.argv[1]) as f:
    m = f["m"]
    assert m["weight"].dtype == "<f4" and m.attrs["num_gemms"] == G
    stored = m.attrs["weight_layout"]
    assert stored in (sys.argv[2], sys.argv[2].encode()), stored
    assert m["weight"].is_virtual == (sys.argv[2] == "per_expert")
    assert np.array_equal(m["weight"][...], all_)
    assert np.array_equal(m["bias"][...], all_[:, :, 0])
    for i in range(G):
        assert np.array_equal(m[f"weight{i}"][...], all_[i]), i
        assert np.array_equal(m[f"bias{i}"][...], all_[i, :, 0]), i
PYTHON
"$python" "$folder/make.py" "$folder"
for from in many one; do
    for layout in single per_expert; do
        new=$folder/${from}_$layout.h5
        "$mascon" convert "$folder/$from.h5" "$new" --layout $layout --views --round-trip | grep -q ' bytes identical$'
        "$python" "$folder/check.py" "$new" $layout
        "$mascon" verify "$new" | grep -q ': ok, '
        # and from there on as any file of ours
        for other in single per_expert; do
            "$mascon" convert "$new" "$folder/again.h5" --layout $other --views --force --quiet
            "$python" "$folder/check.py" "$folder/again.h5" $other
        done
    done
done

# a bomb is refused by the limit on decoded bytes, and leaves nothing
"$python" - "$folder" <<'PYTHON'
import sys
import h5py
import numpy as np

with h5py.File(sys.argv[1] + "/bomb.h5", "w") as f:
    for i in range(4):
        f.create_dataset(f"m/weight{i}", data=np.zeros((3000, 3000), "f4"), chunks=(500, 3000), compression="gzip")
PYTHON
status=0
"$mascon" convert "$folder/bomb.h5" "$folder/bomb_out.h5" --layout single 2>"$folder/err" || status=$?
[ "$status" -eq 3 ] || { cat "$folder/err"; exit 1; }
[ ! -e "$folder/bomb_out.h5" ]
echo 'ok'
