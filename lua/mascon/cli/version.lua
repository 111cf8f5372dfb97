-- mascon version: the library's version, as the loaded libmascon.so states it.

local help = require("mascon.cli.help")

local M = {summary = "Print the version."}

function M.options(command) help.example(command, "mascon version") end

--- Prints "mascon X.Y.Z"; raises when the library is not there.
-- @treturn int 0
function M.run()
  print("mascon " .. require("mascon").version)
  return 0
end

return M
