#!/usr/bin/env bash
# Every op gives the same bits on every instruction set (core/cpu/cpu.h promises it). Sets that this CPU does
# not have fall back to a lower one, so the comparison is then with itself.
set -euo pipefail
test_ops=${MASCON_BUILD_DIR:-build}/lib/mascon/test_ops
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for isa in base avx2 avx512; do
    MASCON_ISA=$isa "$test_ops" --bits >"$work/$isa"
done
[ "$(wc -l <"$work/base")" -ge 300 ] || { echo "isa: test_ops printed no checksums"; exit 1; }
for isa in avx2 avx512; do
    diff "$work/base" "$work/$isa" || { echo "isa: $isa gives other bits than base in the ops above"; exit 1; }
done
