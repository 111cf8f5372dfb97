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
[ ! -f "$here/broken" ] || { echo "E: the mirror is gone" >&2; exit 100; }
END
stand_in apt-cache <<'END'
! grep -qx -- "$2" "$here/unknown"
END
stand_in id <<'END'
cat "$here/uid"
END
for tool in bash sh env dirname mktemp awk grep sed cat rm mkdir tail printf; do
    ln -s "$(command -v "$tool")" "$here/bin/$tool"
done

world() { # LACKING UNKNOWN UID; the lists are words
    tr ' ' '\n' <<<"$1" >"$here/lacking"
    tr ' ' '\n' <<<"$2" >"$here/unknown"
    echo "$3" >"$here/uid"
    rm -f "$here/apt" "$here/broken" "$here/bin/sudo"
}
setup() { PATH=$here/bin bash "$repository/scripts/setup.sh" "$@" 2>&1; }

# Everything is there: silence, and apt-get is not called.
world "" "" 0
equal "$(setup --test)" ""
[ ! -e "$here/apt" ] || fail "apt-get was called for nothing"

# What is missing is named and installed; test packages only with --test.
world "luajit lua-busted" "" 0
contains "$(setup)" "installing luajit"
equal "$(tail -n 1 "$here/apt")" "install --yes --no-install-recommends luajit"
contains "$(setup --test)" "installing luajit lua-busted"

# Not root: through sudo.
world "cmake" "" 1000
stand_in sudo <<'END'
echo sudo >>"$here/apt"
exec "$@"
END
setup >/dev/null
equal "$(sed -n 3p "$here/apt")" sudo
equal "$(tail -n 1 "$here/apt")" "install --yes --no-install-recommends cmake"

# Neither root nor sudo: one line with the command, and status 1.
world "cmake ninja-build" "" 1000
if text=$(setup); then fail "it went on without rights"; fi
equal "$text" "setup.sh: neither root nor sudo; as root, run: apt-get install cmake ninja-build"

# An optional package that the release does not have is no reason to stop.
world "libdnnl-dev cmake" "libdnnl-dev" 0
contains "$(setup)" "this release has no libdnnl-dev"
equal "$(tail -n 1 "$here/apt")" "install --yes --no-install-recommends cmake"

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
