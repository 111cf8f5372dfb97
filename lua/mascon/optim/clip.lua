--- clip_grad_norm_: the gradient's length, and its limit. Reads nothing on the host.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local groups = require "mascon.optim.groups"
local lib = require "mascon.lib"

local C, check = lib.C, lib.check

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

local function total_norm(grads)
  local sums, devices = {}, {}
  for _, g in ipairs(grads) do
    local device = g.device
    if not sums[device] then
      sums[device] = create.zeros(1, { dtype = "float64", device = device })
      devices[#devices + 1] = device
    end
    check(C.mc_sum_squares(sums[device].h, g.h), g)
  end
  local total = sums[devices[1]] or create.zeros(1, { dtype = "float64" })
  for i = 2, #devices do total:add_(sums[devices[i]]:to(devices[1])) end
  return total:sqrt():view {}
end

local function clip(grads, norm, max_norm)
  local coefficient = (max_norm / (norm + EPS)):minimum(1)
  local cast = {}
  for _, g in ipairs(grads) do
    local key = g.dtype .. g.device
    cast[key] = cast[key] or coefficient:to { dtype = g.dtype, device = g.device }
    g:mul_(cast[key])
  end
end

--- Scales all gradients together so that their norm is at most max_norm: by min(1, max_norm / (norm + 1e-6)).
-- Squares are summed in float64, per packed base in registration order: the layout changes no bit.
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
