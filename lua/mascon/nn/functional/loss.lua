--- functional: losses. reduction is "mean" (default), "sum" or "none".
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"
local shapes = require "mascon.nn.functional.shapes"

local C, failed = lib.C, lib.failed
local raise = args.raise
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save
local want_tensor = tensor.want_tensor

local M = {}

local IGNORE = -100 -- PyTorch's default: targets of this value do not count

local function text(t) return ("%s [%s]"):format(t.dtype, table.concat(t:shape(), ", ")) end

local function reduce(losses, reduction)
  if reduction == "none" then return losses end
  return reduction == "sum" and losses:sum() or losses:mean()
end

-- The mean over the targets that are not ignored; 0 / 0 when all are.
local function reduce_counted(losses, target, o)
  if o.reduction == "none" then return losses end
  local total = losses:sum()
  if o.reduction == "sum" then return total end
  return total / target:ne(o.ignore_index):sum():to(losses.dtype)
end

local CROSS_ENTROPY = {
  name = "cross_entropy",
  backward = function(node, g)
    local dx = new()
    local dlosses = g:contiguous()
    local st = C.mc_cross_entropy_backward(dx.h, dlosses.h, node.logits.h, node.target.h, node.lse.h, node.ignore)
    if st ~= 0 then
      failed(st, "mc_cross_entropy_backward", dx, dlosses, node.logits, node.target, node.lse, node.ignore)
    end
    return dx
  end,
}

local class_spec = { reduction = { "string", "mean" }, ignore_index = { "integer", IGNORE } }

-- Checks logits [.., V] against target [..]; returns both as [T, V] and [T].
local function flatten(what, logits, target)
  want_tensor(what .. ": logits", logits)
  shapes.want_index(what .. ": target", target)
  local shape, want = logits:shape(), target:shape()
  local fits = #shape == #want + 1
  for i = 1, fits and #want or 0 do fits = fits and shape[i] == want[i] end
  if not fits then
    raise(("%s: logits is [%s] and target is [%s], wanted [.., V] and [..]"):format(what, table.concat(shape, ", "),
      table.concat(want, ", ")))
  end
  if #shape == 2 then return logits, target end
  local rows = shapes.rows(shape)
  return logits:reshape(rows, shape[#shape]), target:reshape(rows)
end

--- Cross entropy of logits against class numbers: logsumexp(x_t) - x_t[target_t].
-- @tparam Tensor logits [.., V]
-- @tparam Tensor target [..], int32 or int64, 0-based; those equal to ignore_index give 0 and do not count in a mean
-- @tparam[opt] table options reduction = "mean" | "sum" | "none", ignore_index = -100
-- @treturn Tensor float32 (float64 for float64): [], or [..] without reduction
-- @raise for a target that is not in 0 .. V-1: its position, its value and the range
function M.cross_entropy(logits, target, options)
  local o = args.options("cross_entropy", options, class_spec)
  shapes.want_reduction("cross_entropy", o.reduction)
  local x, y = flatten("cross_entropy", logits, target)
  local losses, lse = new(), new()
  local st = C.mc_cross_entropy(losses.h, lse.h, x.h, y.h, o.ignore_index)
  if st ~= 0 then failed(st, "mc_cross_entropy", losses, lse, x, y, o.ignore_index) end
  if tape.on and x.rg then
    local node = record(losses, CROSS_ENTROPY, x)
    node.logits, node.target, node.lse = save(node, x), save(node, y), save(node, lse)
    node.ignore = o.ignore_index
  end
  if o.reduction == "none" then return #target:shape() == 1 and losses or losses:view(target:shape()) end
  return reduce_counted(losses, y, o)
end

--- Negative log likelihood: -x_t[target_t], of log probabilities.
-- @tparam Tensor log_probs [.., V]
-- @tparam Tensor target [..], as in cross_entropy
-- @tparam[opt] table options reduction, ignore_index
function M.nll_loss(log_probs, target, options)
  local o = args.options("nll_loss", options, class_spec)
  shapes.want_reduction("nll_loss", o.reduction)
  local x, y = flatten("nll_loss", log_probs, target)
  local counts = y:ne(o.ignore_index)
  local at = y:mul(counts:to(y.dtype)) -- ignored targets look at class 0, times 0 below
  local losses = -(x:gather(2, at:unsqueeze(2)):squeeze(2) * counts:to(x.dtype))
  if o.reduction == "none" then return losses:reshape(target:shape()) end
  return reduce_counted(losses, y, o)
end

local function want_alike(what, x, target)
  want_tensor(what .. ": x", x)
  want_tensor(what .. ": target", target)
  if not x:_same_shape(target) or x.dtype ~= target.dtype then
    raise(("%s: x is %s and target is %s, wanted equal shapes and dtypes"):format(what, text(x), text(target)))
  end
end

local plain_spec = { reduction = { "string", "mean" } }

--- (x - target)^2, reduced over all elements.
function M.mse_loss(x, target, options)
  local o = args.options("mse_loss", options, plain_spec)
  shapes.want_reduction("mse_loss", o.reduction)
  want_alike("mse_loss", x, target)
  local d = x - target
  return reduce(d * d, o.reduction)
end

--- |x - target|, reduced over all elements.
function M.l1_loss(x, target, options)
  local o = args.options("l1_loss", options, plain_spec)
  shapes.want_reduction("l1_loss", o.reduction)
  want_alike("l1_loss", x, target)
  return reduce((x - target):abs(), o.reduction)
end

local BCE = {
  name = "binary_cross_entropy_with_logits",
  backward = function(node, g)
    local dx = node[1] and g * (node.x:sigmoid() - node.target)
    return dx, node[2] and -(g * node.x)
  end,
}

--- Cross entropy of yes-or-no logits: max(x, 0) - x y + log(1 + exp(-|x|)), which never overflows.
-- @tparam Tensor x logits
-- @tparam Tensor target probabilities of yes, of x's shape and dtype
-- @tparam[opt] table options reduction
function M.binary_cross_entropy_with_logits(x, target, options)
  local what = "binary_cross_entropy_with_logits"
  local o = args.options(what, options, plain_spec)
  shapes.want_reduction(what, o.reduction)
  want_alike(what, x, target)
  local a, b = x:detach(), target:detach()
  local losses = a:maximum(0) - a * b + ((-a:abs()):exp() + 1):log()
  if tape.on and (x.rg or target.rg) then
    local node = record(losses, BCE, x, target)
    node.x, node.target = save(node, x), save(node, target)
  end
  return reduce(losses, o.reduction)
end

return M
