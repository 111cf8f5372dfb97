--- Making tensors from numbers and reading numbers from tensors.
local ffi = require "ffi"
local lib = require "mascon.lib"
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"

local C, check = lib.C, lib.check
local raise, show = args.raise, args.show
local is_tensor, want_tensor = tensor.is_tensor, tensor.want_tensor
local parse_dtype, parse_shape = tensor.parse_dtype, tensor.parse_shape
local parse_device = tensor.parse_device_or_default
local dtype_name, dtype_code, dims = tensor.dtype_name, tensor.dtype_code, tensor.dims
local empty = tensor.empty_dims

local M = {} -- functions of mc
local T = tensor.methods

-- -- creation ------------------------------------------------------------------------------------

local creation_spec = {
  dtype = { "string" }, device = { "string" }, requires_grad = { "boolean", false },
}
local function creation(what, opts, default_dtype)
  if opts == nil then
    return dtype_code[default_dtype or "float32"], parse_device(what, nil), false
  end
  local o = args.options(what, opts, creation_spec)
  return parse_dtype(what, o.dtype or default_dtype or "float32"), parse_device(what, o.device), o.requires_grad
end
M.creation = creation

local function ready(t, requires_grad)
  if requires_grad then T.requires_grad_(t, true) end
  return t
end

M.ready = ready

local function filled(what, value, ...)
  local n, opts = parse_shape(what, 0, ...)
  local dtype, device, rg = creation(what, opts)
  local t = empty(dtype, device, n)
  if value then check(C.mc_fill(t.h, value)) end
  return ready(t, rg)
end

--- mc.empty|zeros|ones(n1, n2, ..., opts) or ({n1, ...}, opts). opts: dtype = "float32", device (default:
-- mc.get_default_device()), requires_grad.
function M.empty(...) return filled("empty", nil, ...) end
function M.zeros(...) return filled("zeros", 0, ...) end
function M.ones(...) return filled("ones", 1, ...) end
--- mc.full({n1, ...}, value, opts)
function M.full(shape, value, opts)
  if type(value) == "boolean" then value = value and 1 or 0 end
  if type(shape) ~= "table" or type(value) ~= "number" then
    raise("full: wanted full({n1, n2, ...}, number, options)")
  end
  return filled("full", value, shape, opts)
end

local like_spec = { dtype = { "string" }, device = { "string" }, requires_grad = { "boolean" } }
-- Same shape, dtype and device as t unless opts say else. value: nil leaves the memory as it is.
local function like(what, t, value, opts)
  want_tensor(what, t)
  local o = args.options(what, opts, like_spec)
  return filled(what, value, t:shape(), {
    dtype = o.dtype or t.dtype, device = o.device or t.device, requires_grad = o.requires_grad,
  })
end
function M.empty_like(t, opts) return like("empty_like", t, nil, opts) end
function M.zeros_like(t, opts) return like("zeros_like", t, 0, opts) end
function M.ones_like(t, opts) return like("ones_like", t, 1, opts) end
function M.full_like(t, value, opts)
  if type(value) == "boolean" then value = value and 1 or 0 end
  return like("full_like", t, args.number("full_like: value", value), opts)
end
function T.new_full(t, value) return M.full_like(t, value) end

function autograd.zeros_of(token)
  return M.zeros(token.shape, { dtype = token.dtype, device = token.device })
end

--- mc.arange(n): 0 .. n-1; mc.arange(a, b, step): a, a + step, ... below b. Default dtype float32.
function M.arange(a, b, step, opts)
  if type(b) == "table" then b, opts = nil, b end
  if type(step) == "table" then step, opts = nil, step end
  if b == nil then a, b = 0, a end
  step = step or 1
  if type(a) ~= "number" or type(b) ~= "number" or type(step) ~= "number" or step == 0 then
    raise("arange: wanted arange(n) or arange(first, last, step) with step not 0")
  end
  local dtype, device, rg = creation("arange", opts)
  local n = math.ceil((b - a) / step)
  if not args.is_integer(n) then
    raise(("arange: from %s to %s in steps of %s are %s numbers"):format(a, b, step, n))
  end
  dims[0] = math.max(0, n)
  local t = empty(dtype, device, 1)
  check(C.mc_arange(t.h, a, step))
  return ready(t, rg)
end

-- Sizes of a nested table, checked to be a full box; numbers are collected row-major into `flat`.
local function gather(what, v, shape, depth, flat)
  if type(v) == "number" or type(v) == "boolean" then
    if depth ~= #shape then
      raise(("%s: the nested table is ragged: a number at depth %d, wanted %d"):format(what, depth, #shape))
    end
    if type(v) == "boolean" then v = v and 1 or 0 end
    flat[#flat + 1] = v
  elseif type(v) == "table" and not is_tensor(v) then
    if depth == #shape or #v ~= shape[depth + 1] then
      raise(("%s: the nested table is ragged: %d entries at depth %d, wanted %s"):format(what, #v, depth + 1,
        depth == #shape and "a number" or tostring(shape[depth + 1])))
    end
    for i = 1, #v do gather(what, v[i], shape, depth + 1, flat) end
  else
    raise(("%s: wanted numbers, got %s"):format(what, show(v)))
  end
end

-- What integer dtypes hold; 2^63 - 1024 is the largest double below 2^63.
local RANGE = { uint8 = { 0, 255 }, int32 = { -2 ^ 31, 2 ^ 31 - 1 }, int64 = { -2 ^ 63, 2 ^ 63 - 1024 } }

--- mc.tensor(nested_table_or_number, opts): default dtype float32 (bool for booleans).
function M.tensor(v, opts)
  local shape, probe = {}, v
  while type(probe) == "table" and not is_tensor(probe) do
    shape[#shape + 1] = #probe
    probe = probe[1]
  end
  local flat = {}
  gather("tensor", v, shape, 0, flat)
  local dtype, device, rg = creation("tensor", opts, type(probe) == "boolean" and "bool" or nil)
  parse_shape("tensor", 0, shape)
  local t = empty(dtype, device, #shape)
  local n = #flat
  local src = ffi.new("double[?]", math.max(n, 1))
  local range = RANGE[dtype_name[dtype]]
  for i = 1, n do
    if range and not (flat[i] == math.floor(flat[i]) and flat[i] >= range[1] and flat[i] <= range[2]) then
      raise(("tensor: %s does not fit a tensor of %s"):format(tostring(flat[i]), dtype_name[dtype]))
    end
    src[i - 1] = flat[i]
  end
  local size = C.mc_dtype_size(dtype) * n
  local raw = ffi.new("uint8_t[?]", math.max(size, 1))
  check(C.mc_convert(raw, dtype, src, dtype_code.float64, n))
  check(C.mc_write(t.h, raw, size))
  return ready(t, rg)
end

-- -- reading -------------------------------------------------------------------------------------

local EXACT = 2LL ^ 53
local int64_pointer = ffi.typeof "int64_t *"

-- Element i of a host buffer that was converted to double (or is int64) as a Lua value.
local function to_value(what, buffer, i, kind, as_int64)
  local v = buffer[i]
  if kind == "bool" then return v ~= 0 end
  if kind == "int64" then
    if as_int64 then return v end
    if v > EXACT or v < -EXACT then
      raise(("%s: %s is beyond 2^53 and is no Lua number; ask with {int64 = true}"):format(what, tostring(v)))
    end
    return tonumber(v)
  end
  return v
end

local function host_values(what, t)
  local n, dtype = t:numel(), C.mc_tensor_dtype(t.h)
  local dense = t:is_contiguous() and t or autograd.no_grad(t.contiguous, t)
  local bytes = C.mc_dtype_size(dtype) * n
  local raw = ffi.new("uint8_t[?]", math.max(bytes, 8))
  check(C.mc_read(dense.h, raw, bytes), t)
  if dtype == dtype_code.int64 then
    return ffi.cast(int64_pointer, raw), "int64", raw
  end
  local out = ffi.new("double[?]", math.max(n, 1))
  check(C.mc_to_numbers(out, raw, dtype, n))
  return out, dtype == dtype_code.bool and "bool" or "number", raw, what
end

local read_spec = { int64 = { "boolean", false } }

--- The one element of t as a number or boolean. Integers beyond 2^53 raise unless {int64 = true}.
function T.item(t, opts)
  want_tensor("item", t)
  if t:numel() ~= 1 then
    raise(("item: wanted a tensor of one element, got shape [%s]"):format(table.concat(t:shape(), ", ")))
  end
  local buffer, kind, raw = host_values("item", t)
  local v = to_value("item", buffer, 0, kind, opts and args.options("item", opts, read_spec).int64)
  return raw and v -- raw lives until here
end

--- Nested tables of numbers (booleans for bool); the bare value of a 0-d tensor.
function T.totable(t, opts)
  want_tensor("totable", t)
  local as_int64 = opts and args.options("totable", opts, read_spec).int64
  local buffer, kind, raw = host_values("totable", t)
  local shape, next_one = t:shape(), 0
  local function build(depth)
    if depth > #shape then
      next_one = next_one + 1
      return to_value("totable", buffer, next_one - 1, kind, as_int64)
    end
    local out = {}
    for i = 1, shape[depth] do out[i] = build(depth + 1) end
    return out
  end
  local out = build(1)
  return raw and out
end

return M
