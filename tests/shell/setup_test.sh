#!/usr/bin/env bash
# scripts/setup.sh, with stand-ins for dpkg-query, apt-get, apt-cache, sudo and id: nothing is installed here.
set -euo pipefail
repository=$PWD
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT

fail() {
    echo "setup: $*" >&2
    exit 1
}
equal() { [ "$1" = "$2" ] || fail "got '$1', wanted '$2'"; }
contains() { case $1 in *"$2"*) ;; *) fail "'$2' is not in '$1'" ;; esac }

# The stand-ins' world: $here/lacking and $here/unknown list packages, $here/apt keeps apt-get's arguments.
mkdir "$here/bin"
stand_in() {
    printf '#!/bin/bash\nhere=%s\n' "$here" >"$here/bin/$1"
    cat >>"$here/bin/$1"
    chmod +x "$here/bin/$1"
}
stand_in dpkg-query <<'END'
shift 3 2>/dev/null
status=0
for package; do
    if grep -qx -- "$package" "$here/lacking"; then status=1; else echo "installed $package"; fi
done
exit $status
END
stand_in apt-get <<'END'
echo "$*" >>"$here/apt"
[ ! -f "$here/hanging" ] || { echo $$ >"$here/hanging"; exec sleep 60; }
[ ! -f "$here/broken" ] || { echo "E: the mirror is gone" >&2; exit 100; }
END
stand_in dpkg <<'END'
case $1 in
    --audit) [ ! -f "$here/interrupted" ] || echo "packages are in a mess" ;;
    *) echo "dpkg $*" >>"$here/apt" ;;
esac
END
stand_in apt-cache <<'END'
! grep -qx -- "$2" "$here/unknown"
END
stand_in id <<'END'
cat "$here/uid"
END
for tool in bash sh env dirname mktemp awk grep sed cat rm mkdir tail printf sleep true; do
    ln -s "$(type -P "$tool")" "$here/bin/$tool"
done

world() { # LACKING UNKNOWN UID; the lists are words
    tr ' ' '\n' <<<"$1" >"$here/lacking"
    tr ' ' '\n' <<<"$2" >"$here/unknown"
    echo "$3" >"$here/uid"
    rm -f "$here/apt" "$here/broken" "$here/bin/sudo"
}
install="-o DPkg::Lock::Timeout=300 install --yes --no-install-recommends"
setup() { PATH=$here/bin bash "$repository/scripts/setup.sh" "$@" 2>&1; }

# Everything is there: silence, and apt-get is not called.
world "" "" 0
equal "$(setup --test)" ""
[ ! -e "$here/apt" ] || fail "apt-get was called for nothing"

# What is missing is named and installed; test packages only with --test.
world "luajit lua-busted" "" 0
contains "$(setup)" "installing luajit"
equal "$(tail -n 1 "$here/apt")" "$install luajit"
contains "$(setup --test)" "installing luajit lua-busted"

# Not root: through sudo.
world "cmake" "" 1000
stand_in sudo <<'END'
echo sudo >>"$here/apt"
exec "$@"
END
setup >/dev/null
equal "$(tail -n 2 "$here/apt")" "sudo
$install cmake"

# sudo refuses: the command to give to someone with more rights.
stand_in sudo <<'END'
exit 1
END
if text=$(setup); then fail "it went on without rights"; fi
contains "$text" "sudo refused; as root, run: apt-get install cmake"

# Neither root nor sudo: one line with the command, and status 1.
world "cmake ninja-build" "" 1000
if text=$(setup); then fail "it went on without rights"; fi
equal "$text" "setup.sh: neither root nor sudo; as root, run: apt-get install cmake ninja-build"

# An optional package that the release does not have is no reason to stop.
world "libdnnl-dev cmake" "libdnnl-dev" 0
contains "$(setup)" "this release has no libdnnl-dev"
equal "$(tail -n 1 "$here/apt")" "$install cmake"

# The same for the fuzzers' compiler, which only tests need.
world "clang libclang-rt-dev" "libclang-rt-dev" 0
equal "$(setup)" ""
[ ! -e "$here/apt" ] || fail "apt-get was called for a package of the tests"
contains "$(setup --test)" "this release has no libclang-rt-dev"
equal "$(tail -n 1 "$here/apt")" "$install clang"

# OpenBLAS takes oneDNN's place where the release has none; then nothing is left to install, also without a net.
world "libdnnl-dev libopenblas-dev" "libdnnl-dev" 0
setup >/dev/null
equal "$(tail -n 1 "$here/apt")" "$install libopenblas-dev"
world "libdnnl-dev" "libdnnl-dev" 0
touch "$here/broken"
equal "$(setup)" ""

# An interrupted dpkg is finished first.
world "cmake" "" 0
touch "$here/interrupted"
setup >/dev/null
equal "$(head -n 1 "$here/apt")" "dpkg --configure -a"
equal "$(tail -n 1 "$here/apt")" "$install cmake"
rm "$here/interrupted"

# A signal to the script ends what it started, too.
world "cmake" "" 0
touch "$here/hanging"
mkdir "$here/tmp"
TMPDIR=$here/tmp PATH=$here/bin bash "$repository/scripts/setup.sh" >/dev/null 2>&1 &
script=$!
until [ -s "$here/hanging" ]; do sleep 0.1; done
kill -TERM $script
status=0
wait $script || status=$?
equal $status 143
if kill -0 "$(cat "$here/hanging")" 2>/dev/null; then fail "apt-get goes on after its caller was ended"; fi
equal "$(ls "$here/tmp")" ""
rm "$here/hanging"

# apt-get's failure: its own words, and status 1.
world "cmake" "" 0
touch "$here/broken"
if text=$(setup); then fail "it went on after a failure"; fi
contains "$text" "E: the mirror is gone"

# An unknown option is a usage error.
status=0
setup --tset >/dev/null || status=$?
equal $status 2
echo "setup.sh does what it says"
