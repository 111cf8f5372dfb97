--- Experts of one layer that hold the very same values: what a broken exporter of sharded experts leaves behind.
--
-- Looks at the tensors of groups that say they are grouped layers, in either layout. The first elements of each
-- expert sort out nearly all; only experts that agree in them are read on. Experts whose elements are all one
-- number (biases and optimizer states that have not moved yet) are no finding.
local ffi = require "ffi"
local load = require "mascon.checkpoint.load"
local lib = require "mascon.lib"
local names = require "mascon.checkpoint.plan_names"
local ops = require "mascon.ops"
local pieces = require "mascon.checkpoint.pieces"

local C, same_bits = lib.C, ops.equal

local M = {}

local PREFIX = 1024 -- elements

-- The experts of each layer and role: {name, experts = {{index, entry, first, count}, ...}}.
local function sets_of(each_leaf)
  local sets, by_id = {}, {}
  each_leaf(function(name, leaf)
    local role, index = load.packed_role(leaf)
    local entry = leaf.entry
    if not role or entry.problem then return end
    local id = leaf.group_path .. "\0" .. role .. (index and "#" or "")
    local set = by_id[id]
    if not set then
      set = { name = index and names.split(name) or name, experts = {} }
      by_id[id] = set
      sets[#sets + 1] = set
    end
    if index then
      table.insert(set.experts, { index = index, entry = entry, first = 0, count = names.numel(entry.shape) })
    elseif entry.shape[1] == leaf.layer.num_gemms then
      local count = names.numel(entry.shape) / entry.shape[1]
      for i = 0, entry.shape[1] - 1 do
        table.insert(set.experts, { index = i, entry = entry, first = i * count, count = count })
      end
    end
  end)
  return sets
end

local Finder = {}
Finder.__index = Finder

function Finder:same(a, b)
  local x, y = a.entry.attrs.digest, b.entry.attrs.digest
  if a.entry ~= b.entry and x and y then return x == y end
  for at = 0, a.count - 1, pieces.SIZE do
    local n = math.min(pieces.SIZE, a.count - at)
    if not same_bits(self.one:fetch(self.file, a.entry, a.first + at, n),
      self.other:fetch(self.file, b.entry, b.first + at, n)) then
      return false
    end
  end
  return true
end

function Finder:is_constant(a)
  local first = self.other:fetch(self.file, a.entry, a.first, 1)
  for at = 0, a.count - 1, pieces.SIZE do
    local n = math.min(pieces.SIZE, a.count - at)
    local piece = self.one:fetch(self.file, a.entry, a.first + at, n)
    if not same_bits(piece:narrow(1, 1, 1), first) or n > 1
      and not same_bits(piece:narrow(1, 1, n - 1), piece:narrow(1, 2, n - 1)) then
      return false
    end
  end
  return true
end

-- Lists of expert numbers, two and more each, that are equal.
function Finder:clusters(experts)
  local by_prefix, found = {}, {}
  for _, expert in ipairs(experts) do
    if expert.count > 0 then
      local n = math.min(PREFIX, expert.count)
      local piece = self.one:fetch(self.file, expert.entry, expert.first, n)
      local key = expert.entry.dtype .. expert.count .. ":" .. ffi.string(C.mc_tensor_data(piece.h),
        n * piece:element_size())
      by_prefix[key] = by_prefix[key] or {}
      local list = by_prefix[key]
      local home
      for _, cluster in ipairs(list) do
        if self:same(cluster[1], expert) then home = cluster end
        if home then break end
      end
      if home then
        home[#home + 1] = expert
        if #home == 2 then found[#found + 1] = home end
      else
        list[#list + 1] = { expert }
      end
    end
  end
  local result = {}
  for _, cluster in ipairs(found) do
    if not self:is_constant(cluster[1]) then
      local indices = {}
      for i, expert in ipairs(cluster) do indices[i] = expert.index end
      table.sort(indices)
      result[#result + 1] = indices
    end
  end
  return result
end

--- Finds equal experts.
-- @tparam File file
-- @tparam function each_leaf calls its argument with (name, leaf) of every leaf of the file's tree
-- @treturn {{name, experts = {numbers}},...} one entry per set of equal experts
function M.find(file, each_leaf)
  local finder = setmetatable({ file = file, one = pieces.reader(), other = pieces.reader() }, Finder)
  local report = {}
  for _, set in ipairs(sets_of(each_leaf)) do
    for _, indices in ipairs(finder:clusters(set.experts)) do
      report[#report + 1] = { name = set.name, experts = indices }
    end
  end
  return report
end

return M
