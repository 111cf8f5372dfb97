--- The King James text of Debian's package bible-kjv: 4,404,412 bytes of ASCII, one verse a line
-- ("Ge1:1 In the beginning ..."), in the public domain. No text is part of mascon: it is extracted into a
-- cache folder at first use.
local ffi = require "ffi"
local dir = require "pl.dir"
local path = require "pl.path"
local utils = require "pl.utils"
local args = require "mascon.args"

ffi.cdef "int getpid(void);"

local M = {}

-- The text of bible-kjv 4.38 (Debian 12). Another release may differ: a warning, not an error.
local SHA256 = "cd45f0c9cedab8e4439bd6486c8952c77cc8b0ecc5d1f6ae3513f2039f47229d"
local EXTRACT = "bible -f Gen1:1-Rev22:21"

local function cache_folder()
  local base = os.getenv("XDG_CACHE_HOME")
  if not base or base == "" then base = path.join(os.getenv("HOME") or "/tmp", ".cache") end
  return path.join(base, "mascon")
end

local function runs(command)
  return (utils.execute(command))
end

local function extract(file)
  if not runs("command -v bible >/dev/null") then
    args.raise("data.kjv: the program bible is missing: apt-get install bible-kjv")
  end
  local made, why = dir.makepath(path.dirname(file))
  if not made then args.raise(("data.kjv: %s; XDG_CACHE_HOME names another folder"):format(why)) end
  -- Whole or not at all: written beside its place, then renamed.
  local temporary = ("%s.%d.tmp"):format(file, ffi.C.getpid())
  local ok = runs(("%s >%s </dev/null"):format(EXTRACT, utils.quote_arg(temporary)))
  if not ok or path.getsize(temporary) == 0 then
    os.remove(temporary)
    args.raise(("data.kjv: `%s` failed, or %s cannot be written"):format(EXTRACT, temporary))
  end
  local renamed, reason = os.rename(temporary, file)
  if not renamed then args.raise("data.kjv: " .. reason) end
end

local function sha256(file)
  local pipe = io.popen("sha256sum " .. utils.quote_arg(file), "r")
  local digest = pipe:read("*l") or ""
  pipe:close()
  return digest:match("^\\?(%x+)") or "unknown"
end

--- Extracts the text unless the cache has it.
-- @treturn string the file: $XDG_CACHE_HOME/mascon/kjv.txt, or below ~/.cache
-- @raise when the package is not installed or the cache cannot be written
function M.kjv()
  local file = path.join(cache_folder(), "kjv.txt")
  if not path.isfile(file) then extract(file) end
  local digest = sha256(file)
  if digest ~= SHA256 then
    io.stderr:write(("data.kjv: warning: %s has sha256 %s, not %s: another text than that of "
      .. "bible-kjv 4.38, figures will differ\n"):format(file, digest, SHA256))
  end
  return file
end

return M
