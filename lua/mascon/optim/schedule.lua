--- Learning-rate schedules: pure functions of the step, so there is nothing to save.
--
--     local lr = mc.optim.schedule.warmup_cosine{warmup = 50, total = 1000, peak = 4e-3, final = 4e-4}
--     opt:set_lr(lr(step))    -- step counts from 1
--
-- set_lr writes the number that steps read on their device. With steps that are recorded in a graph it stands outside
-- the function that is recorded, before each replay:
--
--     opt:set_lr(lr(step))
--     graph:replay()
--
-- During warm-up the rate is peak * step / warmup; it is `peak` at step warmup and `final` from step total on.
local args = require "mascon.args"

local M = {}

local function is_rate(v) return type(v) == "number" and v >= 0 and v < math.huge end
local RATE = "a number of 0 or more"

local function options(what, given, more)
  local spec = {
    warmup = { "natural", 0 },
    total = { "positive", required = true },
    peak = { is_rate, required = true, want = RATE },
    final = { is_rate, 0, want = RATE },
  }
  for name, entry in pairs(more or {}) do spec[name] = entry end
  local o = args.options(what, given, spec)
  if o.warmup > o.total then
    args.raise(("%s: warmup = %d is beyond total = %d"):format(what, o.warmup, o.total))
  end
  return o
end

-- shape(x): 1 at x = 0 to 0 at x = 1, over the steps from `first` to o.total
local function decay(o, first, shape)
  return function(step)
    if step < o.warmup then return o.peak * step / o.warmup end
    if step <= first then return o.peak end
    if step >= o.total then return o.final end
    return o.final + (o.peak - o.final) * shape((step - first) / (o.total - first))
  end
end

local function half_cosine(x) return 0.5 * (1 + math.cos(math.pi * x)) end
local function line(x) return 1 - x end

--- The same rate always: constant{peak =}.
function M.constant(given)
  local o = args.options("constant", given, { peak = { is_rate, required = true, want = RATE } })
  return function() return o.peak end
end

--- Linear up, half a cosine down (Loshchilov & Hutter 2017): warmup_cosine{warmup = 0, total =, peak =, final = 0}.
function M.warmup_cosine(given)
  local o = options("warmup_cosine", given)
  return decay(o, o.warmup, half_cosine)
end

--- Linear up, linear down: warmup_linear{warmup = 0, total =, peak =, final = 0}.
function M.warmup_linear(given)
  local o = options("warmup_linear", given)
  return decay(o, o.warmup, line)
end

--- Linear up, flat, linear down over the last `decay` steps: warmup_stable_decay{warmup = 0, total =, decay =, peak =,
-- final = 0}.
function M.warmup_stable_decay(given)
  local o = options("warmup_stable_decay", given, { decay = { "natural", required = true } })
  if o.warmup + o.decay > o.total then
    args.raise(("warmup_stable_decay: warmup = %d and decay = %d are more than total = %d"):format(o.warmup, o.decay,
      o.total))
  end
  return decay(o, o.total - o.decay, line)
end

return M
