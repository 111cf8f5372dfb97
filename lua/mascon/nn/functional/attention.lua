--- functional: rotary positions and attention.
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"
local create = require "mascon.create"

local C, failed = lib.C, lib.failed
local raise = args.raise
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save
local want_tensor = tensor.want_tensor

local M = {}

local function rotate(x, theta, first, inverse)
  local y = new()
  local st = C.mc_rope(y.h, x.h, theta, first, inverse)
  if st ~= 0 then failed(st, "mc_rope", y, x, theta, first, inverse) end
  return y
end

local ROPE = {
  name = "rope",
  backward = function(node, g) return rotate(g, node.theta, node.first, 1) end,
}

local rope_spec = { theta = { "number", 10000 }, first = { "natural", 0 } }

--- Rotary position embedding (Su et al. 2021), half-split form: the pairs (x[d], x[d + D/2]) turn by
-- position * theta^(-2d/D).
-- @tparam Tensor x [B, T, H, D], D even
-- @tparam[opt] table options theta = 10000; first = 0, the position of the first token
function M.rope(x, options)
  want_tensor("rope: x", x)
  local o = args.options("rope", options, rope_spec)
  local y = rotate(x, o.theta, o.first, 0)
  if tape.on and x.rg then
    local node = record(y, ROPE, x)
    node.theta, node.first = o.theta, o.first
  end
  return y
end

local ATTENTION = {
  name = "attention",
  backward = function(node, g)
    local dq, dk, dv = new(), new(), new()
    local q, k, v, out, lse = node.q, node.k, node.v, node.out, node.lse
    local st = C.mc_attention_backward(dq.h, dk.h, dv.h, g.h, q.h, k.h, v.h, out.h, lse.h, node.scale, node.causal)
    if st ~= 0 then
      failed(st, "mc_attention_backward", dq, dk, dv, g, q, k, v, out, lse, node.scale, node.causal)
    end
    return dq, dk, dv
  end,
}

local attention_spec = { causal = { "boolean", false }, scale = { "number" } }

--- softmax(scale q k^T) v for each head; heads share keys and values in groups of H / Hkv (Ainslie et al. 2023).
-- @tparam Tensor q [B, T, H, D]
-- @tparam Tensor k [B, S, Hkv, D], H a multiple of Hkv
-- @tparam Tensor v as k
-- @tparam[opt] table options causal = false (true: query t sees the keys up to t + S - T); scale = 1 / sqrt(D)
-- @treturn Tensor [B, T, H, D]
function M.attention(q, k, v, options)
  want_tensor("attention: q", q)
  want_tensor("attention: k", k)
  want_tensor("attention: v", v)
  local o = args.options("attention", options, attention_spec)
  if q:dim() ~= 4 then
    raise(("attention: q is [%s], wanted [B, T, H, D]"):format(table.concat(q:shape(), ", ")))
  end
  local scale = o.scale or 1 / math.sqrt(q:size(4))
  local causal = o.causal and 1 or 0
  local out, lse = new(), new()
  local st = C.mc_attention(out.h, lse.h, q.h, k.h, v.h, scale, causal)
  if st ~= 0 then failed(st, "mc_attention", out, lse, q, k, v, scale, causal) end
  if tape.on and (q.rg or k.rg or v.rg) then
    local node = record(out, ATTENTION, q, k, v)
    node.q, node.k, node.v = save(node, q), save(node, k), save(node, v)
    node.out, node.lse = save(node, out), save(node, lse)
    node.scale, node.causal = scale, causal
  end
  return out
end

local SPLIT = {
  name = "split",
  view = true,
  backward = function(node, grads)
    local like = node.like
    local dx = create.empty(like.shape, { dtype = like.dtype, device = like.device })
    local first = 1
    for i, n in ipairs(node.sizes) do
      local part = dx:narrow(node.axis, first, n)
      if grads[i] then part:copy_(grads[i]) else part:zero_() end
      first = first + n
    end
    return dx
  end,
}

--- Views of x: consecutive pieces of the given sizes along an axis. Their gradients meet in one buffer.
-- @tparam Tensor x
-- @tparam {int,...} sizes that sum to the axis's size
-- @tparam int axis 1-based, or negative
-- @return the pieces, one after the other
function M.split(x, sizes, axis)
  want_tensor("split: x", x)
  local a = tensor.to_axis("split", x, axis) + 1
  if type(sizes) ~= "table" or #sizes == 0 or tensor.is_tensor(sizes) then
    raise("split: sizes is " .. args.show(sizes) .. ", wanted a list of at least one size")
  end
  local total = 0
  for i, n in ipairs(sizes) do total = total + args.integer(("split: size %d"):format(i), n, 0) end
  if total ~= x:size(a) then
    raise(("split: the sizes sum to %d, axis %d of x has %d"):format(total, a, x:size(a)))
  end
  local plain, parts, first = x:detach(), {}, 1
  for i, n in ipairs(sizes) do
    parts[i] = plain:narrow(a, first, n)
    first = first + n
  end
  if tape.on and x.rg then
    local node = autograd.record_many(parts, SPLIT, { x })
    node.like = autograd.like(x)
    node.sizes, node.axis = sizes, a
  end
  return unpack(parts)
end

return M
