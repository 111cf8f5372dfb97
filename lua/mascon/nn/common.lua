--- What the modules' constructors share: option entries and starting values.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local module = require "mascon.nn.module"

local M = {}

--- The dtypes that parameters can have, as an option entry.
M.DTYPE = { { "float32", "bfloat16", "float16", "float64" }, "float32" }

--- A new parameter, filled by `init` under no_grad. init(t) fills in place; nil: zeros; a number: that value.
function M.parameter(role, shape, o, init)
  local t = create.empty(shape, { dtype = o.dtype, device = o.device })
  autograd.no_grad(function()
    if type(init) == "function" then init(t) else t:fill_(init or 0) end
  end)
  return module.Parameter(t, role)
end

--- Uniform in (-1/sqrt(n), 1/sqrt(n)): PyTorch's start of a linear layer with n inputs.
function M.uniform(n)
  local bound = 1 / math.sqrt(n)
  return function(t) t:uniform_(-bound, bound) end
end

--- Checks a call without options, as of an activation.
function M.no_options(what, opts) args.options(what, opts, {}) end

return M
