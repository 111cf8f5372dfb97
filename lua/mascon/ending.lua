--- The end of the process: work in the background is waited for, and a failure that nobody has heard of turns the exit
-- status to 1. What is waited for sets M.report (checkpoint/async.lua).
--
-- A script ends in one of two ways, and neither is heard of by the other's hook:
--   * it comes to its end, or dies of an error: Lua is closed, and the finalizer below runs. The status that the
--     interpreter will return is decided by then, hence the exit, which flushes the script's files as ever;
--   * os.exit ends the process without closing Lua. It is replaced as soon as mascon is there and for good, not while a
--     save runs: os.exit(main()) looks the function up before main begins one.
local ffi = require "ffi"

ffi.cdef [[ void exit(int status); ]]

local M = {}

--- Waits, and prints what failed unheard.
-- @treturn bool whether something failed
function M.report() return false end

local exit = os.exit
os.exit = function(status, close) -- luacheck: ignore 122
  if M.report() and (status == nil or status == true or status == 0) then status = 1 end
  return exit(status, close)
end

local sentinel = newproxy(true)
getmetatable(sentinel).__gc = function()
  if M.report() then ffi.C.exit(1) end
end
M.sentinel = sentinel -- lives as long as this module

return M
