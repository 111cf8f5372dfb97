--- mc.train: what a training script needs around its loop.
local metrics = require "mascon.train.metrics"

return {
  Checkpoints = require("mascon.train.checkpoints").new,
  Logger = require("mascon.train.logger").new,
  Progress = require("mascon.train.progress").new,
  moe_metrics = metrics.moe_metrics,
  router_metrics = metrics.router_metrics,
}
