#!/usr/bin/env bash
# cuda_build.sh PLUGIN: the CUDA plugin was compiled and linked: it is there, and nothing that it needs is missing but
# the driver, which it opens by itself.
set -euo pipefail
[ -s "$1" ] || { echo "$1 was not built" >&2 && exit 1; }
needs=$(ldd -r "$1" 2>&1)
if grep -E 'not found|undefined symbol' <<<"$needs" >&2; then exit 1; fi
if grep -q libcuda.so <<<"$needs"; then echo "it is linked to the driver, so that no machine without one opens it" >&2 && exit 1; fi
echo "$1 is whole"
