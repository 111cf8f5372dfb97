--- Lists of tensors as C arrays of their handles, for the calls that take many tensors at once.
--
-- The arrays are made once and grow: a step makes no garbage. Each slot (1, 2, ...) has one; it is valid until the slot
-- is used again, and does not keep the tensors alive.
local ffi = require "ffi"
local args = require "mascon.args"
local lib = require "mascon.lib"

local M = {}

local arrays, sizes = {}, {}

--- The handles of list[1 .. n]; false in the list gives NULL.
function M.array(slot, list, n)
  if (sizes[slot] or 0) < n then
    sizes[slot] = math.max(n, 2 * (sizes[slot] or 32))
    arrays[slot] = ffi.new("mc_tensor *[?]", sizes[slot])
  end
  local array = arrays[slot]
  for i = 1, n do
    local t = list[i]
    array[i - 1] = t and t.h or nil
  end
  return array
end

--- Raises the C error of a call with these lists; a tensor that was freed is named with the place that freed it.
function M.raise(n, ...)
  for k = 1, select("#", ...) do
    local list = select(k, ...)
    for i = 1, n do
      local freed = list[i] and rawget(list[i], "freed")
      if freed then args.raise(("tensor %d of the list was freed by %s and cannot be used"):format(i, freed)) end
    end
  end
  args.raise(ffi.string(lib.C.mc_last_error()))
end

return M
