--- Saves over one file again and again; another process does the same.
--
--   racer.lua PATH FIRST_STEP TIMES
package.path = arg[0]:match "^(.*)/" .. "/?.lua;" .. package.path
local tools = require "tools"
local mc = require "mascon"

local path, first, times = arg[1], tonumber(arg[2]), tonumber(arg[3])
for step = first, first + times - 1 do
  -- the third way writes while this process goes on
  local handle = mc.save(path, tools.object(step), { async = step % 3 == 0 or nil })
  if handle then handle:wait() end
end
