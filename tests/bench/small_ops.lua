--- small_ops.lua: what an op costs when there is next to nothing to compute.
--
--   scripts/mascon tests/bench/small_ops.lua
--
-- One line per case: microseconds per call, the best of 60 short rounds. Peer: small_ops_torch.py, the same cases.
local system = require "system"
local mc = require "mascon"

local CALLS, ROUNDS = 5000, 60

local a, b = mc.randn(4), mc.randn(4)
local leaf = mc.randn(4, { requires_grad = true })
local m, n = mc.randn(4, 4), mc.randn(4, 4)

local function best(fn)
  local least = math.huge
  for _ = 1, ROUNDS do
    local start = system.monotime()
    fn(CALLS)
    least = math.min(least, system.monotime() - start)
  end
  return least / CALLS * 1e6
end

-- Each case has a loop of its own: one compiled for all would measure its changes of mind.
local cases = {
  { "a + b, 4 floats", function(calls) for _ = 1, calls do local _ = a + b end end },
  { "a + b, recorded", function(calls) for _ = 1, calls do local _ = leaf + b end end },
  { "a * 2", function(calls) for _ = 1, calls do local _ = a * 2 end end },
  { "a:add_(b)", function(calls) for _ = 1, calls do a:add_(b) end end },
  { "view 4 -> 2x2", function(calls) for _ = 1, calls do local _ = a:view(2, 2) end end },
  { "narrow", function(calls) for _ = 1, calls do local _ = a:narrow(1, 2, 2) end end },
  { "sum of 4", function(calls) for _ = 1, calls do local _ = a:sum() end end },
  { "matmul 4x4", function(calls) for _ = 1, calls do local _ = mc.matmul(m, n) end end },
}

for _, case in ipairs(cases) do
  b:fill_(0) -- a:add_(b) must not run away
  print(("small_ops mascon %-16s %7.3f us"):format(case[1], best(case[2])))
end
