--- The proof of a conversion: the new file holds the source's bits, and gives the source back.
local diff = require "mascon.checkpoint.diff"
local disk = require "mascon.checkpoint.disk"
local load = require "mascon.checkpoint.load"
local names = require "mascon.checkpoint.plan_names"
local ops = require "mascon.ops"
local pieces = require "mascon.checkpoint.pieces"
local sets_of = require "mascon.checkpoint.convert_sets"

local M = {}

local FINDINGS = { "only_a", "only_b", "shape", "dtype", "differing", "values", "unreadable" }

-- What a comparison of two files found, as lines; names in `but` are not missed.
local function findings(title, report, but)
  local lines = {}
  for _, list in ipairs(FINDINGS) do
    for _, found in ipairs(report[list]) do
      local name = type(found) == "table" and found.name or found
      if not but[name] then lines[#lines + 1] = ("%s: %s: %s"):format(title, list, names.show(name)) end
    end
  end
  return lines
end

-- Names that one of two files need not have: of the second of two layouts, and of numbers that became one.
local function not_compared(plan)
  local but = {}
  for _, name in ipairs(plan.redundant) do but[name] = true end
  for _, set in ipairs(plan.sets) do
    if set.role == "scalar" then
      but[set.name] = true
      for _, item in pairs(set.members) do but[item.name] = true end
    end
  end
  return but
end

-- The layout that each set had in the source; of two, the one that was used.
local function source_layouts(plan)
  local layouts = {}
  for _, set in ipairs(plan.sets) do
    local both = set.single and #set.list > 0
    layouts[set.name] = both and set.layout or sets_of.stored_layout(set)
  end
  return layouts
end

-- Compares a target's dataset with the stretches it was made of; true when all bits are equal.
local function same_bits(target, source, file, entry, readers)
  local at = 0
  for _, part in ipairs(target.parts) do
    for first = 0, part.count - 1, pieces.SIZE do
      local n = math.min(pieces.SIZE, part.count - first)
      local x = readers[1]:fetch(source, part.item.entry, part.first + first, n)
      local y = readers[2]:fetch(file, entry, at + first, n)
      if not ops.equal(x, y) then return false end
    end
    at = at + part.count
  end
  return true
end

-- The new file against the plan, dataset by dataset: for new names, which no other comparison could pair.
local function by_plan(plan, progress)
  return load.with_file("convert", plan.source, function(source)
    return load.with_file("convert", plan.destination, function(file, tree)
      local lines, readers, note = {}, { pieces.reader(), pieces.reader() }, pieces.meter(progress, plan.bytes)
      for _, target in ipairs(plan.targets) do
        local leaf = tree
        for _, key in ipairs(target.keys) do leaf = leaf and leaf.values and leaf.values[key] end
        local good = leaf ~= nil and not leaf.is_node
        if good and target.parts then
          good = leaf.entry.dtype == target.dtype and names.same_shape(leaf.entry.shape, target.shape)
            and same_bits(target, source, file, leaf.entry, readers)
        elseif good then
          local value = leaf.value
          if leaf.text then value = file:text(leaf.entry) end
          good = value == target.value or value ~= value and target.value ~= target.value
        end
        if not good then lines[#lines + 1] = "new file: differs: " .. names.show(target.name) end
        if note and target.bytes then note(target.bytes) end
      end
      return lines
    end, { decode_limit = plan.decode_limit })
  end, { decode_limit = plan.decode_limit })
end

-- A name beside the new file that nobody has.
local function free_name(path)
  local name, n = path .. ".back.h5", 1
  while disk.exists(name) do
    n = n + 1
    name = ("%s.back-%d.h5"):format(path, n)
  end
  return name
end

--- Compares the new file with its source, bit for bit, and, where all names are the source's, converts it back and
-- compares that too.
-- @tparam Plan plan that was carried out
-- @tparam function convert(source, destination, layouts, progress) makes the file of the way back
-- @tparam function progress_of(n) -> the progress function of the n-th part of the work, or nil
-- @treturn table {ok, tensors, bytes, differences = {text, ...}, back = whether the way back was gone}
function M.round_trip(plan, convert, progress_of)
  local back = not plan.changed_names
  local lines
  if back then
    local limit, but = plan.decode_limit, not_compared(plan)
    -- where two keys spell one dotted name, dotted names alone do not tell a layer's experts from the other tensor
    lines = plan.ambiguous and by_plan(plan, progress_of(1)) or findings("new file",
      diff.diff(plan.source, plan.destination, { decode_limit = limit, progress = progress_of(1) }), but)
    local temporary = free_name(plan.destination)
    local ok, result = pcall(function()
      convert(plan.destination, temporary, source_layouts(plan), progress_of(2))
      return diff.diff(plan.source, temporary, { layout_aware = false, decode_limit = limit,
        progress = progress_of(3) })
    end)
    os.remove(temporary)
    if not ok then error(result, 0) end
    for _, line in ipairs(findings("way back", result, but)) do lines[#lines + 1] = line end
  else
    lines = by_plan(plan, progress_of(1))
  end
  local seen, tensors = {}, 0
  for _, target in ipairs(plan.targets) do
    for _, part in ipairs(target.parts or {}) do
      if not seen[part.item] then
        seen[part.item] = true
        tensors = tensors + 1
      end
    end
  end
  return { ok = #lines == 0, tensors = tensors, bytes = plan.bytes, differences = lines, back = back }
end

return M
