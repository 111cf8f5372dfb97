--- Losses as modules: CrossEntropyLoss, MSELoss.
local args = require "mascon.args"
local functional = require "mascon.nn.functional"
local module = require "mascon.nn.module"

local CrossEntropyLoss = module.Module:extend "CrossEntropyLoss"

--- mc.nn.CrossEntropyLoss{reduction = "mean", ignore_index = -100}; loss(logits [.., V], target [..]).
function CrossEntropyLoss:init(opts)
  self.options = args.options("CrossEntropyLoss", opts, {
    reduction = { { "mean", "sum", "none" }, "mean" }, ignore_index = { "integer", -100 },
  })
end

function CrossEntropyLoss:forward(logits, target)
  return functional.cross_entropy(logits, target, self.options)
end

local MSELoss = module.Module:extend "MSELoss"

--- mc.nn.MSELoss{reduction = "mean"}; loss(x, target), of equal shapes.
function MSELoss:init(opts)
  self.options = args.options("MSELoss", opts, { reduction = { { "mean", "sum", "none" }, "mean" } })
end

function MSELoss:forward(x, target)
  return functional.mse_loss(x, target, self.options)
end

return { CrossEntropyLoss = CrossEntropyLoss, MSELoss = MSELoss }
