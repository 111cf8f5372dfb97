--- functional: linear, embedding, dropout.
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"
local random = require "mascon.random"
local shapes = require "mascon.nn.functional.shapes"

local C, failed = lib.C, lib.failed
local raise = args.raise
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save
local want_tensor = tensor.want_tensor

local M = {}

local function matmul(a, b)
  local out = new()
  local st = C.mc_matmul(out.h, a.h, b.h)
  if st ~= 0 then failed(st, "mc_matmul", out, a, b) end
  return out
end

local LINEAR = {
  name = "linear",
  backward = function(node, g)
    local dy = g:reshape(node.rows, node.features)
    local dx = node[1] and matmul(dy, node.weight):view(node.shape)
    local dw = node[2] and matmul(dy:transpose(1, 2), node.x)
    local db = node[3] and dy:_sum_to { node.features }
    return dx, dw, db
  end,
}

--- y = x W^T + b; the bias is added before the one rounding.
-- @tparam Tensor x [.., K]
-- @tparam Tensor weight [N, K], of x's dtype
-- @tparam[opt] Tensor bias [N]
-- @treturn Tensor [.., N]
-- @raise for inner sizes or dtypes that differ
function M.linear(x, weight, bias)
  want_tensor("linear: x", x)
  want_tensor("linear: weight", weight)
  local shape, w = x:shape(), weight:shape()
  if #w ~= 2 or #shape == 0 or shape[#shape] ~= w[2] then
    raise(("linear: x is [%s] and weight is [%s], wanted [.., K] and [N, K]"):format(table.concat(shape, ", "),
      table.concat(w, ", ")))
  end
  if x.dtype ~= weight.dtype then
    raise(("linear: x is %s and weight is %s; convert one with t:to(\"%s\")"):format(x.dtype, weight.dtype,
      weight.dtype))
  end
  if bias then
    want_tensor("linear: bias", bias)
    if bias:dim() ~= 1 or bias:size(1) ~= w[1] then
      raise(("linear: bias is [%s], wanted [%d]"):format(table.concat(bias:shape(), ", "), w[1]))
    end
  end
  local rows = shapes.rows(shape)
  local flat = #shape == 2 and x or x:detach():reshape(rows, w[2])
  local y = new()
  local st = C.mc_linear(y.h, flat.h, weight.h, bias and bias.h or nil, 0)
  if st ~= 0 then failed(st, "mc_linear", y, flat, weight, bias, 0) end
  if tape.on and (x.rg or weight.rg or (bias and bias.rg)) then
    local node = record(y, LINEAR, x, weight, bias)
    node.x, node.weight = save(node, flat), save(node, weight)
    node.rows, node.features, node.shape = rows, w[1], x:shape()
  end
  if #shape == 2 then return y end
  shape[#shape] = w[1]
  return y:view(shape)
end

--- Rows of a table by token id.
-- @tparam Tensor ids int32 or int64 of any shape, 0-based
-- @tparam Tensor weight [V, d]
-- @treturn Tensor [.., d]
-- @raise for an id that is not in 0 .. V-1: its position, its value and the range
function M.embedding(ids, weight)
  want_tensor("embedding: ids", ids)
  want_tensor("embedding: weight", weight)
  shapes.want_index("embedding: ids", ids)
  if weight:dim() ~= 2 then
    raise(("embedding: weight is [%s], wanted [V, d]"):format(table.concat(weight:shape(), ", ")))
  end
  return weight:index_select(1, ids)
end

local DROPOUT = {
  name = "dropout",
  backward = function(node, g)
    local dx = new()
    local st = C.mc_dropout_backward(dx.h, g.h, node.keep.h, node.p)
    if st ~= 0 then failed(st, "mc_dropout_backward", dx, g, node.keep, node.p) end
    return dx
  end,
}

--- Zeroes elements with probability p and scales the others by 1 / (1 - p) (Srivastava et al. 2014). Draws from the
-- generator of x's device.
-- @tparam Tensor x
-- @tparam[opt=0.5] number p 0 to below 1
-- @tparam[opt=true] boolean training false returns x itself
function M.dropout(x, p, training)
  want_tensor("dropout: x", x)
  p = p == nil and 0.5 or p
  if type(p) ~= "number" or not (p >= 0 and p < 1) then
    raise(("dropout: p is %s, wanted a number of 0 to below 1"):format(args.show(p)))
  end
  if training == false or p == 0 then return x end
  local y, keep = new(), new()
  local state = random.generator(C.mc_tensor_device(x.h))
  local st = C.mc_dropout(y.h, keep.h, x.h, state.h, p)
  if st ~= 0 then failed(st, "mc_dropout", y, keep, x, state, p) end
  if tape.on and x.rg then
    local node = record(y, DROPOUT, x)
    node.keep, node.p = save(node, keep), p
  end
  return y
end

return M
