#!/usr/bin/env bash
# Installs what mascon needs and this machine lacks, on Debian 12 and Ubuntu 24.04. Says nothing when
# nothing is missing.
#
#   scripts/setup.sh          what the library and the quickstart need
#   scripts/setup.sh --test   also what the tests need
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh

needed=(
    build-essential cmake ninja-build pkg-config
    luajit lua-penlight lua-argparse lua-dkjson lua-filesystem lua-term lua-system
    libhdf5-dev libxxhash-dev
    bible-kjv
)
# The library works without these, more slowly: a release that does not have them is no reason to stop.
optional=(libdnnl-dev libopenblas-dev)
for_tests=(lua-busted lua-check clang-format hdf5-tools python3-h5py python3-numpy)

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }

case "${1-}" in
    '') ;;
    --test) needed+=("${for_tests[@]}") ;;
    -h | --help) usage; exit 0 ;;
    *) printf 'setup.sh: unknown option %s; wanted --test or nothing\n' "$1" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    say "no apt-get here; going on with what is installed. On Debian these are needed: ${needed[*]} ${optional[*]}"
    exit 0
fi

# lacking NAME...: those of the packages that are not installed, one per line.
lacking() {
    { dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true; } |
        awk -v all="$*" '$1 == "installed" { have[$2] = 1 }
            END { n = split(all, name, " "); for (i = 1; i <= n; i++) if (!have[name[i]]) print name[i] }'
}

mapfile -t missing < <(lacking "${needed[@]}")
mapfile -t missing_optional < <(lacking "${optional[@]}")
all=("${missing[@]}" "${missing_optional[@]}")
[ ${#all[@]} -gt 0 ] || exit 0

apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null ||
        fail "neither root nor sudo; as root, run: apt-get install ${all[*]}"
    apt=(sudo "${apt[@]}")
fi

log=$(mktemp -t mascon-setup.XXXXXX.log)
trap 'rm -f "$log"' EXIT
say "fetching the package lists"
quietly "$log" "${apt[@]}" update
for package in "${missing_optional[@]}"; do
    if apt-cache show "$package" >/dev/null 2>&1; then
        missing+=("$package")
    else
        say "this release has no $package: going on without it"
    fi
done
[ ${#missing[@]} -gt 0 ] || exit 0
say "installing ${missing[*]}"
quietly "$log" "${apt[@]}" install --yes --no-install-recommends "${missing[@]}"
