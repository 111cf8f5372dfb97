--- SGD with momentum, as PyTorch's: buf = momentum * buf + (1 - dampening) * g.
local args = require "mascon.args"
local class = require "mascon.class"
local lib = require "mascon.lib"
local Optimizer = require "mascon.optim.optimizer"

local C = lib.C

local function is_rate(v) return type(v) == "number" and v >= 0 and v < math.huge end

local SGD = class.class("SGD", Optimizer)
SGD.what = "SGD"
SGD.spec = {
  lr = { is_rate, required = true, want = "a number of 0 or more" },
  momentum = { is_rate, 0, want = "a number of 0 or more" },
  dampening = { "number", 0 },
  weight_decay = { is_rate, 0, want = "a number of 0 or more" },
  nesterov = { "boolean", false },
}
SGD.hyper_options = { lr = true, momentum = true, dampening = true, weight_decay = true }
SGD.hyper = { "lr", "momentum", "dampening", "weight_decay" }

local WITH_MOMENTUM, NONE = { "momentum_buffer" }, {}

--- mc.optim.SGD{params =, lr =, momentum = 0, dampening = 0, weight_decay = 0, nesterov = false,
-- master_weights = false}
function SGD:init(opts)
  Optimizer.init(self, opts)
  self.nesterov = self.options.nesterov
  self.has_momentum = false
  for _, group in ipairs(self.groups) do
    local v = group.values
    self.has_momentum = self.has_momentum or v.momentum ~= 0
    if self.nesterov and (v.momentum == 0 or v.dampening ~= 0) then
      args.raise(("SGD: nesterov = true wants momentum above 0 and dampening 0, they are %g and %g"):format(v.momentum,
        v.dampening))
    end
  end
end

function SGD:flatten(o) -- luacheck: ignore 212
  return { lr = o.lr, momentum = o.momentum, dampening = o.dampening, weight_decay = o.weight_decay }
end

function SGD:buffers() return self.has_momentum and WITH_MOMENTUM or NONE end

function SGD:update(b, v, lr, count, scale)
  local buffers, nesterov = b.momentum_buffer, self.nesterov and 1 or 0
  for i = 1, b.n do
    local param, grad, buffer, master = b.param[i], b.grad[i], buffers and buffers[i], b.master[i]
    local st = C.mc_sgd_step(param.h, buffer and buffer.h, master and master.h or nil, grad.h, count.h, lr.h,
      scale and scale.h, v.momentum, v.dampening, v.weight_decay, nesterov)
    if st ~= 0 then lib.raise_last(param, grad) end
  end
end

return SGD
