--- LayerNorm and RMSNorm, over the last axis.
local args = require "mascon.args"
local common = require "mascon.nn.common"
local functional = require "mascon.nn.functional"
local module = require "mascon.nn.module"

local EPS = 1e-5

local LayerNorm = module.Module:extend "LayerNorm"

local layer_spec = {
  normalized_shape = { "positive", required = true },
  eps = { "number", EPS },
  elementwise_affine = { "boolean", true },
  bias = { "boolean", true },
  dtype = common.DTYPE,
  device = { "string" },
}

--- mc.nn.LayerNorm{normalized_shape = n, eps = 1e-5, elementwise_affine = true, bias = true, dtype =, device =}.
-- Parameters: weight [n] of ones, bias [n] of zeros, role "norm".
function LayerNorm:init(opts)
  local o = args.options("LayerNorm", opts, layer_spec)
  self.normalized_shape, self.eps = o.normalized_shape, o.eps
  if o.elementwise_affine then
    self.weight = common.parameter("norm", { o.normalized_shape }, o, 1)
    if o.bias then self.bias = common.parameter("norm", { o.normalized_shape }, o, 0) end
  end
end

--- x [.., n] -> [.., n]
function LayerNorm:forward(x)
  return functional.layer_norm(x, self.weight, self.bias, self.eps)
end

function LayerNorm:absent_names()
  local reasons = {}
  if not self.weight then reasons.weight = "elementwise_affine = false" end
  if not self.bias then reasons.bias = self.weight and "bias = false" or "elementwise_affine = false" end
  return reasons
end

local RMSNorm = module.Module:extend "RMSNorm"

local rms_spec = {
  normalized_shape = { "positive", required = true },
  eps = { "number", EPS },
  elementwise_affine = { "boolean", true },
  dtype = common.DTYPE,
  device = { "string" },
}

--- mc.nn.RMSNorm{normalized_shape = n, eps = 1e-5, elementwise_affine = true, dtype =, device =}.
-- Parameter: weight [n] of ones, role "norm".
function RMSNorm:init(opts)
  local o = args.options("RMSNorm", opts, rms_spec)
  self.normalized_shape, self.eps = o.normalized_shape, o.eps
  if o.elementwise_affine then
    self.weight = common.parameter("norm", { o.normalized_shape }, o, 1)
  end
end

--- x [.., n] -> [.., n]
function RMSNorm:forward(x)
  return functional.rms_norm(x, self.weight, self.eps)
end

function RMSNorm:absent_names()
  return not self.weight and { weight = "elementwise_affine = false" } or {}
end

local function extra_repr(self)
  return ("%d, eps = %g"):format(self.normalized_shape, self.eps)
end
LayerNorm.extra_repr, RMSNorm.extra_repr = extra_repr, extra_repr

return { LayerNorm = LayerNorm, RMSNorm = RMSNorm }
