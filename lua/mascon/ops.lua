--- Arithmetic on tensors, with its derivatives: elementwise, reductions, products, indexing.
--
-- An op is a C call and a table {name =, backward = fn(node, g)} that gives the gradients of its inputs in
-- order. Gradients of broadcast operands are summed back to their shapes (`_sum_to`).
local ffi = require "ffi"
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"

local C, check, failed = lib.C, lib.check, lib.failed
local raise, show = args.raise, args.show
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save
local Tensor, T = tensor.metatable, tensor.methods
local want_tensor, to_axis = tensor.want_tensor, tensor.to_axis

local M = {} -- functions of mc

local function operand_error(name, v)
  raise(("%s: wanted a tensor or a number, got %s"):format(name, show(v)))
end

-- -- broadcasting backwards ------------------------------------------------------------------------

local axes_buffer = ffi.new "int64_t[8]"

--- g summed over the axes along which `shape` was broadcast to g's shape.
function T._sum_to(g, shape)
  local own = g:shape()
  local extra = #own - #shape
  local n = 0
  for i = 1, #own do
    local want = i <= extra and 1 or shape[i - extra]
    if own[i] ~= want then
      axes_buffer[n] = i - 1
      n = n + 1
    end
  end
  if n == 0 and extra == 0 then return g end
  local out = g
  if n > 0 then
    out = new()
    local st = C.mc_sum(out.h, g.h, n, axes_buffer, 1)
    if st ~= 0 then failed(st, "mc_sum", out, g, n, axes_buffer, 1) end
  end
  if extra > 0 then out = out:view(shape) end
  return out
end

-- The shape of t when it differs from out's: what _sum_to needs later.
local function broadcast_shape(t, out)
  if C.mc_tensor_same_shape(t.h, out.h) == 0 then
    return t:shape()
  end
  return nil
end

-- -- two operands -------------------------------------------------------------------------------------

--- Defines T[name](a, b) and mc[name](a, b) over mc_<name> and mc_<name>_scalar. Either operand may be a number.
-- spec.backward(node, g) -> da, db for two tensors; spec.scalar(node, g) -> da, with node.s and node.reverse.
-- spec.save: which operands the derivative needs, "a", "b", "ab", or "" for none; spec.out: the result too.
-- A spec without derivatives (comparisons) is never recorded.
-- The C functions are named in the source text of each op so that calls compile to direct ones.
local binary_source = [[
local C, new, tape, record, save, failed, Tensor, operand_error, broadcast_shape, PAIR, SCALAR, SAVES = ...
local save_a, save_b, save_out, differentiable = SAVES.a, SAVES.b, SAVES.out, SAVES.differentiable
return function(a, b)
  local mt = getmetatable(a)
  if getmetatable(b) == Tensor then
    if mt == Tensor then
      local out = new()
      local st = C.mc_NAME(out.h, a.h, b.h)
      if st ~= 0 then failed(st, "mc_NAME", out, a, b) end
      if differentiable and tape.on and (a.rg or b.rg) then
        local node = record(out, PAIR, a, b)
        node.sa, node.sb = broadcast_shape(a, out), broadcast_shape(b, out)
        if save_a then node.a = save(node, a) end
        if save_b then node.b = save(node, b) end
        if save_out then node.out = save(node, out) end
      end
      return out
    end
    if type(a) ~= "number" then operand_error("NAME", a) end
    local out = new()
    local st = C.mc_NAME_scalar(out.h, b.h, a, 1)
    if st ~= 0 then failed(st, "mc_NAME_scalar", out, b, a, 1) end
    if differentiable and tape.on and b.rg then
      local node = record(out, SCALAR, b)
      node.s, node.reverse = a, true
      if SAVES.scalar then node.a = save(node, b) end
      if save_out then node.out = save(node, out) end
    end
    return out
  end
  if mt ~= Tensor then operand_error("NAME", a) end
  if type(b) ~= "number" then operand_error("NAME", b) end
  local out = new()
  local st = C.mc_NAME_scalar(out.h, a.h, b, 0)
  if st ~= 0 then failed(st, "mc_NAME_scalar", out, a, b, 0) end
  if differentiable and tape.on and a.rg then
    local node = record(out, SCALAR, a)
    node.s, node.reverse = b, false
    if SAVES.scalar then node.a = save(node, a) end
    if save_out then node.out = save(node, out) end
  end
  return out
end
]]

local function sum_pair(node, ga, gb)
  if ga and node.sa then ga = ga:_sum_to(node.sa) end
  if gb and node.sb then gb = gb:_sum_to(node.sb) end
  return ga, gb
end

local function define_binary(name, spec)
  local pair = { name = name }
  local scalar = { name = name, backward = spec.scalar }
  if spec.backward then
    function pair.backward(node, g)
      return sum_pair(node, spec.backward(node, g, node[1], node[2]))
    end
  end
  local saves = {
    a = (spec.save or ""):find("a", 1, true) ~= nil, b = (spec.save or ""):find("b", 1, true) ~= nil,
    out = spec.out or false, scalar = spec.scalar_saves or false, differentiable = spec.backward ~= nil,
  }
  local source = binary_source:gsub("NAME", name)
  local fn = assert(loadstring(source, "@" .. debug.getinfo(1, "S").source:sub(2)))(C, new, tape, record, save, failed,
    Tensor, operand_error, broadcast_shape, pair, scalar, saves)
  T[name] = fn
  M[name] = fn
  return fn, pair, scalar
end

-- maximum ("gt") and minimum ("lt"): the winner takes the gradient; equal operands get half each, as in PyTorch.
local function extreme(wins)
  local function share(a, b, g) return a[wins](a, b):to(g.dtype) + a:eq(b):to(g.dtype) * 0.5 end
  return {
    save = "ab",
    scalar_saves = true,
    backward = function(node, g) return g * share(node.a, node.b, g), g * share(node.b, node.a, g) end,
    scalar = function(node, g) return g * share(node.a, node.s, g) end,
  }
end

local arithmetic = {
  add = {
    backward = function(_, g) return g, g end,
    scalar = function(_, g) return g end,
  },
  sub = {
    backward = function(_, g, _, eb) return g, eb and -g end,
    scalar = function(node, g) return node.reverse and -g or g end,
  },
  mul = {
    save = "ab",
    backward = function(node, g, ea, eb) return ea and g * node.b, eb and g * node.a end,
    scalar = function(node, g) return g * node.s end,
  },
  div = {
    save = "ab",
    scalar_saves = true,
    backward = function(node, g, ea, eb)
      local ga = g / node.b
      return ea and ga, eb and -(ga * node.a / node.b)
    end,
    scalar = function(node, g)
      if node.reverse then return -(g * node.s / (node.a * node.a)) end
      return g / node.s
    end,
  },
  pow = {
    save = "ab",
    out = true,
    scalar_saves = true,
    -- x^0 is flat everywhere and 0^y for y >= 0 has no slope in y, as in PyTorch: no 0 * inf
    backward = function(node, g, ea, eb)
      local a, b = node.a, node.b
      local ga = ea and M.where(b:eq(0), 0, g * b * a:pow(b - 1))
      local gb = eb and g * node.out * a:log()
      return ga, gb and M.where(a:eq(0), M.where(b:ge(0), 0, gb), gb)
    end,
    scalar = function(node, g)
      if node.reverse then
        local ga = g * node.out * math.log(node.s)
        return node.s == 0 and M.where(node.a:ge(0), 0, ga) or ga
      end
      if node.s == 0 then return g:new_full(0) end
      return g * node.a:pow(node.s - 1) * node.s
    end,
  },
  maximum = extreme "gt",
  minimum = extreme "lt",
}

local pairs_of, scalars_of = {}, {}
for name, spec in pairs(arithmetic) do
  local _, pair, scalar = define_binary(name, spec)
  pairs_of[name], scalars_of[name] = pair, scalar
end
for _, name in ipairs { "eq", "ne", "lt", "le", "gt", "ge" } do
  define_binary(name, {})
end

Tensor.__add, Tensor.__sub, Tensor.__mul, Tensor.__div, Tensor.__pow = T.add, T.sub, T.mul, T.div, T.pow
function Tensor.__lt() raise("tensors have no order; compare elements with a:lt(b), a:gt(b) ...") end
Tensor.__le = Tensor.__lt

--- a:add_(b), sub_, mul_, div_: in place; b is a tensor that broadcasts to a's shape, or a number. Returns a.
for _, name in ipairs { "add", "sub", "mul", "div" } do
  local what, pair, scalar = name .. "_", pairs_of[name], scalars_of[name]
  local c_name, c_scalar = "mc_" .. name, "mc_" .. name .. "_scalar"
  local saves = arithmetic[name].save
  T[what] = function(a, b)
    tensor.want_writable(what, a)
    local is_number = type(b) == "number"
    if not is_number then want_tensor(what, b) end
    local recording = tape.on and (a.rg or (not is_number and b.rg))
    local old, before
    if recording then
      tensor.want_rebase(what, a)
      old = { node = a.node, rg = false } -- a as an input: what made it until now
      if saves or arithmetic[name].scalar_saves then before = autograd.no_grad(a.clone, a) end
    end
    local st
    if is_number then st = C[c_scalar](a.h, a.h, b, 0) else st = C[c_name](a.h, a.h, b.h) end
    if st ~= 0 then lib.raise_last(a, b) end
    if recording then
      local node = record(a, is_number and scalar or pair, old, not is_number and b or nil)
      if is_number then
        node.s, node.reverse = b, false
        if arithmetic[name].scalar_saves then node.a = save(node, before) end
      else
        node.sb = broadcast_shape(b, a)
        if saves then node.a, node.b = save(node, before), save(node, b) end
      end
    end
    return a
  end
end

-- -- one operand --------------------------------------------------------------------------------------

local unary_source = [[
local C, new, tape, record, save, failed, want_tensor, OP, keep_in, keep_out = ...
return function(a)
  want_tensor("NAME", a)
  local out = new()
  local st = C.mc_NAME(out.h, a.h)
  if st ~= 0 then failed(st, "mc_NAME", out, a) end
  if OP.backward and tape.on and a.rg then
    local node = record(out, OP, a)
    if keep_in then node.a = save(node, a) end
    if keep_out then node.out = save(node, out) end
  end
  return out
end
]]

local function c_backward(name)
  return function(node, g)
    local dx = new()
    local st = C[name](dx.h, g.h, node.a.h)
    if st ~= 0 then failed(st, name, dx, g, node.a) end
    return dx
  end
end

-- name -> {derivative, "in" | "out": what it needs}
local unary = {
  neg = { function(_, g) return -g end },
  abs = { function(node, g) return g * node.a:sign() end, "in" },
  sign = {}, floor = {}, ceil = {}, round = {}, isnan = {}, isfinite = {}, logical_not = {},
  exp = { function(node, g) return g * node.out end, "out" },
  log = { function(node, g) return g / node.a end, "in" },
  sqrt = { function(node, g) return g * 0.5 / node.out end, "out" },
  rsqrt = { function(node, g) return g * (node.out * node.out * node.out) * -0.5 end, "out" },
  sin = { function(node, g) return g * node.a:cos() end, "in" },
  cos = { function(node, g) return -(g * node.a:sin()) end, "in" },
  tanh = { function(node, g) return g * (1 - node.out * node.out) end, "out" },
  sigmoid = { function(node, g) return g * (node.out * (1 - node.out)) end, "out" },
  relu = { c_backward "mc_relu_backward", "in" },
  gelu = { c_backward "mc_gelu_backward", "in" },
  silu = { c_backward "mc_silu_backward", "in" },
  swiglu = { c_backward "mc_swiglu_backward", "in" },
}
for name, spec in pairs(unary) do
  local op = { name = name, backward = spec[1] }
  local source = unary_source:gsub("NAME", name)
  local fn = assert(loadstring(source, "@" .. debug.getinfo(1, "S").source:sub(2)))(C, new, tape, record, save, failed,
    want_tensor, op, spec[2] == "in", spec[2] == "out")
  T[name], M[name] = fn, fn
end
Tensor.__unm = T.neg

local CLAMP = {
  name = "clamp",
  backward = function(node, g)
    local a = node.a
    return g * (a:ge(node.low):to(g.dtype) * a:le(node.high):to(g.dtype))
  end,
}
--- t:clamp(low, high): either may be nil. NaN stays.
function T.clamp(t, low, high)
  want_tensor("clamp", t)
  low, high = args.number("clamp: low", low or -math.huge), args.number("clamp: high", high or math.huge)
  local out = new()
  local st = C.mc_clamp(out.h, t.h, low, high)
  if st ~= 0 then failed(st, "mc_clamp", out, t, low, high) end
  if tape.on and t.rg then
    local node = record(out, CLAMP, t)
    node.a, node.low, node.high = save(node, t), low, high
  end
  return out
end

local WHERE = {
  name = "where",
  backward = function(node, g)
    local zero = autograd.zeros_of { shape = {}, dtype = g.dtype, device = g.device }
    local ga = node[1] and M.where(node.condition, g, zero)
    local gb = node[2] and M.where(node.condition, zero, g)
    return sum_pair(node, ga, gb)
  end,
}
--- mc.where(condition, a, b): a where condition (bool) holds, else b; all broadcast. a and b may be numbers.
function M.where(condition, a, b)
  want_tensor("where", condition)
  local like = type(a) == "table" and a or b
  want_tensor("where", like)
  local function lift(v)
    if type(v) ~= "number" then return want_tensor("where", v) end
    return autograd.zeros_of({ shape = {}, dtype = like.dtype, device = like.device }):fill_(v)
  end
  a, b = lift(a), lift(b)
  local out = new()
  local st = C.mc_where(out.h, condition.h, a.h, b.h)
  if st ~= 0 then failed(st, "mc_where", out, condition, a, b) end
  if tape.on and (a.rg or b.rg) then
    local node = record(out, WHERE, a, b)
    node.sa, node.sb = broadcast_shape(a, out), broadcast_shape(b, out)
    node.condition = save(node, condition)
  end
  return out
end

-- -- matrix products ------------------------------------------------------------------------------------

-- Swaps the last two axes; a vector counts as a matrix with one row or column.
local function matrix_t(t) return t:transpose(-1, -2) end

local MATMUL = {
  name = "matmul",
  backward = function(node, g)
    local a, b = node.a, node.b
    local da, db = a:dim(), b:dim()
    if da == 1 then a = a:unsqueeze(1); g = g:unsqueeze(db == 1 and 1 or -2) end
    if db == 1 then b = b:unsqueeze(2); g = g:unsqueeze(-1) end
    local ga, gb
    if node[1] then
      ga = M.matmul(g, matrix_t(b)):_sum_to(a:shape())
      if da == 1 then ga = ga:squeeze(1) end
    end
    if node[2] then
      gb = M.matmul(matrix_t(a), g):_sum_to(b:shape())
      if db == 1 then gb = gb:squeeze(2) end
    end
    return ga, gb
  end,
}
--- mc.matmul(a, b): [.., m, k] x [.., k, n] -> [.., m, n]; batch sizes broadcast; vectors as in PyTorch.
function M.matmul(a, b)
  want_tensor("matmul", a)
  want_tensor("matmul", b)
  local out = new()
  local st = C.mc_matmul(out.h, a.h, b.h)
  if st ~= 0 then failed(st, "mc_matmul", out, a, b) end
  if tape.on and (a.rg or b.rg) then
    local node = record(out, MATMUL, a, b)
    node.a, node.b = save(node, a), save(node, b)
  end
  return out
end
T.matmul = M.matmul

-- -- indexing ---------------------------------------------------------------------------------------------

local function scatter_back(name)
  return function(node, g)
    local dx = autograd.zeros_of(node.like)
    check(C[name](dx.h, g:contiguous().h, node.axis, node.index.h))
    return dx
  end
end
local INDEX_SELECT = { name = "index_select", backward = scatter_back "mc_index_add" }
local GATHER = { name = "gather", backward = scatter_back "mc_scatter_add" }

local function indexed(what, op, c_name, t, axis, index)
  want_tensor(what, t)
  want_tensor(what, index)
  local a = to_axis(what, t, axis)
  local out = new()
  local st = C[c_name](out.h, t.h, a, index.h)
  if st ~= 0 then failed(st, c_name, out, t, a, index) end
  if tape.on and t.rg then
    local node = record(out, op, t)
    node.like = autograd.like(t)
    node.axis, node.index = a, save(node, index)
  end
  return out
end

--- t:index_select(axis, index): positions given by an int32 or int64 tensor of 0-based indices. On axis 1 the
-- index may have any shape: an embedding.
function T.index_select(t, axis, index)
  return indexed("index_select", INDEX_SELECT, "mc_index_select", t, axis, index)
end
--- t:gather(axis, index): as torch.gather; index holds 0-based positions.
function T.gather(t, axis, index) return indexed("gather", GATHER, "mc_gather", t, axis, index) end

-- -- joining ------------------------------------------------------------------------------------------------

--- mc.cat(list, axis): joins along an existing axis (default 1). Shapes agree on all other axes.
function M.cat(list, axis)
  if type(list) ~= "table" or #list == 0 or tensor.is_tensor(list) then
    raise("cat: wanted a list of at least one tensor, got " .. show(list))
  end
  local first = want_tensor("cat", list[1])
  local a = to_axis("cat", first, axis or 1) + 1
  local shape, total, needs = first:shape(), 0, false
  for i, t in ipairs(list) do
    want_tensor("cat", t)
    local own = t:shape()
    local fits = #own == #shape and t.dtype == first.dtype
    for d = 1, fits and #own or 0 do fits = fits and (d == a or own[d] == shape[d]) end
    if not fits then
      raise(("cat: tensor %d is %s [%s], tensor 1 is %s [%s]; they join along axis %d"):format(i, t.dtype,
        table.concat(own, ", "), first.dtype, table.concat(first:shape(), ", "), a))
    end
    total = total + own[a]
    needs = needs or t.rg
  end
  shape[a] = total
  local out = autograd.zeros_of { shape = shape, dtype = first.dtype, device = first.device }
  local sizes = {}
  autograd.no_grad(function()
    local at = 1
    for i, t in ipairs(list) do
      sizes[i] = t:size(a)
      out:narrow(a, at, sizes[i]):copy_(t)
      at = at + sizes[i]
    end
  end)
  if tape.on and needs then
    local node = autograd.record_many({ out }, M.CAT, list)
    node.sizes, node.axis = sizes, a
  end
  return out
end
M.CAT = {
  name = "cat",
  backward = function(node, grads)
    local g, at, out = grads[1], 1, {}
    for i, n in ipairs(node.sizes) do
      out[i] = node[i] and g:narrow(node.axis, at, n)
      at = at + n
    end
    return unpack(out, 1, #node.sizes)
  end,
}

--- mc.stack(list, axis): joins along a new axis (default 1).
function M.stack(list, axis)
  if type(list) ~= "table" or #list == 0 or tensor.is_tensor(list) then
    raise("stack: wanted a list of at least one tensor, got " .. show(list))
  end
  local lifted = {}
  for i, t in ipairs(list) do
    lifted[i] = want_tensor("stack", t):unsqueeze(axis or 1)
  end
  return M.cat(lifted, axis or 1)
end

-- -- comparing ------------------------------------------------------------------------------------------------

local equal_out = ffi.new "int[1]"
--- mc.equal(a, b): shape, dtype and bits are equal (a NaN equals the same NaN, -0 differs from 0).
function M.equal(a, b)
  want_tensor("equal", a)
  want_tensor("equal", b)
  check(C.mc_equal(a.h, b.h, equal_out), a, b)
  return equal_out[0] ~= 0
end

--- mc.allclose(a, b, {rtol = 1e-5, atol = 1e-8}): |a - b| <= atol + rtol |b| everywhere; shapes broadcast.
function M.allclose(a, b, opts)
  want_tensor("allclose", a)
  want_tensor("allclose", b)
  local o = args.options("allclose", opts, {
    rtol = { "number", 1e-5 }, atol = { "number", 1e-8 }, equal_nan = { "boolean", false },
  })
  return autograd.no_grad(function()
    local x, y = a:to("float64"), b:to("float64")
    local close = ((x - y):abs() - y:abs() * o.rtol):le(o.atol):to("float64"):maximum(x:eq(y):to("float64"))
    if o.equal_nan then
      close = close:maximum(x:isnan():to("float64") * y:isnan():to("float64"))
    end
    return close:sum():item() == close:numel()
  end)
end

return M
