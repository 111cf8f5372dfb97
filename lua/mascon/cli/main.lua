-- The mascon command: `main.lua COMMAND [OPTION...]`, started by scripts/mascon.
--
-- A command is a module of this folder with `summary` (one line), `options(parser)` (may be absent)
-- and `run(options)`, which returns the exit status. Statuses: 0 done, 1 a clean "no" (a fault found),
-- 2 a usage error; an error that a command raises is printed in one line and is 1, too. Ctrl-C ends a command at once,
-- as a kill does (130 to a shell): what it was writing has not got its name yet.

local found, argparse = pcall(require, "argparse")
if not found then
  io.stderr:write("mascon: the Lua library argparse is missing; run scripts/setup.sh, or: ",
    "apt-get install lua-argparse\n")
  os.exit(1)
end

local ffi = require("ffi")
local help = require("mascon.cli.help")

ffi.cdef[[ void *signal(int number, void *action); ]]

local USAGE = 2
local SIGINT, DEFAULT = 2, nil
local names = {"convert", "inspect", "diff", "verify", "doctor", "repl", "version"}

local commands = {}
for _, name in ipairs(names) do commands[name] = require("mascon.cli." .. name) end

local function new_parser()
  local parser = argparse("mascon", "Trains mixture-of-experts models from Lua.",
    "`mascon FILE.lua [ARGUMENT...]` runs a script.\n\n" ..
    "Exit status: 0 done, 1 a clean no (files differ, a fault was found) or an error in a script, 2 a usage error,\n" ..
    "3 a file that is not readable, 4 I/O, 5 memory or device.")
  parser:usage_max_width(100):help_max_width(100)
  help.example(parser, "mascon inspect ckpt.h5")
  parser:flag("--version", "Print the version and exit."):action(function()
    os.exit(commands.version.run())
  end)
  parser:command_target("command")
  for _, name in ipairs(names) do
    local command = parser:command(name, commands[name].summary)
    if commands[name].options then commands[name].options(command) end
  end
  parser:command("help", "Show the help of a command."):argument("of", "The command."):args("?")
  return parser
end

--- Parses `arguments` and runs the command.
-- @tparam {string,...} arguments without the program's name
-- @treturn int the exit status
local function main(arguments)
  local parser = new_parser()
  -- argparse leaves with 1; a usage error is 2 here. `where` is the parser of the command, or all of them.
  function parser.error(where, message)
    local command = where ~= parser and " " .. where._name or ""
    io.stderr:write(("mascon%s: %s\nmascon%s --help shows the %s.\n"):format(command, message, command,
      where ~= parser and "options" or "commands"))
    os.exit(USAGE)
  end
  if #arguments == 0 then
    io.stderr:write(parser:get_help(), "\n")
    return USAGE
  end
  local options = parser:parse(arguments)
  if options.command == "help" then
    if options.of and not commands[options.of] then
      parser:error(("unknown command '%s'"):format(options.of))
    end
    return main{options.of or "--help", options.of and "--help"}
  end
  -- LuaJIT would raise an error at its next safe point, which is none while a thread of ours works
  if options.command ~= "repl" then ffi.C.signal(SIGINT, DEFAULT) end
  local ok, status = pcall(commands[options.command].run, options)
  if ok then return status end
  io.stderr:write("mascon ", options.command, ": ", tostring(status), "\n")
  return 1
end

os.exit(main(arg))
