--- mc.checkpoint: saving, loading and looking into checkpoint files. mc.save and mc.load stand here too.
local convert = require "mascon.checkpoint.convert"
local diff = require "mascon.checkpoint.diff"
local inspect = require "mascon.checkpoint.inspect"
local into = require "mascon.checkpoint.into"
local load = require "mascon.checkpoint.load"
local main_grads = require "mascon.checkpoint.main_grads"
local save = require "mascon.checkpoint.save"

return {
  save = save.save, load = load.load, load_into = into.load_into, plan = into.plan,
  inspect = inspect.inspect, verify = inspect.verify, diff = diff.diff, convert = convert.convert,
  main_grads = main_grads.main_grads,
}
