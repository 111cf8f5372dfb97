--- Which names the tensors of a table get in a file, by the layout that is asked for at a save.
--
-- Works on the tensors' own record of their grouping (t.group: count, role, index of a member, base), never
-- on names alone. Turning `single` into `per_expert` takes slices; the reverse takes the base where the members
-- are its slices, and a stacked copy only where they are separate tensors.
local create = require "mascon.create"
local lib = require "mascon.lib"
local names = require "mascon.checkpoint.plan_names"
local tensor = require "mascon.tensor"

local C = lib.C

local M = {}

-- The grouping of a tensor that is a packed parameter or a member of one; nil for all others.
local function grouping(t)
  local group = tensor.is_tensor(t) and rawget(t, "group")
  return group and group.count and group or nil
end
M.grouping = grouping

-- Members 0 .. count-1 as one tensor [count, ...].
local function stacked(members, group)
  local base = group.base
  local first = members[1]
  local whole = base and not base.freed and base:dim() == first:dim() + 1 and base:size(1) == #members
    and base:is_contiguous()
  local dtype, shape = first.dtype, first:shape()
  for i, t in ipairs(members) do
    if t.dtype ~= dtype or t.device ~= first.device or not names.same_shape(t:shape(), shape) then return nil end
    whole = whole and t:storage_id() == base:storage_id()
      and C.mc_tensor_storage_offset(t.h) == C.mc_tensor_storage_offset(base.h)
        + (i - 1) * t:numel() * t:element_size()
      and t:is_contiguous()
  end
  if whole then return base:detach() end
  local all = create.empty({ #members, unpack(shape) }, { dtype = dtype, device = first.device })
  for i, t in ipairs(members) do all:select(1, i):copy_(t:detach()) end
  return all
end

local function tagged(t, group, index)
  t.group = { count = group.count, role = group.role, layer = group.layer, state = group.state, index = index }
  return t
end

-- Whether the experts of `key` can have names of their own that read back as its members.
local function can_split(key, count, taken)
  if type(key) ~= "string" or key:find("%d$") then return false end
  for i = 0, count - 1 do
    if taken[key .. i] then return false end
  end
  return true
end

--- The entries of one table in the wanted layout.
-- @tparam {{key, value},...} entries
-- @tparam string layout "as_is", "single" or "per_expert"; optimizer state is always stacked
-- @treturn {{key, value},...} a new list
function M.arrange(entries, layout)
  local result, sets, taken = {}, {}, {}
  for _, entry in ipairs(entries) do taken[entry[1]] = true end
  for _, entry in ipairs(entries) do
    local key, t = entry[1], entry[2]
    local group = grouping(t)
    local target = group and (group.state and "single" or layout)
    if group and not group.index and target == "per_expert" and group.role ~= "scalar"
      and t:dim() > 0 and t:size(1) == group.count and can_split(key, group.count, taken) then
      for i = 0, group.count - 1 do
        result[#result + 1] = { key .. i, tagged(t:detach():select(1, i + 1), group, i) }
      end
    elseif group and group.index and target == "single" and type(key) == "string" then
      local stem, index = names.split(key)
      if index == group.index and not taken[stem] then
        local set = sets[stem]
        if not set then
          set = { stem = stem, group = group, n = 0, entries = {} }
          sets[stem] = set
          result[#result + 1] = set
        end
        set.n = set.n + 1
        set.entries[index + 1] = entry
      else
        result[#result + 1] = entry
      end
    else
      result[#result + 1] = entry
    end
  end
  local arranged = {}
  for _, item in ipairs(result) do
    if not item.stem then
      arranged[#arranged + 1] = item
    else
      local members, whole = {}, item.n == item.group.count
      for i = 1, whole and item.n or 0 do members[i] = item.entries[i][2] end
      local t = whole and stacked(members, item.group)
      if t then
        arranged[#arranged + 1] = { item.stem, tagged(t, item.group) }
      else -- an incomplete or uneven set keeps its names
        for _, entry in pairs(item.entries) do arranged[#arranged + 1] = entry end
      end
    end
  end
  return arranged
end

--- What the group around a packed tensor records about the layer; nil for other tensors, and where the last part of
-- the key is not the role's name.
function M.facts(t, leaf)
  local group = grouping(t)
  if not group or (group.role ~= "weight" and group.role ~= "bias") then return nil end
  if leaf ~= group.role .. (group.index or "") then return nil end
  local facts, shape = {}, t:shape()
  for name, value in pairs(group.layer or {}) do facts[name] = value end
  facts.type = facts.type or "GroupedLinear"
  facts.num_gemms = group.count
  local out_axis = group.index and 1 or 2
  facts.out_features = shape[out_axis]
  if group.role == "weight" then facts.in_features = shape[out_axis + 1] end
  facts[group.role .. "_layout"] = group.index and "per_expert" or "single"
  if group.state then facts.optimizer_state = true end
  return facts
end

return M
