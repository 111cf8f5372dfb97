--- Which tensors of a source are the experts of one layer. A part of mc.checkpoint.convert.
--
-- A file that says so in its groups is believed. In a file without any such group names decide, strictly: a last
-- part weight0, weight1, ... (two or more, of two axes) or bias0, ... (of one axis), and, stacked, a `weight` of three
-- axes, unless a `bias` beside it does not fit, with its `bias` of two. What looks like experts but is not whole,
-- or has numbers that no expert has, is left in, so that it is refused: a lost expert is never an ordinary tensor.
local names = require "mascon.checkpoint.plan_names"

local M = {}

local MAX_EXPERTS = 65536
local RANK = { weight = 2, bias = 1 } -- axes of one expert

-- A text for the table that an item goes into; keys 1 and "1" are two keys.
local function table_id(keys)
  local parts = {}
  for i = 1, #keys - 1 do parts[i] = type(keys[i]) .. ":" .. keys[i] end
  return table.concat(parts, "\0")
end
M.table_id = table_id

local function is_state(item)
  return item.leaf.layer and item.leaf.layer.optimizer_state or item.name:find("^optimizer%.") ~= nil
end

local function is_number(item) return type(item.value) == "number" end

-- Whether an item is one number: an optimizer's step of one expert.
local function is_scalar(item) return is_number(item) or item.entry and #(item.entry.shape or {}) == 0 end

-- The stem of the key that an item goes to, its role and its expert (nil: all), or nil for what is no expert.
local function place_of(item, by_name)
  local key = item.target[#item.target]
  if type(key) ~= "string" then return nil end
  local stem, index = names.split(key)
  if item.role then -- a layer of a file that declares it
    if item.expert then
      if index then return stem, item.role, index end
    elseif not key:find("%d$") then
      return key, item.role
    end
    return nil
  end
  if not by_name or not item.entry and not (is_state(item) and is_number(item)) then return nil end
  local role = (index and stem or key):match "[^.]*$"
  if not RANK[role] then return nil end
  return index and stem or key, role, index
end

local function sorted_indices(members)
  local list = {}
  for index in pairs(members) do list[#list + 1] = index end
  table.sort(list)
  return list
end

-- All candidates, in order of their first item: {stem, role, target, table, members, list, single}.
local function candidates(items, by_name)
  local sets, by_id = {}, {}
  for _, item in ipairs(items.list) do
    local stem, role, index = place_of(item, by_name)
    if stem then
      local id = table_id(item.target) .. "\0" .. stem
      local set = by_id[id]
      if not set then
        set = { stem = stem, role = role, target = item.target, table = table_id(item.target), members = {},
          beyond = {}, declared = item.role ~= nil }
        by_id[id] = set
        sets[#sets + 1] = set
      end
      -- a second item of one name stays outside, and is refused for it
      if index and (index == math.huge or not set.declared and index >= MAX_EXPERTS) then
        table.insert(set.beyond, item)
      elseif index then
        set.members[index] = set.members[index] or item
      else
        set.single = set.single or item
      end
    end
  end
  for _, set in ipairs(sets) do set.list = sorted_indices(set.members) end
  return sets, by_id
end

local function shape_of(item) return item.entry and item.entry.shape or {} end

-- ---------------------------------------------------------------- by names alone

-- Whether members and single of a candidate look like experts; drops from the set what does not.
local function look(set, transformed, notes)
  local rank = RANK[set.role]
  local first = set.members[set.list[1]] or set.beyond[1]
  if first then
    local scalar = is_state(first) and is_scalar(first)
    local several = #set.list + #set.beyond > 1
    if not several or not (scalar or transformed or #shape_of(first) == rank) then
      if #set.list > 1 then
        notes[#notes + 1] = ("%s: not taken for experts, which have %d %s each"):format(
          names.members(set.stem, set.list), rank, rank == 1 and "axis" or "axes")
      end
      set.members, set.list, set.beyond = {}, {}, {}
    elseif scalar then
      set.role = "scalar"
    end
  end
  local shape = set.single and shape_of(set.single)
  if shape and set.role ~= "scalar" and (#shape ~= rank + 1 or shape[1] < 2 or shape[1] > MAX_EXPERTS) then
    if #shape == rank + 1 and shape[1] > MAX_EXPERTS then
      notes[#notes + 1] = ("%s: not taken for %.0f experts; at most %d are converted"):format(
        names.show(set.single.name), shape[1], MAX_EXPERTS)
    end
    set.single = nil
  end
end

-- A stacked bias goes with its weight, and a weight whose bias is another's (a convolution's) is none.
local function look_at_pairs(sets, by_id, items)
  local biases = {}
  for _, item in ipairs(items.list) do
    local key = item.target[#item.target]
    if item.entry and type(key) == "string" and key:find "bias$" then
      biases[table_id(item.target) .. "\0" .. key] = item
    end
  end
  for _, set in ipairs(sets) do
    if set.role == "weight" and set.single then
      local bias = biases[set.table .. "\0" .. set.stem:gsub("weight$", "bias")]
      local shape, other = shape_of(set.single), bias and shape_of(bias)
      if bias and not (#other == 2 and other[1] == shape[1] and other[2] == shape[2]) then set.single = nil end
    end
  end
  for _, set in ipairs(sets) do
    if set.role == "bias" and set.single and #set.list == 0 then
      local weight = by_id[set.table .. "\0" .. set.stem:gsub("bias$", "weight")]
      local count = weight and (weight.single and shape_of(weight.single)[1] or #weight.list)
      if count ~= shape_of(set.single)[1] then set.single = nil end
    end
  end
end

-- ---------------------------------------------------------------- both

-- What the layer has: experts, shape and dtype of one, by the set's first tensor.
local function describe(set)
  local item = set.members[set.list[1]] or set.single or set.beyond[1]
  local layer = item.leaf.layer
  set.layer = set.declared and layer or nil
  set.state = is_state(item)
  set.dtype = item.entry and item.entry.dtype or "float64"
  set.shape = { unpack(shape_of(item)) }
  if item == set.single and set.role ~= "scalar" then table.remove(set.shape, 1) end
  if set.declared then
    set.count = layer.num_gemms
  elseif set.single and set.role ~= "scalar" then
    set.count = shape_of(set.single)[1]
  else
    set.count = (set.list[#set.list] or 0) + 1
  end
end

--- The sets of experts among items; an item of a set gets item.set.
-- @tparam table items of convert_items.lua
-- @tparam table opts by_name: names decide where nothing is declared; transformed: shapes may yet change; keep_state:
--   an optimizer's arrays stay as they are unless declared
-- @treturn {table,...} sets {stem, role = "weight" | "bias" | "scalar", members = {number = item}, list = their
--   numbers, beyond = items whose numbers no expert has, single = item | nil, count, shape and dtype of one expert,
--   layer = declared facts | nil, state, target, declared}
-- @treturn {string,...} notes about what was not taken
function M.find(items, opts)
  local by_name, notes = opts.by_name and not items.declares, {}
  local sets, by_id = candidates(items, by_name)
  if by_name then
    for _, set in ipairs(sets) do look(set, opts.transformed, notes) end
    look_at_pairs(sets, by_id, items)
  end
  local found = {}
  for _, set in ipairs(sets) do
    if #set.list > 0 or set.single or #set.beyond > 0 then
      describe(set)
    end
    if set.count and (set.declared or not set.state or not opts.keep_state) then
      found[#found + 1] = set
      for _, item in pairs(set.members) do item.set = set end
      if set.single then set.single.set = set end
    end
  end
  return found, notes
end

--- The layout that a set has in its source: by its names, and where both are there by what its group says.
function M.stored_layout(set)
  local both = set.single and #set.list > 0
  return both and set.layer and set.layer[set.role .. "_layout"] or set.single and "single" or "per_expert"
end

M.MAX_EXPERTS = MAX_EXPERTS

return M
