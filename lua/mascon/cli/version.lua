-- mascon version: the library's version, as the loaded libmascon.so states it.

local M = {summary = "Print the version."}

--- Prints "mascon X.Y.Z"; raises when the library is not there.
-- @treturn int 0
function M.run()
  print("mascon " .. require("mascon").version)
  return 0
end

return M
