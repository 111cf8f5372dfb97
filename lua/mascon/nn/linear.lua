--- Linear: y = x W^T + b.
local args = require "mascon.args"
local common = require "mascon.nn.common"
local functional = require "mascon.nn.functional"
local module = require "mascon.nn.module"

local Linear = module.Module:extend "Linear"

local spec = {
  in_features = { "positive", required = true },
  out_features = { "positive", required = true },
  bias = { "boolean", true },
  dtype = common.DTYPE,
  device = { "string" },
  init_method = { "function" },
}

--- mc.nn.Linear{in_features =, out_features =, bias = true, dtype =, device =, init_method = fn(weight)}.
-- Parameters: weight [out, in], bias [out]. Both start uniform in (-1/sqrt(in), 1/sqrt(in)); with init_method the
-- weight is what it fills and the bias is 0.
function Linear:init(opts)
  local o = args.options("Linear", opts, spec)
  self.in_features, self.out_features = o.in_features, o.out_features
  local start = common.uniform(o.in_features)
  self.weight = common.parameter("weight", { o.out_features, o.in_features }, o, o.init_method or start)
  if o.bias then
    self.bias = common.parameter("bias", { o.out_features }, o, not o.init_method and start or 0)
  end
end

--- x [.., in] -> [.., out]
function Linear:forward(x)
  return functional.linear(x, self.weight, self.bias)
end

function Linear:absent_names()
  return not self.bias and { bias = "bias = false" } or {}
end

function Linear:extra_repr()
  return ("in_features = %d, out_features = %d, bias = %s"):format(self.in_features, self.out_features,
    tostring(self.bias ~= nil))
end

return Linear
