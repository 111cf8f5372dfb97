--- GroupedTensor: G members packed one after another in one tensor; a value, and its members are views.
--
-- Uniform: data [G, M, N] (or [G, n] for vectors), every member alike. Ragged: data [R, N] with member i the rows
-- offsets[i] .. offsets[i+1]-1 of first_dims[i] rows; R may exceed their sum, the rows behind belong to
-- nobody. Sizes may be a table (known on the host) or an int32/int64 tensor (on the device, read back only when a
-- member's view is asked for). Members count from 0, as expert names do.
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local tensor = require "mascon.tensor"
local create = require "mascon.create"

local C, failed = lib.C, lib.failed
local raise = args.raise

local GroupedTensor = {}
GroupedTensor.__index = GroupedTensor

local function shape_text(t) return "[" .. table.concat(t:shape(), ", ") .. "]" end

-- first_dims as an int64 tensor on the data's device, and as a table when the host knows it.
local function sizes_of(first_dims, device)
  if tensor.is_tensor(first_dims) then
    if first_dims:dim() ~= 1 or (first_dims.dtype ~= "int32" and first_dims.dtype ~= "int64") then
      raise(("GroupedTensor: first_dims is %s %s, wanted a 1-D tensor of int32 or int64"):format(first_dims.dtype,
        shape_text(first_dims)))
    end
    return first_dims, nil
  end
  if type(first_dims) ~= "table" then
    raise("GroupedTensor: first_dims is " .. args.show(first_dims) .. ", wanted a list or a tensor of row counts")
  end
  local host = {}
  for i, n in ipairs(first_dims) do
    host[i] = args.integer(("GroupedTensor: first_dims[%d]"):format(i), n, 0)
  end
  if #host == 0 then raise("GroupedTensor: first_dims is empty, wanted at least one member") end
  return create.tensor(host, { dtype = "int64", device = device }), host
end

local function check_sum(host, rows)
  local sum = 0
  for _, n in ipairs(host) do sum = sum + n end
  if sum > rows then
    raise(("GroupedTensor: first_dims sum to %d, data has %d rows"):format(sum, rows))
  end
end

local spec = { data = { "any", required = true }, first_dims = { "any" } }

--- mc.GroupedTensor{data = t}: uniform, t is [G, ...]. mc.GroupedTensor{data = t, first_dims = {3, 0, 2}}: ragged, t is
-- [R, ...]. `data` must be contiguous: the value shares its memory and never copies it.
local function make(opts)
  local o = args.options("GroupedTensor", opts, spec)
  local data = tensor.want_tensor("GroupedTensor: data", o.data)
  if not data:is_contiguous() then
    raise(("GroupedTensor: data %s is not contiguous; the members must lie one after another, use t:contiguous()")
      :format(shape_text(data)))
  end
  if data:dim() == 0 then raise("GroupedTensor: data has no axes, wanted [G, ...] or rows with first_dims") end
  local self = { data = data, members = {} }
  if o.first_dims then
    self.first_dims, self.host_sizes = sizes_of(o.first_dims, data.device)
    self.num_tensors = self.first_dims:size(1)
    if self.host_sizes then check_sum(self.host_sizes, data:size(1)) end
    self.offsets = memory.new()
    local st = C.mc_grouped_offsets(self.offsets.h, self.first_dims.h)
    if st ~= 0 then failed(st, "mc_grouped_offsets", self.offsets, self.first_dims) end
  else
    self.num_tensors = data:size(1)
    if self.num_tensors == 0 then raise("GroupedTensor: data has no members, wanted at least one") end
  end
  return setmetatable(self, GroupedTensor)
end

--- Allocates members of these shapes, which agree in all but the first axis. opts: dtype, device.
local function allocate(shapes, opts)
  if type(shapes) ~= "table" or #shapes == 0 then raise("GroupedTensor.empty: wanted a list of at least one shape") end
  local first, ragged, rows, sizes = shapes[1], false, 0, {}
  for i, shape in ipairs(shapes) do
    if type(shape) ~= "table" then
      raise(("GroupedTensor.empty: shape %d is %s, wanted a list of sizes"):format(i, args.show(shape)))
    end
    local fits = #shape == #first and #shape > 0
    for d = 2, #first do fits = fits and shape[d] == first[d] end
    if not fits then
      raise(("GroupedTensor.empty: shape %d is [%s], shape 1 is [%s]; only the first axis may differ"):format(i,
        table.concat(shape, ", "), table.concat(first, ", ")))
    end
    ragged = ragged or shape[1] ~= first[1]
    rows, sizes[i] = rows + shape[1], shape[1]
  end
  local box = { unpack(first) }
  if ragged then box[1] = rows else table.insert(box, 1, #shapes) end
  return make { data = create.empty(box, opts), first_dims = ragged and sizes or nil }
end

--- Whether all members have the same number of rows by construction.
function GroupedTensor:all_same_first_dim() return self.first_dims == nil end

-- Row counts on the host; a device tensor is read back once.
local function host_sizes(self)
  if not self.host_sizes then
    self.host_sizes = self.first_dims:totable()
    check_sum(self.host_sizes, self.data:size(1))
  end
  return self.host_sizes
end

--- Member i (0-based): a view, the same tensor object each time.
function GroupedTensor:member(i)
  args.integer("GroupedTensor: member", i, 0, self.num_tensors - 1)
  local view = self.members[i]
  if not view or view.freed then
    if self.first_dims then
      local sizes, first = host_sizes(self), 1
      for j = 1, i do first = first + sizes[j] end
      view = self.data:narrow(1, first, sizes[i + 1])
    else
      view = self.data:select(1, i + 1)
    end
    view.group = { base = self.data, index = i, count = self.num_tensors, role = "member" }
    self.members[i] = view
  end
  return view
end

--- All members, in order, as a list of views.
function GroupedTensor:split()
  local list = {}
  for i = 0, self.num_tensors - 1 do list[i + 1] = self:member(i) end
  return list
end

--- The shape of member i (0-based).
function GroupedTensor:member_shape(i)
  local shape = self.data:shape()
  if self.first_dims then
    shape[1] = host_sizes(self)[args.integer("GroupedTensor: member_shape", i, 0, self.num_tensors - 1) + 1]
    return shape
  end
  table.remove(shape, 1)
  return shape
end

--- A second value over the same memory.
function GroupedTensor:copy()
  return make { data = self.data, first_dims = self.host_sizes or self.first_dims }
end

function GroupedTensor:__tostring()
  local sizes = self.host_sizes and ("{" .. table.concat(self.host_sizes, ", ") .. "}")
    or self.first_dims and "on the device" or "uniform"
  return ("GroupedTensor(%d members, %s %s, first_dims %s)"):format(self.num_tensors, self.data.dtype,
    shape_text(self.data), sizes)
end

return setmetatable({ empty = allocate }, { __call = function(_, opts) return make(opts) end })
