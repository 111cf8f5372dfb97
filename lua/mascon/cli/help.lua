-- The help of a command begins with an example of it.

local M = {}

--- Puts an example before a command's usage line; call it after the last option is added.
-- @tparam Command command of argparse
-- @tparam string example a command line
-- @tparam string|nil epilog ends the help
function M.example(command, example, epilog)
  if epilog then command:epilog(epilog) end
  local usage = command.get_usage
  function command.get_usage(self)
    return ("Example: %s\n\n%s"):format(example, usage(self))
  end
end

return M
