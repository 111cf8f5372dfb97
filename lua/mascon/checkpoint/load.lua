--- mc.load: the tables that mc.save was given, or those of any plain HDF5 file, as new tensors.
--
-- One pass over the file's listing (format.lua), then each dataset is read once into its final memory. Two names
-- of one dataset become one tensor. Experts stored one by one become members of one block, so that they can be
-- adopted, converted or saved stacked without a copy.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local format = require "mascon.checkpoint.format"
local hdf5 = require "mascon.checkpoint.hdf5"
local lazy = require "mascon.checkpoint.lazy"
local names = require "mascon.checkpoint.plan_names"
local pieces = require "mascon.checkpoint.pieces"
local tensor = require "mascon.tensor"

local raise, show = args.raise, args.show

local M = {}

local SPEC = { device = { "string" }, only = { "string" }, lazy = { "boolean", false },
  decode_limit = { "positive" }, progress = { "function" } }

local Loader = {}
Loader.__index = Loader

-- {role, index or nil} of a dataset in a group that says it is a grouped layer; nil for any other.
local function packed_role(leaf)
  local layer = leaf.layer
  if not layer or leaf.text then return nil end
  for _, role in ipairs { "weight", "bias" } do
    local stored = layer[role .. "_layout"]
    if stored == "single" and leaf.leaf == role then return role end
    if stored == "per_expert" then
      local stem, index = names.split(leaf.leaf)
      if stem == role and index and index < layer.num_gemms then return role, index end
    end
  end
  return nil
end
M.packed_role = packed_role

local function grouping(leaf, role, index, base)
  local layer, facts = leaf.layer, {}
  for _, name in ipairs(format.LAYER_FACTS) do facts[name] = layer[name] end
  return { base = base, index = index, count = layer.num_gemms, role = role, layer = facts,
    state = layer.optimizer_state }
end

-- The block of all experts of a role in a group, when all are there in one shape and dtype; else nil.
function Loader:block(leaf, role)
  local id = leaf.group_path .. "\0" .. role
  local block = self.blocks[id]
  if block ~= nil then return block or nil end
  local first = leaf.entry
  for index = 0, leaf.layer.num_gemms - 1 do
    local entry = self.by_path[(leaf.group_path == "/" and "" or leaf.group_path) .. "/" .. names.member(role, index)]
    if not entry or entry.group or entry.view or entry.problem or entry.dtype ~= first.dtype
      or not names.same_shape(entry.shape, first.shape) or #entry.shape > 7 then
      self.blocks[id] = false
      return nil
    end
  end
  block = create.empty({ leaf.layer.num_gemms, unpack(first.shape) }, { dtype = first.dtype, device = self.device })
  block.group = grouping(leaf, role, nil, nil)
  self.blocks[id] = block
  return block
end

function Loader:tensor(leaf)
  local entry = leaf.entry
  local known = self.made[entry.object]
  if known then return known end
  local role, index = packed_role(leaf)
  local block = index and self:block(leaf, role)
  local t = block and block:select(1, index + 1)
    or create.empty(entry.shape, { dtype = entry.dtype, device = self.device })
  self.batch:add(entry, 0, t, 0, t:numel())
  if role then t.group = grouping(leaf, role, index, block) end
  self.made[entry.object] = t
  return t
end

function Loader:value(node)
  if not node.is_node then
    if not node.entry or node.value ~= nil then return node.value end
    if node.text then return self.file:text(node.entry) end
    return self:tensor(node)
  end
  local result = {}
  for _, key in ipairs(node.keys) do result[key] = self:value(node.values[key]) end
  return result
end

-- Calls fn(leaf) for every dataset below a node.
local function each_dataset(node, fn)
  if not node.is_node then
    if node.value == nil then fn(node) end
    return
  end
  for _, key in ipairs(node.keys) do each_dataset(node.values[key], fn) end
end
M.each_dataset = each_dataset

--- Raises one error for all datasets below `node` that cannot be read.
local function check_readable(file, node)
  local problems = {}
  each_dataset(node, function(leaf)
    if leaf.entry.problem then
      problems[#problems + 1] = ("[file] %s: %s"):format(names.show(leaf.entry.path), names.show(leaf.entry.problem))
    end
  end)
  if #problems > 0 then
    raise(("%s: cannot load, %d problem%s\n%s"):format(file.path, #problems, #problems == 1 and "" or "s",
      table.concat(problems, "\n")))
  end
end

-- The bytes that the tensors below a node have; one with two names counts once, as it is read.
local function bytes_below(node)
  local total, seen = 0, {}
  each_dataset(node, function(leaf)
    local object = leaf.entry.object
    if not leaf.text and not seen[object] then total = total + leaf.entry.bytes end
    seen[object] = true
  end)
  return total
end

--- The Lua value of a node of a file's tree.
-- @tparam File file
-- @tparam table node
-- @tparam string|nil device default: mc.get_default_device()
-- @tparam function|nil progress fn(bytes done, of all) of the tensors
function M.value(file, node, device, progress)
  check_readable(file, node)
  local by_path = {}
  for _, entry in ipairs(file.entries) do by_path[entry.path] = entry end
  local batch = pieces.batch(file, pieces.meter(progress, progress and bytes_below(node)))
  local loader = setmetatable({ file = file, device = device, by_path = by_path, made = {}, blocks = {},
    batch = batch }, Loader)
  return autograd.no_grad(function()
    local value = loader:value(node)
    batch:flush()
    return value
  end)
end

--- Opens a file, runs fn(file, tree) and closes it, whatever happens.
-- @tparam string what begins error messages
-- @tparam string path
-- @tparam function fn its results are returned
-- @tparam table|nil opts of hdf5.open: prefetch, decode_limit
function M.with_file(what, path, fn, opts)
  hdf5.check_path(what, path)
  local file = hdf5.open(path, opts)
  local function leave(ok, ...)
    file:close()
    if not ok then error((...), 0) end
    return ...
  end
  return leave(pcall(function() return fn(file, format.tree(file)) end))
end

-- The tree without all keys but one of its outermost table.
local function only(path, tree, key)
  local found = tree.values[key]
  if not found then
    local there = {}
    for i, name in ipairs(tree.keys) do there[i] = show(name) end
    raise(("%s: there is no %s in it; there are: %s"):format(path, show(key), table.concat(there, ", ")))
  end
  return { is_node = true, keys = { key }, values = { [key] = found } }
end

--- Loads what mc.save wrote, or any plain HDF5 file (its groups as tables, its attributes as values).
-- @tparam string path
-- @tparam table|nil opts device (default: mc.get_default_device()); only = "model":
--   this key of the outermost table alone; progress = fn(bytes
--   done, of all), whose error ends the load; decode_limit: bytes that compressed datasets may decode to (default 16
--   times the file); lazy = true: objects that read their tensor when asked to (lazy.lua), in its place
-- @treturn table the nested tables; tensors have the dtypes and shapes of the file
-- @raise at the user's line: the file and what is wrong with it
function M.load(path, opts)
  opts = args.options("load", opts, SPEC)
  tensor.parse_device_or_default("load", opts.device)
  local open_options = { prefetch = not opts.only and not opts.lazy, decode_limit = opts.decode_limit }
  if opts.lazy then
    if opts.progress then raise("load: progress has nothing to tell with lazy = true") end
    hdf5.check_path("load", path)
    local file = hdf5.open(path, open_options)
    local ok, result = pcall(function()
      local tree = format.tree(file)
      return lazy.value(file, opts.only and only(path, tree, opts.only) or tree, opts.device, function(leaf)
        local role, index = packed_role(leaf)
        return role and grouping(leaf, role, index, nil)
      end)
    end)
    if ok then return result end
    file:close()
    error(result, 0)
  end
  return M.with_file("load", path, function(file, tree)
    return M.value(file, opts.only and only(path, tree, opts.only) or tree, opts.device, opts.progress)
  end, open_options)
end

return M
