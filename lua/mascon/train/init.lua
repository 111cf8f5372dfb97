--- mc.train: what a training script needs around its loop.
local flops = require "mascon.train.flops"
local metrics = require "mascon.train.metrics"

return {
  Budget = require("mascon.train.budget").new,
  Checkpoints = require("mascon.train.checkpoints").new,
  Logger = require("mascon.train.logger").new,
  Progress = require("mascon.train.progress").new,
  flops_per_token = flops.flops_per_token,
  held_out_loss = require "mascon.train.held_out",
  moe_metrics = metrics.moe_metrics,
  parameter_counts = flops.parameter_counts,
  router_metrics = metrics.router_metrics,
}
