--- temporaries.lua: a loop that makes garbage, and no collectgarbage anywhere: does memory stay small?
--
--   scripts/mascon tests/bench/temporaries.lua
--
-- One line: peak bytes of live tensors (goal: under 200 MiB), the process's peak RSS, seconds.
local system = require "system"
local mc = require "mascon"

local COUNT, ELEMENTS = 10000, 2 ^ 21 -- float32: 8 MiB each

local a = mc.zeros(ELEMENTS)
local start = system.monotime()
for _ = 1, COUNT do
  local _ = a + 1
end
local seconds = system.monotime() - start

local rss = 0
local file = io.open "/proc/self/status"
if file then
  rss = tonumber(file:read("*a"):match "VmHWM:%s*(%d+) kB") or 0
  file:close()
end
print(("temporaries mascon %d of 8 MiB: peak %.0f MiB live, %.0f MiB RSS, %.1f s (%.1f GB/s written)"):format(COUNT,
  mc.memory_stats().peak_bytes / 2 ^ 20, rss / 2 ^ 10, seconds, COUNT * ELEMENTS * 4 / seconds / 1e9))
