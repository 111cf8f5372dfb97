--- Views: the names of packed parameters that a file does not store, as virtual datasets for other people's tools.
--
-- Experts stored one by one get the stacked `weight`, a stacked tensor gets `weight0` .. `weight{G-1}`; biases
-- likewise, each by its own layout. Optimizer arrays get none: they are stored stacked in every layout, and a reader
-- that knows only other names looks for parameters. Loading never reads a view (format.lua).
local layout = require "mascon.checkpoint.layout"
local names = require "mascon.checkpoint.plan_names"

local M = {}

-- The stem of a packed parameter's key and its expert (nil for all of them), by the tensor's own record; else nil.
local function packed_name(key, t)
  local group = type(key) == "string" and layout.grouping(t)
  if not group or group.state or group.role == "scalar" or t:numel() == 0 then return nil end
  if group.index then
    local stem, index = names.split(key)
    if index == group.index then return stem, index end
  elseif not key:find("%d$") and t:dim() > 0 and t:size(1) == group.count then
    return key
  end
  return nil
end

-- The keys of all experts of a set, in order; nil where one is missing or of another shape or dtype.
local function whole_set(set)
  local first, keys = set.tensors[0], {}
  for i = 0, set.count - 1 do
    local t = set.tensors[i]
    if not t or t.dtype ~= first.dtype or not names.same_shape(t:shape(), first:shape()) then return nil end
    keys[i + 1] = set.stem .. i
  end
  return keys
end

--- Views of the packed parameters of one table, as entries of write.lua.
-- @tparam {{key, value},...} pairs of the table, in the layout that is stored
-- @treturn {{key, stack = keys} | {key, select = key, position = 0-based},...}
function M.of(pairs_)
  local taken, sets, by_stem, result = {}, {}, {}, {}
  for _, pair in ipairs(pairs_) do taken[pair[1]] = true end
  for _, pair in ipairs(pairs_) do
    local key, t = pair[1], pair[2]
    local stem, index = packed_name(key, t)
    if index then
      local set = by_stem[stem]
      if not set then
        set = { stem = stem, count = t.group.count, tensors = {} }
        by_stem[stem] = set
        sets[#sets + 1] = set
      end
      set.tensors[index] = t
    elseif stem then
      for i = 0, t.group.count - 1 do
        if not taken[stem .. i] then result[#result + 1] = { key = stem .. i, select = stem, position = i } end
      end
    end
  end
  for _, set in ipairs(sets) do
    local keys = not taken[set.stem] and whole_set(set)
    if keys then result[#result + 1] = { key = set.stem, stack = keys } end
  end
  return result
end

return M
