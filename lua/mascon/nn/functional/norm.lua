--- functional: rms_norm and layer_norm, over the last axis.
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"

local C, failed = lib.C, lib.failed
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save
local want_tensor = tensor.want_tensor

local M = {}

local function h(t) return t and t.h or nil end

local RMS_NORM = {
  name = "rms_norm",
  backward = function(node, g)
    local dx, dw = new(), node[2] and new()
    local st = C.mc_rms_norm_backward(dx.h, h(dw), g.h, node.x.h, h(node.weight), node.rstd.h)
    if st ~= 0 then failed(st, "mc_rms_norm_backward", dx, dw or nil, g, node.x, node.weight, node.rstd) end
    return dx, dw
  end,
}

--- y = x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, eq. 4). Statistics are float32 (float64 for float64).
-- @tparam Tensor x [.., n]
-- @tparam[opt] Tensor weight [n]
-- @tparam[opt=1e-5] number eps
function M.rms_norm(x, weight, eps)
  want_tensor("rms_norm: x", x)
  if weight then want_tensor("rms_norm: weight", weight) end
  eps = args.number("rms_norm: eps", eps or 1e-5)
  local y, rstd = new(), new()
  local st = C.mc_rms_norm(y.h, rstd.h, x.h, h(weight), eps)
  if st ~= 0 then failed(st, "mc_rms_norm", y, rstd, x, weight, eps) end
  if tape.on and (x.rg or (weight and weight.rg)) then
    local node = record(y, RMS_NORM, x, weight)
    node.x, node.rstd = save(node, x), save(node, rstd)
    node.weight = weight and save(node, weight)
  end
  return y
end

local LAYER_NORM = {
  name = "layer_norm",
  backward = function(node, g)
    local dx, dw, db = new(), node[2] and new(), node[3] and new()
    local st = C.mc_layer_norm_backward(dx.h, h(dw), h(db), g.h, node.x.h, h(node.weight), node.mean.h, node.rstd.h)
    if st ~= 0 then
      failed(st, "mc_layer_norm_backward", dx, dw or nil, db or nil, g, node.x, node.weight, node.mean, node.rstd)
    end
    return dx, dw, db
  end,
}

--- y = (x - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016). Statistics as in rms_norm.
-- @tparam Tensor x [.., n]
-- @tparam[opt] Tensor weight [n]
-- @tparam[opt] Tensor bias [n]
-- @tparam[opt=1e-5] number eps
function M.layer_norm(x, weight, bias, eps)
  want_tensor("layer_norm: x", x)
  if weight then want_tensor("layer_norm: weight", weight) end
  if bias then want_tensor("layer_norm: bias", bias) end
  eps = args.number("layer_norm: eps", eps or 1e-5)
  if bias then want_tensor("layer_norm: bias", bias) end
  local y, mean, rstd = new(), new(), new()
  local st = C.mc_layer_norm(y.h, mean.h, rstd.h, x.h, h(weight), h(bias), eps)
  if st ~= 0 then failed(st, "mc_layer_norm", y, mean, rstd, x, weight, bias, eps) end
  if tape.on and (x.rg or (weight and weight.rg) or (bias and bias.rg)) then
    local node = record(y, LAYER_NORM, x, weight, bias)
    node.x, node.mean, node.rstd = save(node, x), save(node, mean), save(node, rstd)
    node.weight = weight and save(node, weight)
  end
  return y
end

return M
