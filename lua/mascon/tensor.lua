--- The tensor: a table on a C handle. Properties, views and conversions; create.lua makes and reads tensors, ops.lua
-- computes with them.
--
-- This file alone converts between 1-based positions (axes, rows) in Lua and the 0-based ones of C. Numbers
-- stored in tensors (ids, labels) are data and are never shifted.
-- Fields: h (mc_tensor *), slot, node (tape node or false), rg (takes part in gradients); rarely: _grad,
-- group ({base, index, count, role}), _packed (on a base, see packed.lua), kept, freed.
local ffi = require "ffi"
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"

local C, check, failed = lib.C, lib.check, lib.failed
local raise, show = args.raise, args.show
local new = memory.new
local tape = autograd.state
local record = autograd.record

local M = {} -- functions of mc
local T = {} -- methods
local getters, setters = {}, {}
local Tensor = {} -- the metatable
M.methods, M.getters, M.setters, M.metatable = T, getters, setters, Tensor

function Tensor.__index(t, k)
  local m = T[k]
  if m ~= nil then
    return m
  end
  local g = getters[k]
  if g then
    return g(t)
  end
  if type(k) == "number" then
    return T.select(t, 1, k)
  end
  return nil
end

function Tensor.__newindex(t, k, v)
  local s = setters[k]
  if s then
    s(t, v)
  elseif type(k) == "number" then
    raise("tensor: t[i] = v is not possible; use t[i]:copy_(v) or t[i]:fill_(v)")
  elseif getters[k] or T[k] then
    raise(("tensor: %s cannot be assigned"):format(k))
  else
    rawset(t, k, v)
  end
end

memory.set_metatable(Tensor)

local is_tensor = memory.is_tensor
M.is_tensor = is_tensor

--- Raises unless `v` is a tensor.
function M.want_tensor(what, v)
  if not is_tensor(v) then
    raise(("%s: wanted a tensor, got %s"):format(what, show(v)))
  end
  if v.freed then
    raise(("%s: the tensor was freed by %s and cannot be used"):format(what, v.freed))
  end
  return v
end
local want_tensor = M.want_tensor

-- -- dtypes, devices, shapes ---------------------------------------------------------------------

local dtype_name, dtype_code = {}, {}
for code = 0, C.MC_DTYPE_COUNT - 1 do
  local name = ffi.string(C.mc_dtype_name(code))
  dtype_name[code], dtype_code[name] = name, code
end
M.dtype_name, M.dtype_code = dtype_name, dtype_code

local device_name, device_code = { [0] = "cpu" }, { cpu = 0 }
M.device_code = device_code

local function parse_dtype(what, name)
  local code = dtype_code[name]
  if not code then
    raise(("%s: no dtype %s; there are float64 float32 float16 bfloat16 int64 int32 uint8 bool float8_e4m3fn "
      .. "float8_e5m2 float8_e8m0fnu"):format(what, show(name)))
  end
  return code
end
M.parse_dtype = parse_dtype

local device_out = ffi.new "int[1]"
local function parse_device(what, name)
  local code = device_code[name]
  if not code then
    if type(name) ~= "string" then
      raise(("%s: device is %s, wanted a string such as \"cpu\""):format(what, show(name)))
    end
    check(C.mc_device_parse(name, device_out))
    code = device_out[0]
    device_code[name] = code
    local buffer = ffi.new "char[32]"
    check(C.mc_device_name(code, buffer, 32))
    device_name[code] = ffi.string(buffer)
  end
  return code
end
M.parse_device = parse_device

local default_device = "cpu"
--- The device of tensors and modules that are made, and of tensors that are loaded, without one; nil: "cpu".
function M.set_default_device(name)
  default_device = device_name[parse_device("set_default_device", name or "cpu")]
end
function M.get_default_device() return default_device end
--- The code of the device `name`, or of the default one for nil.
function M.parse_device_or_default(what, name)
  return parse_device(what, name == nil and default_device or name)
end

function M.device_name_of(code) return device_name[code] end

function getters.dtype(t)
  return dtype_name[C.mc_tensor_dtype(want_tensor("dtype", t).h)]
end

function getters.device(t)
  return device_name[C.mc_tensor_device(want_tensor("device", t).h)]
end

local MAX_DIMS = C.MC_MAX_DIMS
local dims = ffi.new "int64_t[8]"
local strides_buffer = ffi.new "int64_t[8]"

-- Writes the sizes in list[first..] into `dims`; returns their number.
local function put_dims(what, list, first, n, low)
  if n > MAX_DIMS then
    raise(("%s: %d axes, at most %d are possible"):format(what, n, MAX_DIMS))
  end
  for i = 1, n do
    local v = list[first + i - 1]
    if not args.is_integer(v) or v < low then
      raise(("%s: size %d is %s, wanted an integer of %d or more"):format(what, i, show(v), low))
    end
    dims[i - 1] = v
  end
  return n
end

-- Splits (n1, n2, ..., opts) or ({n1, n2, ...}, opts): fills `dims`, returns the number of axes and opts.
local function parse_shape(what, low, ...)
  local n = select("#", ...)
  local first = ...
  local opts
  if type(first) == "table" and not is_tensor(first) and (first[1] ~= nil or (next(first) == nil and n <= 2)) then
    opts = select(2, ...)
    return put_dims(what, first, 1, #first, low), opts
  end
  local list = { ... }
  if n > 0 and type(list[n]) == "table" then
    opts = list[n]
    n = n - 1
  end
  return put_dims(what, list, 1, n, low), opts
end
M.parse_shape = parse_shape
M.dims = dims

--- 0-based axis from a 1-based or negative one.
local function to_axis(what, t, axis, extra)
  local n = C.mc_tensor_ndim(t.h) + (extra or 0)
  if not args.is_integer(axis) or axis == 0 or axis > n or axis < -n then
    raise(("%s: axis %s of a tensor with %d axes; wanted 1 to %d, or negative from the end")
      :format(what, show(axis), n, n))
  end
  return axis > 0 and axis - 1 or n + axis
end
M.to_axis = to_axis

function T.shape(t)
  want_tensor("shape", t)
  local p, out = C.mc_tensor_shape(t.h), {}
  for i = 1, C.mc_tensor_ndim(t.h) do
    out[i] = tonumber(p[i - 1])
  end
  return out
end

function T.stride(t)
  local p, out = C.mc_tensor_strides(want_tensor("stride", t).h), {}
  for i = 1, C.mc_tensor_ndim(t.h) do
    out[i] = tonumber(p[i - 1])
  end
  return out
end

function T.size(t, axis)
  want_tensor("size", t)
  if axis == nil then return T.shape(t) end
  return tonumber(C.mc_tensor_shape(t.h)[to_axis("size", t, axis)])
end

function T.dim(t) return C.mc_tensor_ndim(want_tensor("dim", t).h) end
function T.numel(t) return tonumber(C.mc_tensor_numel(want_tensor("numel", t).h)) end
function T.is_contiguous(t) return C.mc_tensor_is_contiguous(want_tensor("is_contiguous", t).h) ~= 0 end
function T.element_size(t) return C.mc_dtype_size(C.mc_tensor_dtype(want_tensor("element_size", t).h)) end
function T.is_floating_point(t)
  return C.mc_dtype_is_float(C.mc_tensor_dtype(want_tensor("is_floating_point", t).h)) ~= 0
end
--- The version of t's storage: every in-place write, optimizer step and load raises it.
function T.version(t) return tonumber(C.mc_tensor_version(want_tensor("version", t).h)) end
--- A number that two tensors share exactly when they share memory; never reused.
function T.storage_id(t) return tonumber(C.mc_tensor_storage_id(want_tensor("storage_id", t).h)) end
--- The FFI address of the first element (CPU only); valid while t lives.
function T.data(t)
  want_tensor("data", t)
  if C.mc_tensor_device(t.h) ~= 0 then
    raise(("data: the tensor is on %s; move it with t:to(\"cpu\")"):format(t.device))
  end
  return C.mc_tensor_data(t.h)
end
function T._same_shape(a, b) return C.mc_tensor_same_shape(a.h, b.h) ~= 0 end

--- Frees t's bytes now; any later use of t raises. Views of the same storage keep it alive.
function T.free(t)
  if not is_tensor(t) then raise("free: wanted a tensor, got " .. show(t)) end
  memory.free(t, "t:free() at " .. args.user_line())
end

-- An uninitialised tensor of the n sizes in `dims`.
local function empty(dtype, device, n)
  local t = new()
  local st = C.mc_empty(t.h, dtype, device, n, dims)
  if st ~= 0 then failed(st, "mc_empty", t, dtype, device, n, dims) end
  return t
end
M.empty_dims = empty

-- -- views ---------------------------------------------------------------------------------------

-- A view's gradient: zeros of the input's shape with the view's place filled; `node.redo` makes the view again.
local function embed(node, g)
  local dx = autograd.zeros_of(node.like)
  node.redo(dx, node):copy_(g)
  return dx
end

local SELECT = { name = "select", view = true, backward = embed }
local function redo_select(dx, node) return dx:select(node.axis, node.first) end
local NARROW = { name = "narrow", view = true, backward = embed }
local function redo_narrow(dx, node) return dx:narrow(node.axis, node.first, node.count) end

--- t:select(axis, i): one position (1-based) of an axis, which goes away. t[i] is t:select(1, i).
function T.select(t, axis, i)
  want_tensor("select", t)
  local a = to_axis("select", t, axis)
  local size = tonumber(C.mc_tensor_shape(t.h)[a])
  if not args.is_integer(i) or i < 1 or i > size then
    raise(("select: index %s on axis %d of size %d; positions count from 1"):format(show(i), a + 1, size))
  end
  local out = new()
  check(C.mc_select(out.h, t.h, a, i - 1), t)
  if tape.on and t.rg then
    local node = record(out, SELECT, t)
    node.like, node.axis, node.first, node.redo = autograd.like(t), a + 1, i, redo_select
  end
  return out
end

--- t:narrow(axis, first, n): n positions of an axis from `first` (1-based) on; a view.
function T.narrow(t, axis, first, n)
  want_tensor("narrow", t)
  local a = to_axis("narrow", t, axis)
  local size = tonumber(C.mc_tensor_shape(t.h)[a])
  if not args.is_integer(first) or not args.is_integer(n) or n < 0 or first < 1 or first + n - 1 > size then
    raise(("narrow: %s positions from %s on axis %d of size %d; positions count from 1"):format(show(n), show(first),
      a + 1, size))
  end
  local out = new()
  check(C.mc_narrow(out.h, t.h, a, first - 1, n), t)
  if tape.on and t.rg then
    local node = record(out, NARROW, t)
    node.like, node.axis, node.first, node.count, node.redo = autograd.like(t), a + 1, first, n, redo_narrow
  end
  return out
end

local VIEW = { name = "view", view = true, backward = function(node, g) return g:reshape(node.shape) end }

local function viewed(t, n)
  local out = new()
  local st = C.mc_view(out.h, t.h, n, dims)
  if st ~= 0 then return nil, out end
  if tape.on and t.rg then
    record(out, VIEW, t).shape = t:shape()
  end
  return out
end

--- t:view(n1, n2, ...) or a table; one size may be -1. Never copies: raises when that is not possible.
function T.view(t, ...)
  want_tensor("view", t)
  local out = viewed(t, (parse_shape("view", -1, ...)))
  if not out then lib.raise_last(t) end
  return out
end

--- As t:view, but copies when it has to.
function T.reshape(t, ...)
  want_tensor("reshape", t)
  local n = parse_shape("reshape", -1, ...)
  local out = viewed(t, n)
  if out then return out end
  if t:is_contiguous() then lib.raise_last(t) end
  local dense = t:contiguous()
  parse_shape("reshape", -1, ...) -- contiguous used dims
  out = viewed(dense, n)
  if not out then lib.raise_last(t) end
  return out
end

local axes_buffer = ffi.new "int64_t[8]"
local function inverse_permute(node, g)
  local back = {}
  for i, a in ipairs(node.axes) do back[a] = i end
  return g:permute(back)
end
local PERMUTE = { name = "permute", view = true, backward = inverse_permute }

--- t:permute(a1, a2, ...) or a table: axis i of the result is axis a_i of t.
function T.permute(t, ...)
  want_tensor("permute", t)
  local first = ...
  local list = type(first) == "table" and first or { ... }
  local axes = {}
  if #list ~= t:dim() then
    raise(("permute: %d axes given, the tensor has %d"):format(#list, t:dim()))
  end
  for i = 1, #list do
    axes[i] = to_axis("permute", t, list[i]) + 1
    axes_buffer[i - 1] = axes[i] - 1
  end
  local out = new()
  check(C.mc_permute(out.h, t.h, #axes, axes_buffer), t)
  if tape.on and t.rg then
    record(out, PERMUTE, t).axes = axes
  end
  return out
end

--- t:transpose(a, b): swaps two axes; a view. Without arguments: the two axes of a matrix.
function T.transpose(t, a, b)
  want_tensor("transpose", t)
  if a == nil then
    if t:dim() ~= 2 then raise(("transpose: wanted two axes to swap, the tensor has %d"):format(t:dim())) end
    a, b = 1, 2
  end
  local list = {}
  for i = 1, t:dim() do list[i] = i end
  a, b = to_axis("transpose", t, a) + 1, to_axis("transpose", t, b) + 1
  list[a], list[b] = b, a
  return t:permute(list)
end
function T.t(t) return T.transpose(t) end

--- t:unsqueeze(axis): a new axis of size 1 at that position.
function T.unsqueeze(t, axis)
  want_tensor("unsqueeze", t)
  local a = to_axis("unsqueeze", t, axis, 1)
  local shape = t:shape()
  table.insert(shape, a + 1, 1)
  return T.view(t, shape)
end

--- t:squeeze(axis): removes an axis of size 1; without axis, all of them.
function T.squeeze(t, axis)
  want_tensor("squeeze", t)
  local shape, out = t:shape(), {}
  local only = axis and to_axis("squeeze", t, axis) + 1
  for i, n in ipairs(shape) do
    if n ~= 1 or (only and i ~= only) then out[#out + 1] = n end
  end
  return T.view(t, out)
end

function T.flatten(t) return T.reshape(t, -1) end

local EXPAND = {
  name = "expand",
  view = true,
  backward = function(node, g) return g:_sum_to(node.shape) end,
}
--- t:expand(n1, ...): axes of size 1 (and new leading axes) repeated without copying; -1 keeps a size.
function T.expand(t, ...)
  want_tensor("expand", t)
  local n = parse_shape("expand", -1, ...)
  local out = new()
  check(C.mc_expand(out.h, t.h, n, dims), t)
  if tape.on and t.rg then
    record(out, EXPAND, t).shape = t:shape()
  end
  return out
end

--- A view by sizes, strides and offset (all in elements, offset from t's first); no gradient.
function T.as_strided(t, shape, stride, offset)
  want_tensor("as_strided", t)
  if t.rg and tape.on then raise("as_strided: has no gradient; detach the tensor first") end
  if type(shape) ~= "table" or type(stride) ~= "table" or #stride ~= #shape then
    raise("as_strided: wanted two lists of equal length, sizes and strides")
  end
  local n = put_dims("as_strided", shape, 1, #shape, 0)
  for i = 1, n do strides_buffer[i - 1] = args.integer("as_strided: stride", stride[i]) end
  if offset ~= nil then args.integer("as_strided: offset", offset) end
  local out = new()
  check(C.mc_as_strided(out.h, t.h, n, dims, strides_buffer, offset or 0), t)
  return out
end

-- -- copies and conversions -----------------------------------------------------------------------

local function copy_shape_to_dims(t)
  local n, p = C.mc_tensor_ndim(t.h), C.mc_tensor_shape(t.h)
  for i = 0, n - 1 do dims[i] = p[i] end
  return n
end

local function converted(t, dtype, device)
  local out = empty(dtype, device, copy_shape_to_dims(t))
  local st = C.mc_copy(out.h, t.h)
  if st ~= 0 then failed(st, "mc_copy", out, t) end
  local group = rawget(t, "group")
  if group then
    out.group = { index = group.index, count = group.count, role = group.role, layer = group.layer }
  end
  return out
end

local CLONE = { name = "clone", backward = function(_, g) return g end }
local TO = { name = "to", backward = function(node, g) return g:to { dtype = node.dtype, device = node.device } end }

--- A contiguous copy with its own memory.
function T.clone(t)
  want_tensor("clone", t)
  local out = converted(t, C.mc_tensor_dtype(t.h), C.mc_tensor_device(t.h))
  if tape.on and t.rg then record(out, CLONE, t) end
  return out
end

--- t itself when it is contiguous, else a contiguous copy.
function T.contiguous(t)
  want_tensor("contiguous", t)
  if C.mc_tensor_is_contiguous(t.h) ~= 0 then return t end
  return T.clone(t)
end

--- t:to("bfloat16"), t:to("cuda"), t:to{dtype =, device =}; t itself when nothing changes. Casts round to
-- nearest even from the source.
function T.to(t, target)
  want_tensor("to", t)
  local dtype, device = C.mc_tensor_dtype(t.h), C.mc_tensor_device(t.h)
  local to_dtype, to_device = dtype, device
  if type(target) == "table" then
    local o = args.options("to", target, { dtype = { "string" }, device = { "string" } })
    if o.dtype then to_dtype = parse_dtype("to", o.dtype) end
    if o.device then to_device = parse_device("to", o.device) end
  elseif dtype_code[target] then
    to_dtype = dtype_code[target]
  else
    if type(target) ~= "string" then raise(("to: wanted a dtype or a device, got %s"):format(show(target))) end
    to_device = parse_device("to", target)
  end
  if to_dtype == dtype and to_device == device then return t end
  local out = converted(t, to_dtype, to_device)
  if tape.on and t.rg then
    local node = record(out, TO, t)
    node.dtype, node.device = dtype_name[dtype], device_name[device]
  end
  return out
end
function T.cpu(t) return T.to(t, "cpu") end
function T.cuda(t) return T.to(t, "cuda") end

--- The same memory outside the graph.
function T.detach(t)
  want_tensor("detach", t)
  local out = new()
  check(C.mc_alias(out.h, t.h), t)
  out.group = rawget(t, "group")
  return out
end

--- Raises when t may not be written in place: a leaf that requires a gradient, while recording.
function M.want_writable(what, t)
  want_tensor(what, t)
  if tape.on and t.rg and not t.node then
    raise(("%s: the tensor is a leaf that requires a gradient; write to it inside mc.no_grad"):format(what))
  end
  return t
end
local want_writable = M.want_writable

local function copy_backward(node, g)
  return g:_sum_to(node.shape):to { dtype = node.dtype, device = node.device }
end
local COPY = { name = "copy_", backward = copy_backward }

--- t:copy_(u): u broadcast, converted and moved into t's memory. Returns t.
function T.copy_(t, u)
  want_writable("copy_", t)
  want_tensor("copy_", u)
  local recording = tape.on and (u.rg or t.rg)
  if recording then M.want_rebase("copy_", t) end
  check(C.mc_copy(t.h, u.h), t, u)
  if recording then
    local node = record(t, COPY, u)
    node.shape, node.dtype, node.device = u:shape(), u.dtype, u.device
  end
  return t
end

local FILL = { name = "fill_", backward = function() end }
--- Records that t's values no longer depend on what it was: fill(t, ...) overwrites all of it.
function M.overwrite(what, t, fill, ...)
  want_writable(what, t)
  local recording = tape.on and t.rg
  if recording then M.want_rebase(what, t) end
  check(fill(t.h, ...), t)
  if recording then record(t, FILL) end
  return t
end

--- t:fill_(v): every element v. Returns t.
function T.fill_(t, v)
  if type(v) == "boolean" then v = v and 1 or 0 end
  if type(v) ~= "number" then raise(("fill_: wanted a number, got %s"):format(show(v))) end
  return M.overwrite("fill_", t, C.mc_fill, v)
end
function T.zero_(t) return T.fill_(t, 0) end

--- Raises unless an in-place write to t can be recorded: t gets a new node, of which nobody who shares its memory
-- would know. Backward raises for views of t that were taken before.
function M.want_rebase(what, t)
  local sharing = C.mc_tensor_sharing(t.h)
  if sharing % 2 == C.MC_IS_VIEW then
    raise(("%s: the tensor is a view; a write that gradients flow through would not reach the tensor that it is a "
      .. "view of; use the out-of-place form"):format(what))
  elseif sharing >= C.MC_HAS_VIEWS and not t.rg then
    raise(("%s: there are views of the tensor, which a write that gradients flow through would not reach; use the "
      .. "out-of-place form"):format(what))
  end
  if t.node then t.node.rewritten = what end
end

--- Takes over another tensor's memory in the same object (assign = true of load_state_dict).
function T._adopt(t, other)
  C.mc_tensor_release(t.h)
  check(C.mc_alias(t.h, other.h), other)
  C.mc_tensor_bump_version(t.h)
end

return M
