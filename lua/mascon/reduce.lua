--- Reductions and what is ranked along an axis: sum, mean, max, argmax, topk, softmax.
--
-- `axis` is a 1-based (or negative) number, a table of them, or nil for all; `keepdim` keeps reduced axes with
-- size 1. Positions that come back in tensors (argmax, topk) are 0-based data.
local ffi = require "ffi"
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"

local C, failed = lib.C, lib.failed
local raise, show = args.raise, args.show
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save
local T = tensor.methods
local want_tensor, to_axis = tensor.want_tensor, tensor.to_axis

local M = {} -- functions of mc

local axes_buffer = ffi.new "int64_t[8]"

-- Fills axes_buffer; returns how many (0: all) and the input's shape with reduced sizes set to 1.
local function parse_axes(what, t, axis)
  local kept = t:shape()
  if axis == nil then
    for i = 1, #kept do kept[i] = 1 end
    return 0, kept
  end
  local list = type(axis) == "table" and axis or { axis }
  local seen = {}
  if #list == 0 then raise(what .. ": an empty list of axes; leave it out to reduce all") end
  for i = 1, #list do
    local a = to_axis(what, t, list[i])
    if seen[a] then raise(("%s: axis %d is given twice"):format(what, a + 1)) end
    seen[a] = true
    axes_buffer[i - 1] = a
    kept[a + 1] = 1
  end
  return #list, kept
end

local function reduce(what, op, t, axis, keepdim)
  want_tensor(what, t)
  if keepdim ~= nil and type(keepdim) ~= "boolean" then
    raise(("%s: keepdim is %s, wanted true or false"):format(what, show(keepdim)))
  end
  local n, kept = parse_axes(what, t, axis)
  local out, name = new(), "mc_" .. what
  local st = C[name](out.h, t.h, n, axes_buffer, keepdim and 1 or 0)
  if st ~= 0 then failed(st, name, out, t, n, axes_buffer, keepdim and 1 or 0) end
  if op and tape.on and t.rg then
    local node = record(out, op, t)
    node.shape, node.kept = t:shape(), kept
    if op.keep then node.a, node.out = save(node, t), save(node, out) end
  end
  return out
end

local function count(node)
  local n = 1
  for i, size in ipairs(node.shape) do
    if node.kept[i] == 1 then n = n * size end
  end
  return n
end

local SUM = {
  name = "sum",
  backward = function(node, g) return g:reshape(node.kept):expand(node.shape) end,
}
local MEAN = {
  name = "mean",
  backward = function(node, g) return (g:reshape(node.kept) / count(node)):expand(node.shape) end,
}
-- Equal extremes share the gradient evenly.
local EXTREME = {
  name = "max",
  keep = true,
  backward = function(node, g)
    local hit = node.a:eq(node.out:reshape(node.kept)):to(g.dtype)
    local axes = {}
    for i in ipairs(node.shape) do
      if node.kept[i] == 1 then axes[#axes + 1] = i end
    end
    if #axes == 0 then return g:reshape(node.kept) end
    return hit * (g:reshape(node.kept) / hit:sum(axes, true))
  end,
}
local PROD = {
  name = "prod",
  keep = true,
  backward = function(node, g) return (g * node.out):reshape(node.kept) / node.a end,
}

--- t:sum(axis, keepdim): integers and bool give int64.
function T.sum(t, axis, keepdim) return reduce("sum", SUM, t, axis, keepdim) end
--- t:mean(axis, keepdim): floats only.
function T.mean(t, axis, keepdim) return reduce("mean", MEAN, t, axis, keepdim) end
--- t:prod(axis, keepdim); its gradient divides by the elements, so zeros among them give NaN.
function T.prod(t, axis, keepdim) return reduce("prod", PROD, t, axis, keepdim) end
function T.amax(t, axis, keepdim) return reduce("amax", EXTREME, t, axis, keepdim) end
function T.amin(t, axis, keepdim) return reduce("amin", EXTREME, t, axis, keepdim) end

local function position(what, t, axis, keepdim)
  want_tensor(what, t)
  local flat = axis == nil and t:reshape(-1) or t
  local a = axis == nil and 0 or to_axis(what, t, axis)
  local out, name = new(), "mc_" .. what
  local st = C[name](out.h, flat.h, a, keepdim and 1 or 0)
  if st ~= 0 then failed(st, name, out, flat, a, keepdim and 1 or 0) end
  if axis == nil then return out:view {} end
  return out
end
--- t:argmax(axis, keepdim): int64 0-based positions of the first maximum; without axis, of the flat tensor.
function T.argmax(t, axis, keepdim) return position("argmax", t, axis, keepdim) end
function T.argmin(t, axis, keepdim) return position("argmin", t, axis, keepdim) end

-- Values and positions along one axis; the gradient goes to the position that is given, not to its equals.
local function extreme(what, position_of, t, axis, keepdim)
  want_tensor(what, t)
  local a = to_axis(what, t, axis) + 1
  local positions = position_of(t, a, true)
  local values = t:gather(a, positions)
  if keepdim then return values, positions end
  return values:squeeze(a), positions:squeeze(a)
end

--- t:max(): the largest element; t:max(axis, keepdim): values and their 0-based positions, as in PyTorch. For the
-- values alone, over several axes too: t:amax(axes, keepdim).
function T.max(t, axis, keepdim)
  if axis == nil then return T.amax(t) end
  return extreme("max", T.argmax, t, axis, keepdim)
end
function T.min(t, axis, keepdim)
  if axis == nil then return T.amin(t) end
  return extreme("min", T.argmin, t, axis, keepdim)
end

local CUMSUM = {
  name = "cumsum",
  backward = function(node, g)
    local axis = node.axis
    local total = g:sum(axis, true)
    return total - g:cumsum(axis) + g
  end,
}
--- t:cumsum(axis)
function T.cumsum(t, axis)
  want_tensor("cumsum", t)
  local a = to_axis("cumsum", t, axis)
  local out = new()
  local st = C.mc_cumsum(out.h, t.h, a)
  if st ~= 0 then failed(st, "mc_cumsum", out, t, a) end
  if tape.on and t.rg then record(out, CUMSUM, t).axis = a + 1 end
  return out
end

local TOPK = {
  name = "topk",
  backward = function(node, grads)
    local dx = autograd.zeros_of(node.like)
    lib.check(C.mc_scatter_add(dx.h, grads[1]:contiguous().h, #node.like.shape - 1, node.index.h))
    return dx
  end,
}
--- t:topk(k): the k largest along the last axis, largest first, and their int64 0-based positions; ties go to the
-- lowest position and NaN ranks last.
function T.topk(t, k)
  want_tensor("topk", t)
  args.integer("topk: k", k, 0)
  local values, indices = new(), new()
  local st = C.mc_topk(values.h, indices.h, t.h, k)
  if st ~= 0 then failed(st, "mc_topk", values, indices, t, k) end
  if tape.on and t.rg then
    local node = autograd.record_many({ values, false }, TOPK, { t })
    node.like = autograd.like(t)
    node.index = save(node, indices)
  end
  return values, indices
end

local function along_axis(what)
  local back = "mc_" .. what .. "_backward"
  local op = {
    name = what,
    backward = function(node, g)
      local dx = new()
      local st = C[back](dx.h, g.h, node.out.h, node.axis)
      if st ~= 0 then failed(st, back, dx, g, node.out, node.axis) end
      return dx
    end,
  }
  local name = "mc_" .. what
  return function(t, axis)
    want_tensor(what, t)
    local a = to_axis(what, t, axis or -1)
    local out = new()
    local st = C[name](out.h, t.h, a)
    if st ~= 0 then failed(st, name, out, t, a) end
    if tape.on and t.rg then
      local node = record(out, op, t)
      node.axis, node.out = a, save(node, out)
    end
    return out
  end
end
--- t:softmax(axis), t:log_softmax(axis): axis defaults to the last.
T.softmax = along_axis "softmax"
T.log_softmax = along_axis "log_softmax"

for _, name in ipairs { "sum", "mean", "max", "min", "softmax", "log_softmax", "topk", "argmax" } do
  M[name] = T[name]
end

return M
