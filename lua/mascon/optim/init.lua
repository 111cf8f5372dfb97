--- mc.optim: SGD, Adam, AdamW, gradient clipping, schedules.
--
--     local opt = mc.optim.AdamW{lr = 1e-3, weight_decay = 0.1, params = {
--       {params = model, roles = {"norm", "bias", "embedding"}, weight_decay = 0},
--       {params = model},                        -- the rest: each parameter goes to the first group that fits
--     }}
local adam = require "mascon.optim.adam"

return {
  SGD = require "mascon.optim.sgd",
  Adam = adam.Adam,
  AdamW = adam.AdamW,
  clip_grad_norm_ = require "mascon.optim.clip",
  schedule = require "mascon.optim.schedule",
}
