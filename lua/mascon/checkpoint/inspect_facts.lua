--- Whether what a file says of its grouped layers is so. A part of mc.checkpoint.verify; reads no tensor's bytes.
--
-- The facts of a layer are attributes of the group around its tensors (format.lua). A loader goes by them: by
-- facts that are not so it takes a part of the experts for all, or other tensors for experts. Every expert that a
-- layer counts must be there; a lost one is found here. Views are no content, and tensors of groups that say
-- nothing are no experts.
local args = require "mascon.args"
local format = require "mascon.checkpoint.format"
local names = require "mascon.checkpoint.plan_names"
local words = require "mascon.checkpoint.words"

local M = {}

local ROLES = { "weight", "bias" }
local FEATURES = { weight = { "out_features", "in_features" }, bias = { "out_features" } } -- axes after the experts
local SHOWN = 16 -- ranges of numbers in one message

local function value_text(value) return value == nil and "missing" or words.show_value(value) end

local function is_size(value, least) return args.is_integer(value) and value >= least end

-- "3-5,7" for a list of {first, last}, 0-based, the ends included.
local function range_text(ranges)
  local parts = {}
  for i = 1, math.min(#ranges, SHOWN) do
    local first, last = ranges[i][1], ranges[i][2]
    parts[i] = first == last and ("%.0f"):format(first) or ("%.0f-%.0f"):format(first, last)
  end
  return table.concat(parts, ",") .. (#ranges > SHOWN and ",..." or "")
end

-- What a group records that no layer can be; nil for a fact that may be. Absent facts are none, but for the number of
-- experts and the type, without which the others mean nothing.
local function impossible(attrs, name)
  local value = attrs[name]
  if name == "type" then
    return type(value) ~= "string" and "a text" or nil
  elseif name == "num_gemms" then
    return not is_size(value, 1) and "an integer of 1 or more" or nil
  elseif value == nil then
    return nil
  elseif name == "in_features" or name == "out_features" then
    return not is_size(value, 0) and "an integer of 0 or more" or nil
  elseif name == "optimizer_state" then
    return type(value) ~= "boolean" and "true or false" or nil
  end
  return value ~= "single" and value ~= "per_expert" and "single or per_expert" or nil
end

local NAMES = { unpack(format.LAYER_FACTS) }
for _, name in ipairs { "weight_layout", "bias_layout", "optimizer_state" } do NAMES[#NAMES + 1] = name end

local function says_anything(attrs)
  for _, name in ipairs(NAMES) do
    if attrs[name] ~= nil then return true end
  end
  return false
end

-- ---------------------------------------------------------------- one role of one layer

local Checker = {}
Checker.__index = Checker

function Checker:add(message, ...) table.insert(self.report, { name = self.name, message = message:format(...) }) end

-- The experts that are not there, and those there are too many.
function Checker:numbers(role, members, count)
  local list, missing, beyond, next_one = {}, {}, {}, 0
  for index in pairs(members) do list[#list + 1] = index end
  table.sort(list)
  for _, index in ipairs(list) do
    if index >= count then
      beyond[#beyond + 1] = { index, index }
    else
      if index > next_one then missing[#missing + 1] = { next_one, index - 1 } end
      next_one = index + 1
    end
  end
  if next_one < count then missing[#missing + 1] = { next_one, count - 1 } end
  if #missing > 0 then
    local one = #missing == 1 and missing[1][1] == missing[1][2]
    self:add("%s: %s %s of %.0f %s missing", role, one and "expert" or "experts", range_text(missing), count,
      one and "is" or "are")
  end
  if #beyond > 0 then
    self:add("%s: experts %s are there, and num_gemms is %.0f", role, range_text(beyond), count)
  end
end

-- Tensors against the number of experts (`first` = 1 axis of experts, or 0) and the features.
function Checker:shapes(attrs, role, entries, first)
  local wrong, example, wanted = {}, nil, nil
  for _, entry in ipairs(entries) do
    local shape, bad = entry.shape, nil
    if first == 1 and is_size(attrs.num_gemms, 1) and shape[1] ~= attrs.num_gemms then bad = "num_gemms" end
    for axis, name in ipairs(FEATURES[role]) do
      if not bad and is_size(attrs[name], 0) and shape[first + axis] ~= attrs[name] then bad = name end
    end
    if bad and not entry.problem then
      wrong[#wrong + 1] = entry.path:match "[^/]*$"
      example, wanted = example or names.shape(shape), wanted or bad
    end
  end
  if #wrong > 0 then
    self:add("%s: its shape is %s, and %s is %s", names.folded(wrong), example, wanted,
      words.show_value(attrs[wanted]))
  end
end

function Checker:role(attrs, role, group)
  local layout, single, members = attrs[role .. "_layout"], group.single[role], group.members[role]
  if layout == "single" then
    if single then
      self:shapes(attrs, role, { single }, 1)
    else
      self:add("%s: there is none, and %s_layout is \"single\"", role, role)
    end
  elseif layout == "per_expert" then
    local entries = {}
    if is_size(attrs.num_gemms, 1) then self:numbers(role, members, attrs.num_gemms) end
    for _, entry in ipairs(group.order) do
      if members[entry.index] == entry.entry then entries[#entries + 1] = entry.entry end
    end
    self:shapes(attrs, role, entries, 0)
  end
end

-- The tensors of one group that have names of weights and biases.
local function new_group() return { single = {}, members = { weight = {}, bias = {} }, order = {} } end

local function note(group, entry, leaf)
  local stem, index = names.split(leaf)
  for _, role in ipairs(ROLES) do
    if leaf == role then
      group.single[role] = entry
    elseif stem == role and index then
      group.members[role][index] = entry
      group.order[#group.order + 1] = { index = index, entry = entry }
    end
  end
end

--- Facts of layers that cannot be, or that the tensors beside them contradict.
-- @tparam File file
-- @treturn {{name = path of the group, message},...} empty for files that are not of our format
function M.check(file)
  local report, groups = {}, {}
  if not format.is_own(file) then return report end
  for _, entry in ipairs(file.entries) do
    if entry.group and says_anything(entry.attrs) then groups[entry.path] = new_group() end
  end
  for _, entry in ipairs(file.entries) do
    local parent, leaf = entry.path:match "^(.*)/([^/]+)$"
    local group = parent and groups[parent == "" and "/" or parent]
    if group and not entry.group and not entry.view and not entry.attrs.kind then note(group, entry, leaf) end
  end
  for _, entry in ipairs(file.entries) do
    local group = entry.group and groups[entry.path]
    if group then
      local checker = setmetatable({ report = report, name = names.show(entry.path) }, Checker)
      for _, name in ipairs(NAMES) do
        local wanted = impossible(entry.attrs, name)
        if wanted then checker:add("%s is %s, wanted %s", name, value_text(entry.attrs[name]), wanted) end
      end
      for _, role in ipairs(ROLES) do checker:role(entry.attrs, role, group) end
    end
  end
  return report
end

return M
