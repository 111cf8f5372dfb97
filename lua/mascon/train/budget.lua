--- Budget: how much training there is to be, in steps or in minutes, and how much of it is spent.
--
--     local budget = mc.train.Budget{minutes = 8}
--     local rate = mc.optim.schedule.warmup_cosine{warmup = 20, total = 1000, peak = 1e-3}
--     while not budget:is_spent(step) do
--       step = step + 1
--       optimizer:set_lr(rate(1000 * budget:share(step)))   -- the schedule follows the clock
--       ...
--
-- Minutes are those of all runs: a run that was saved and goes on has what its predecessors left.
local system = require "system"
local args = require "mascon.args"

local Budget = {}
Budget.__index = Budget

local function is_positive(v) return type(v) == "number" and v > 0 and v < math.huge end

--- @tparam table options `steps` or `minutes`, one of them; `clock` (monotonic seconds)
function Budget.new(options)
  local o = args.options("Budget", options, {
    steps = { "positive" },
    minutes = { is_positive, want = "a number above 0" },
    clock = { "function", system.monotime },
  })
  if (o.steps == nil) == (o.minutes == nil) then args.raise("Budget: wanted steps or minutes, one of them") end
  return setmetatable({ steps = o.steps, minutes = o.minutes, _clock = o.clock, _began = o.clock(), _before = 0 },
    Budget)
end

--- Seconds since the budget was made, and those of the runs before.
function Budget:seconds() return self._before + self._clock() - self._began end

--- Leaves out the time until now: for preparations between the budget's making and the first step.
function Budget:start() self._began = self._clock() end

--- The share that is spent when `step` steps are done, 0 to 1.
function Budget:share(step)
  return math.min(1, self.steps and step / self.steps or self:seconds() / (60 * self.minutes))
end

function Budget:is_spent(step) return self:share(step) >= 1 end

--- Seconds that are left; nil where that cannot be told yet.
-- @tparam int step steps done
-- @tparam number a_second steps a second
function Budget:seconds_left(step, a_second)
  if self.minutes then return math.max(0, 60 * self.minutes - self:seconds()) end
  return a_second > 0 and (self.steps - step) / a_second or nil
end

--- {seconds =}: for mc.save.
function Budget:state_dict() return { seconds = self:seconds() } end

--- Goes on where `state` was taken: the time between does not count.
function Budget:load_state_dict(state)
  local s = args.options("Budget.load_state_dict", state, { seconds = { "number", required = true } })
  self._before, self._began = s.seconds, self._clock()
end

return Budget
