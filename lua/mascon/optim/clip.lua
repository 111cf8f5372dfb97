--- clip_grad_norm_: the gradient's length, and its limit. Reads nothing on the host.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local groups = require "mascon.optim.groups"
local handles = require "mascon.optim.handles"
local lib = require "mascon.lib"

local C = lib.C

local EPS = 1e-6 -- PyTorch's: added to the norm before the division

local spec = { error_if_nonfinite = { "boolean", false } }

-- The gradients, packed ones whole, in registration order.
local function gradients(params)
  local list = {}
  for _, owner in ipairs(groups.owners("clip_grad_norm_", params)) do
    local grad = groups.gradient(owner[1])
    if grad then list[#list + 1] = owner[2] and grad:select(1, owner[2] + 1) or grad end
  end
  return list
end

-- Lists of tensors by key(tensor), in the order of their first ones: {key =, n =, tensor, ...}.
local function sorted(list, key)
  local lists, found = {}, {}
  for _, t in ipairs(list) do
    local k = key(t)
    local l = found[k]
    if not l then
      l = { key = k, n = 0 }
      found[k], lists[#lists + 1] = l, l
    end
    l.n = l.n + 1
    l[l.n] = t
  end
  return lists
end

local function by_device(t) return t.device end
-- The factor is float64 for float64 gradients, else float32: those of 16 bits are multiplied in float32 as well.
local function by_factor(t) return (t.dtype == "float64" and "float64 " or "float32 ") .. t.device end

local function total_norm(grads)
  local total
  for _, list in ipairs(sorted(grads, by_device)) do
    local sum = create.zeros(1, { dtype = "float64", device = list.key })
    local st = C.mc_sum_squares_many(sum.h, list.n, handles.array(1, list, list.n))
    if st ~= 0 then handles.raise(list.n, list) end
    if total then total:add_(sum:to(total.device)) else total = sum end
  end
  total = total or create.zeros(1, { dtype = "float64" })
  return total:sqrt():view {}
end

local function clip(grads, norm, max_norm)
  local coefficient = (max_norm / (norm + EPS)):minimum(1)
  for _, list in ipairs(sorted(grads, by_factor)) do
    local dtype, device = list.key:match "(%S+) (%S+)"
    local factor = coefficient:to { dtype = dtype, device = device }
    if C.mc_scale_many(list.n, handles.array(1, list, list.n), factor.h) ~= 0 then handles.raise(list.n, list) end
  end
end

--- Scales all gradients together so that their norm is at most max_norm: by min(1, max_norm / (norm + 1e-6)).
-- Squares are summed in float64, per packed base in registration order: the layout changes no bit. The factor is
-- float32 (float64 for float64 gradients); a 16-bit gradient is multiplied in float32 and rounded once.
-- @param params a module, a list of parameters, or an optimizer
-- @tparam number max_norm above 0; math.huge only measures
-- @tparam[opt] table options error_if_nonfinite = false; true reads the norm on the host and raises, changing nothing
-- @treturn Tensor the norm before clipping, float64 []
local function clip_grad_norm_(params, max_norm, options)
  local o = args.options("clip_grad_norm_", options, spec)
  local positive = type(max_norm) == "number" and max_norm > 0
  if not positive then
    args.raise(("clip_grad_norm_: max_norm is %s, wanted a number above 0"):format(args.show(max_norm)))
  end
  return autograd.no_grad(function()
    local grads = gradients(params)
    local norm = total_norm(grads)
    if o.error_if_nonfinite then
      local value = norm:item()
      if value ~= value or value == math.huge then
        args.raise(("clip_grad_norm_: the norm of the gradients is %s"):format(value ~= value and "nan" or "inf"))
      end
    end
    if max_norm < math.huge then clip(grads, norm, max_norm) end
    return norm
  end)
end

return clip_grad_norm_
