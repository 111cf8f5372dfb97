--- What mc.load gives in the place of tensors with lazy = true: a file's datasets by name, shape and dtype, whose bytes
-- are read when asked for.
--
--   local ck = mc.load("run.h5", {lazy = true})
--   print(ck.model["experts.weight"])              --> lazy float32 [64, 128, 32], 1.0 MB: model.experts.weight
--   local two = ck.model["experts.weight"]:read{first = 9, count = 2}   -- rows 9 and 10 of axis 1
--
-- The file stays open until the last of them is collected, or until close. A save to its path meanwhile changes nothing
-- here: what is read is the file that was opened.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local names = require "mascon.checkpoint.plan_names"
local tensor = require "mascon.tensor"

local raise = args.raise

local M = {}

local Lazy = {}
Lazy.__index = Lazy

function M.is_lazy(v) return getmetatable(v) == Lazy end

-- The dotted name without what a terminal would act upon.
local function shown(self) return names.show(self.name) end

local READ = { first = { "positive" }, count = { "natural" }, device = { "string" } }

--- Reads it, or the positions first .. first + count - 1 (1-based) of its first axis; only those bytes are read.
-- @tparam table|nil opts first = 1; count: default all from first on; device: default that of mc.load
-- @treturn Tensor of the same dtype
-- @raise when the range does not fit, the dataset cannot be read, or its file was closed
function Lazy:read(opts)
  if not M.is_lazy(self) then raise("read: wanted a lazy tensor; call it with a colon, lazy:read()") end
  local o = args.options("read", opts, READ)
  local file, entry = self._held.file, self._leaf.entry
  if not file then raise(("read: %s: its file was closed"):format(shown(self))) end
  if entry.problem then raise(("%s: cannot read %s: %s"):format(file.path, shown(self), names.show(entry.problem))) end
  local shape, first = { unpack(self.shape) }, 0
  if o.first or o.count then
    if #shape == 0 then raise(("read: %s has no axis to take a part of"):format(shown(self))) end
    local from, size = o.first or 1, shape[1]
    local count = o.count or size - from + 1
    if from + count - 1 > size or count < 0 then
      raise(("read: %s: %.0f positions from %.0f on axis 1 of size %.0f; positions count from 1"):format(shown(self),
        count, from, size))
    end
    shape[1] = count
    first = (from - 1) * names.numel({ unpack(shape, 2) })
  end
  return autograd.no_grad(function()
    local t = create.empty(shape, { dtype = self.dtype, device = o.device or self._device })
    if t:numel() > 0 then file:read(entry, first, t) end
    if names.same_shape(shape, self.shape) then t.group = self._group_of(self._leaf) end
    return t
  end)
end

--- Closes the file that it lies in, for all lazy tensors of that load. Closing twice is fine.
function Lazy:close()
  local file = self._held.file
  self._held.file = nil
  if file then file:close() end
end

function Lazy:__tostring()
  return ("lazy %s %s, %s: %s"):format(tostring(self.dtype), names.shape(self.shape), names.bytes(self.bytes),
    shown(self))
end

--- The Lua value of a node of a file's tree, with lazy tensors; what is small is read at once.
-- @tparam File file is closed by close, or when nothing holds it any more
-- @tparam table node
-- @tparam string device where tensors go
-- @tparam function group_of fn(leaf) -> the grouping of the tensor of that leaf, or nil
-- @treturn table the outermost one has close() too
function M.value(file, node, device, group_of)
  tensor.parse_device_or_default("load", device)
  local held, made = { file = file }, {}
  local function value(at, name)
    if at.is_node then
      local result = {}
      for _, key in ipairs(at.keys) do
        result[key] = value(at.values[key], name == "" and tostring(key) or name .. "." .. tostring(key))
      end
      return result
    end
    local entry = at.entry
    if not entry or at.value ~= nil then return at.value end
    if at.text then return file:text(entry) end
    local lazy = made[entry.object]
    if not lazy then
      lazy = setmetatable({ name = name, shape = entry.shape, dtype = entry.dtype, bytes = entry.bytes, _leaf = at,
        _held = held, _device = device, _group_of = group_of }, Lazy)
      made[entry.object] = lazy
    end
    return lazy
  end
  return setmetatable(value(node, ""), { __index = { close = function() Lazy.close { _held = held } end } })
end

return M
