#!/usr/bin/env bash
# h5py reads what the core writes, and the core reads what h5py writes, odd and hostile files included.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
test_io=${MASCON_BUILD_DIR:?is the build folder}/lib/mascon/test_io
python=python3
"$python" -c 'import h5py, numpy' 2>/dev/null || python=/usr/bin/python3
if ! "$python" -c 'import h5py, numpy' 2>/dev/null || ! command -v h5dump >/dev/null; then
    echo 'h5py, numpy or h5dump is missing: apt-get install python3-h5py python3-numpy hdf5-tools'
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$test_io" write "$folder/ours.h5"
"$python" "$here/read_with_h5py.py" "$folder/ours.h5"
"$python" "$here/write_with_h5py.py" "$folder/theirs"
"$test_io" read "$folder/theirs"

# experts in either layout, however they are stored, load exactly into either layout
mascon=$here/../../scripts/mascon
"$mascon" "$here/plain.lua" "$folder/theirs/experts.h5" "$folder/theirs/experts_latest.h5"

# datasets of kinds that are unknown here are no damage, and what can be read can be compared and summed up
"$mascon" verify "$folder/theirs/default.h5" 2>/dev/null | grep -q ': nothing to check, 0 datasets checked, .* without'
"$mascon" inspect --stats --flat "$folder/theirs/default.h5" | grep -q '^chunked.gzip .*  zeros 1  nan 0  inf 0$'
status=0
"$mascon" diff "$folder/theirs/default.h5" "$folder/theirs/latest.h5" >"$folder/diff" || status=$?
[ "$status" -eq 1 ] && ! grep -E '^(only in|shape|dtype|differs|value)' "$folder/diff"
grep -q '^unreadable: odd.int16: int16 has no dtype here$' "$folder/diff"
