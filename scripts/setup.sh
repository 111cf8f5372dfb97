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
    gcc libc6-dev cmake ninja-build pkg-config
    luajit lua-penlight lua-argparse lua-dkjson lua-filesystem lua-term lua-system
    libhdf5-dev libxxhash-dev
    bible-kjv
)
# A release that does not have these is no reason to stop: without oneDNN OpenBLAS serves; one release of clang-format
# decides, so that with another the style's test is skipped; so are the fuzzers without clang's libFuzzer.
optional=(libdnnl-dev)
for_tests=(g++ lua-busted lua-check hdf5-tools libopenblas-dev python3-h5py python3-numpy)

usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }

case "${1-}" in
    '') ;;
    --test)
        needed+=("${for_tests[@]}")
        optional+=(clang-format-14 clang libclang-rt-dev)
        ;;
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

known() { apt-cache show "$1" >/dev/null 2>&1; }

# choose: what to install, and what this release does not have.
choose() {
    install=("${missing[@]}") unknown=()
    local package
    for package in "${missing_optional[@]}"; do
        if known "$package"; then
            install+=("$package")
        else
            unknown+=("$package")
            [ "$package" != libdnnl-dev ] || mapfile -t -O "${#install[@]}" install < <(lacking libopenblas-dev)
        fi
    done
}

[ ${#missing[@]} -gt 0 ] || [ ${#missing_optional[@]} -gt 0 ] || exit 0
if known gcc; then # there are package lists
    choose
    [ ${#install[@]} -gt 0 ] || exit 0
else
    install=("${missing[@]}" "${missing_optional[@]}")
fi

# The log is read for how far it is, in English; another apt-get on a machine just started is waited for.
as_root=(env DEBIAN_FRONTEND=noninteractive LC_ALL=C)
if [ "$(id -u)" -ne 0 ]; then
    by_hand="as root, run: apt-get install ${install[*]}"
    command -v sudo >/dev/null || fail "neither root nor sudo; $by_hand"
    as_root=(sudo "${as_root[@]}")
    say "sudo is needed to install ${install[*]}"
    "${as_root[@]}" true || fail "sudo refused; $by_hand" # asks for the password now, not below a progress line
fi
apt=("${as_root[@]}" apt-get -o DPkg::Lock::Timeout=300)

log=$(mktemp -t mascon-setup.XXXXXX.log)
scratch=$log
trap 'rm -f "$log"' EXIT
# Where someone interrupted dpkg, it has to go on before anything else can.
[ -z "$(dpkg --audit 2>/dev/null)" ] || quietly "$log" "${as_root[@]}" dpkg --configure -a
say "fetching the package lists"
quietly "$log" "${apt[@]}" update
choose
[ ${#unknown[@]} -eq 0 ] || say "this release has no ${unknown[*]}: going on without"
[ ${#install[@]} -gt 0 ] || exit 0
say "installing ${install[*]}"
quietly "$log" "${apt[@]}" install --yes --no-install-recommends "${install[@]}"
