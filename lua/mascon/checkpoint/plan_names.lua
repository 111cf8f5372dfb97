--- Names, shapes and their printed forms, for the load planner and the savers. Pure Lua.
--
-- A member name is a stem followed by an expert number: a canonical decimal, so `weight10` is expert
-- 10 of `weight`, while `weight01`, `weight-1` and `weight1x` are ordinary names.
-- Nothing here touches a tensor or a file.

local M = {}

local concat, insert = table.concat, table.insert

-- Numbers of this many digits and more are not exact in a double; they are never real experts.
local MAX_DIGITS = 15

--- Splits a trailing run of digits off a name.
-- @treturn string|nil stem; nil when the name does not end in digits or is digits only
-- @treturn number|nil the number, when it is a canonical decimal (math.huge past 15 digits)
-- @treturn string digits as written
function M.split(name)
  local stem, digits = name:match("^(.*[^%d])(%d+)$")
  if not stem then return nil end
  if #digits > 1 and digits:byte(1) == 48 then return stem, nil, digits end
  if #digits > MAX_DIGITS then return stem, math.huge, digits end
  return stem, tonumber(digits), digits
end

--- The name of one member: what split takes apart.
function M.member(stem, index) return stem .. ("%.0f"):format(index) end

--- One line of printable text for a name that may come from a stranger's file.
function M.show(name)
  local text = tostring(name):gsub("%c", "?"):gsub("\194[\128-\159]", "?") -- the latter: controls beyond ASCII
  if #text > 240 then text = text:sub(1, 200) .. "..." .. text:sub(-37) end
  return text
end

--- "0-3,7" for a sorted list of distinct integers.
function M.ranges(list)
  local parts, i = {}, 1
  while i <= #list do
    local j = i
    while j < #list and list[j + 1] == list[j] + 1 do j = j + 1 end
    if j == i then
      parts[#parts + 1] = ("%.0f"):format(list[i])
    else
      parts[#parts + 1] = ("%.0f%s%.0f"):format(list[i], j == i + 1 and "," or "-", list[j])
    end
    i = j + 1
  end
  return concat(parts, ",")
end

--- "m.weight3" for one expert, "m.weight{0-3,7}" for several.
function M.members(stem, list)
  if #list == 1 then return M.show(M.member(stem, list[1])) end
  return M.show(stem) .. "{" .. M.ranges(list) .. "}"
end

--- "[2, 3]"
function M.shape(shape)
  local parts = {}
  for i = 1, #shape do parts[i] = ("%.0f"):format(shape[i]) end
  return "[" .. concat(parts, ", ") .. "]"
end

--- A size as people read it: "950 bytes", "1.2 MB".
function M.bytes(n)
  for _, unit in ipairs { "bytes", "KB", "MB", "GB" } do
    if n < 1000 or unit == "GB" then return (unit == "bytes" and "%.0f %s" or "%.1f %s"):format(n, unit) end
    n = n / 1000
  end
end

function M.numel(shape)
  local n = 1
  for i = 1, #shape do n = n * shape[i] end
  return n
end

function M.same_shape(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return true
end

-- A string whose byte order is the numeric-aware order: each run of digits (without leading zeros) is
-- preceded by its length.
local function sort_key(name)
  return (name:gsub("%d+", function(digits)
    local bare = digits:match("^0*(%d+)$")
    return ("%04d"):format(#bare) .. bare
  end))
end

--- Sorts a list of strings in place so that `w10` follows `w9`; returns it. O(n log n).
function M.sort(list)
  local key = {}
  for i = 1, #list do key[list[i]] = sort_key(list[i]) end
  table.sort(list, function(a, b)
    local x, y = key[a], key[b]
    if x ~= y then return x < y end
    return a < b
  end)
  return list
end

--- Folds a list of names into groups of one stem, in order of first appearance, for printing.
-- @tparam {string,...} list
-- @treturn {table,...} each {text=, names=, stem=|nil}
function M.fold(list)
  local groups, by_stem = {}, {}
  for i = 1, #list do
    local name = list[i]
    local stem, index = M.split(name)
    if stem and index and index ~= math.huge then
      local group = by_stem[stem]
      if not group then
        group = { stem = stem, names = {}, list = {} }
        by_stem[stem] = group
        insert(groups, group)
      end
      insert(group.names, name)
      insert(group.list, index)
    else
      insert(groups, { names = { name }, text = M.show(name) })
    end
  end
  for i = 1, #groups do
    local group = groups[i]
    if not group.text then
      table.sort(group.list)
      group.text = M.members(group.stem, group.list)
    end
  end
  return groups
end

--- "m.weight{0-3}, m.scale" for a list of names.
function M.folded(list)
  local parts = {}
  for i, group in ipairs(M.fold(list)) do parts[i] = group.text end
  return concat(parts, ", ")
end

--- A text with blanks up to a width; string.format refuses widths past 99.
function M.pad(text, width) return text .. (" "):rep(width - #text) end

return M
