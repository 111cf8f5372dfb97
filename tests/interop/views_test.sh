#!/usr/bin/env bash
# Views in other people's hands: h5py and h5dump read true values under both names, copies and h5repack keep them, and
# what h5repack made loads in mascon as the same tables.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mascon=$here/../../scripts/mascon
python=python3
"$python" -c 'import h5py, numpy' 2>/dev/null || python=/usr/bin/python3
if ! "$python" -c 'import h5py, numpy' 2>/dev/null || ! command -v h5dump >/dev/null || ! command -v h5repack >/dev/null
then
    echo 'h5py, numpy, h5dump or h5repack is missing: apt-get install python3-h5py python3-numpy hdf5-tools'
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
    echo "views_test: $*" >&2
    exit 1
}

"$mascon" "$here/views.lua" write "$folder"
"$python" "$here/read_views.py" "$folder"/*.h5

# h5dump: the same values under both names, and the maps
group=/model/layers/0/experts
values() {
    h5dump -y -w 0 -d "$group/$2" "$1" | awk '/ DATA \{/ { on = !seen++; next } /\}/ { on = 0 } on' |
        tr ',\n' '  ' | xargs
}
for file in "$folder"/*.h5; do
    all=$(values "$file" weight)
    each=$(for g in 0 1 2 3 4 5 6 7 8 9 10 11; do values "$file" "weight$g"; done | xargs)
    [ -n "$all" ] && [ "$all" = "$each" ] || fail "$file: h5dump shows other values of weight and weight0 .."
done
for group in /bfloat16 /float16; do # a golden file: written by an older version
    for role in weight bias; do
        all=$(values "$here/../golden/v1_views.h5" $role)
        each=$(for g in 0 1 2 3 4 5 6 7 8 9 10 11; do values "$here/../golden/v1_views.h5" "$role$g"; done | xargs)
        [ -n "$all" ] && [ "$all" = "$each" ] || fail "v1_views.h5: h5dump shows other values of $group/$role and ${role}0 .."
    done
done
group=/model/layers/0/experts
h5dump -p -H -d $group/weight "$folder/bfloat16_per_expert.h5" >"$folder/dump"
[ "$(grep -c "^ *DATASET \"$group/weight[0-9]*\"\$" "$folder/dump")" -eq 12 ] || fail "h5dump -p shows other maps"
h5dump -p -H -d $group/weight7 "$folder/bfloat16_single.h5" >"$folder/dump"
grep -q "^ *DATASET \"$group/weight\"\$" "$folder/dump" || fail "no map of weight7"

# a copy under another name, in another folder, read from a third
mkdir "$folder/elsewhere"
cp "$folder/bfloat16_single.h5" "$folder/elsewhere/copy.h5"
cp "$folder/bfloat16_per_expert.h5" "$folder/elsewhere/other.h5"
mv "$folder/elsewhere/other.h5" "$folder/elsewhere/moved.h5"
(cd / && "$python" "$here/read_views.py" "$folder/elsewhere/copy.h5" "$folder/elsewhere/moved.h5")

# repacked files are foreign in their structure and ours in their content; -f makes the views real, and cannot handle
# empty datasets
h5repack "$folder/empty" "$folder/empty.repacked"
"$mascon" "$here/views.lua" same "$folder/empty" "$folder/empty.repacked" || fail "an empty tensor, repacked"
for file in "$folder"/*.h5; do
    h5repack "$file" "$folder/plain.repacked"
    h5repack -f GZIP=1 "$file" "$folder/gzip.repacked"
    for repacked in "$folder/plain.repacked" "$folder/gzip.repacked"; do
        "$mascon" "$here/views.lua" same "$file" "$repacked" || fail "$file changed by h5repack: $repacked"
        "$mascon" diff --exact-layout "$file" "$repacked" >"$folder/diff" || fail "diff: $(head -n 5 "$folder/diff")"
        "$mascon" verify "$repacked" >"$folder/verify" 2>&1 || fail "verify: $(head -n 5 "$folder/verify")"
    done
    "$mascon" inspect "$folder/plain.repacked" >"$folder/inspect"
    grep -q ' view$' "$folder/inspect" || fail "no views in the repacked $file"
    rm "$folder"/*.repacked
done

# the README's example
sed -n '/^```python/,/^```/p' "$here/../../README.md" | sed '/^```/d' >"$folder/example.py"
[ -s "$folder/example.py" ] || fail "the README has no example in Python"
echo 'assert weight.dtype == "f4" and weight.shape == (4, 6) and (weight.ravel() == np.arange(24) - 125).all()' \
    >>"$folder/example.py"
for dtype in float32 bfloat16; do
    cp "$folder/root_$dtype" "$folder/layer.h5"
    (cd "$folder" && "$python" example.py)
done

# a view that lost a source is a finding of verify, in text and JSON
cp "$folder/float32_per_expert.h5" "$folder/broken.h5"
"$python" "$here/read_views.py" --break "$folder/broken.h5"
status=0
"$mascon" verify "$folder/broken.h5" >"$folder/verify" 2>&1 || status=$?
[ "$status" -eq 1 ] || fail "verify of a broken view: status $status, $(cat "$folder/verify")"
grep -q '^damaged: /model/layers/0/experts/weight: broken view: .*weight3' "$folder/verify" || fail "$(cat "$folder/verify")"
"$mascon" verify --json "$folder/broken.h5" >"$folder/json" 2>/dev/null || true
grep -q '"message":"broken view: ' "$folder/json" || fail "verify --json: $(cat "$folder/json")"
"$mascon" inspect "$folder/broken.h5" >"$folder/inspect"
grep -q 'broken view: ' "$folder/inspect" || fail "inspect: $(cat "$folder/inspect")"
"$mascon" inspect --json "$folder/broken.h5" >"$folder/json"
grep -q '"problem":' "$folder/json" && grep -q '"views":\[' "$folder/json" || fail "inspect --json: $(cat "$folder/json")"
