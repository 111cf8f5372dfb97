#!/usr/bin/env bash
# An installed mascon works: from any prefix through its own command, and under /usr/local through plain
# luajit with no environment at all.
set -euo pipefail
build=$MASCON_BUILD_DIR
unset MASCON_BUILD_DIR LUA_PATH LUA_CPATH
# The tree is moved out of reach: nothing may be found in it by chance.
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"

fail() {
    echo "install: $*" >&2
    exit 1
}
equal() { [ "$1" = "$2" ] || fail "got '$1', wanted '$2'"; }

cat >try.lua <<'END'
local mc = require "mascon"
local path = package.searchpath("mascon.libmascon", package.cpath)
assert(path == require("mascon.lib").path)
io.write(path, " ", tostring(mc.equal(mc.ones(3), mc.full({3}, 1))), "\n")
END

# 1. A prefix of its own.
cmake --install "$build" --prefix "$here/prefix" >install.log || fail "cmake --install: $(cat install.log)"
equal "$(prefix/bin/mascon try.lua)" "$here/prefix/lib/lua/5.1/mascon/libmascon.so true"
equal "$(prefix/bin/mascon version)" "mascon $(sed -n 's/^CMAKE_PROJECT_VERSION:.*=//p' "$build/CMakeCache.txt")"
prefix/bin/mascon doctor >doctor.log || fail "doctor: $(cat doctor.log)"

# 2. The default prefix, with a staging folder before it and before LuaJIT's own search path.
DESTDIR=$here/stage cmake --install "$build" --prefix /usr/local >install.log
luajit -e 'assert(package.path:find("/usr/local/share/lua/5.1/?/init.lua", 1, true))
           assert(package.cpath:find("/usr/local/lib/lua/5.1/?.so", 1, true))' ||
    fail "this luajit does not look in /usr/local"
cat >staged.lua <<END
package.path = package.path:gsub("/usr/local/", "$here/stage/usr/local/")
package.cpath = package.cpath:gsub("/usr/local/", "$here/stage/usr/local/")
dofile "try.lua"
END
equal "$(luajit staged.lua)" "$here/stage/usr/local/lib/lua/5.1/mascon/libmascon.so true"

# 3. Only what belongs there, and every Lua file of the tree.
for dir in prefix/*; do
    case $dir in prefix/bin | prefix/lib | prefix/share) ;; *) fail "installed $dir, too" ;; esac
done
[ -f prefix/share/lua/5.1/mascon/cdef.lua ] || fail "cdef.lua is not installed"
equal "$(ls prefix/bin)" mascon
echo "installed, found and run"
