#!/bin/sh
# python.sh FILE.py: runs an interop test; 77 (skipped) where python3, numpy or h5py is missing.
if ! python3 -c 'import h5py, numpy' 2>/dev/null; then
    echo 'python3 with h5py and numpy is missing: apt-get install python3-h5py python3-numpy'
    exit 77
fi
exec python3 "$1"
