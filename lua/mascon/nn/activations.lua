--- Modules without parameters that work element by element: ReLU GELU SiLU Tanh Sigmoid SwiGLU, and Dropout.
local args = require "mascon.args"
local common = require "mascon.nn.common"
local functional = require "mascon.nn.functional"
local module = require "mascon.nn.module"

local M = {}

-- class -> the functional op. GELU is the tanh form; SwiGLU halves the last axis: silu(gate) * up, gate first.
local classes = { ReLU = "relu", GELU = "gelu", SiLU = "silu", Tanh = "tanh", Sigmoid = "sigmoid", SwiGLU = "swiglu" }
for name, op in pairs(classes) do
  local Class = module.Module:extend(name)
  function Class:init(opts) common.no_options(name, opts) end -- luacheck: ignore 212
  function Class:forward(x) return functional[op](x) end -- luacheck: ignore 212
  M[name] = Class
end

local Dropout = module.Module:extend "Dropout"

--- mc.nn.Dropout{p = 0.5}: drops while training, passes through after m:eval().
function Dropout:init(opts)
  local o = args.options("Dropout", opts, { p = { "number", 0.5 } })
  if not (o.p >= 0 and o.p < 1) then
    args.raise(("Dropout: p is %g, wanted 0 to below 1"):format(o.p))
  end
  self.p = o.p
end

function Dropout:forward(x)
  return functional.dropout(x, self.p, self.training)
end

function Dropout:extra_repr() return ("p = %g"):format(self.p) end
M.Dropout = Dropout

return M
