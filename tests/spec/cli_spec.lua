-- The mascon command: exit statuses, output and the REPL, each in a process of its own.

local mascon = "scripts/mascon"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

-- Runs a shell command with `input` on its standard input; returns status, stdout, stderr.
local function run(command, input)
  local out, err, given = os.tmpname(), os.tmpname(), os.tmpname()
  local file = assert(io.open(given, "wb"))
  file:write(input or "")
  file:close()
  local status = os.execute(("%s <%s >%s 2>%s"):format(command, given, out, err))
  local stdout, stderr = read(out), read(err)
  os.remove(out)
  os.remove(err)
  os.remove(given)
  return status / 256, stdout, stderr
end

local function script(text)
  local path = os.tmpname()
  os.rename(path, path .. ".lua")
  path = path .. ".lua"
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

describe("mascon", function()
  it("prints its version on standard output", function()
    local version = require("mascon").version
    for _, command in ipairs{ " version", " --version" } do
      local status, out, err = run(mascon .. command)
      assert.equal(0, status)
      assert.equal("mascon " .. version .. "\n", out)
      assert.equal("", err)
    end
  end)

  it("shows its commands with --help, and those of a command with help COMMAND", function()
    local status, out = run(mascon .. " --help")
    assert.equal(0, status)
    for _, name in ipairs{ "doctor", "repl", "version" } do assert.matches(name, out) end
    local _, of_command = run(mascon .. " help doctor")
    local _, by_flag = run(mascon .. " doctor --help")
    assert.matches("Usage: mascon doctor", of_command)
    assert.equal(of_command, by_flag)
  end)

  it("answers a usage error with status 2 and names what it does not know", function()
    local status, out, err = run(mascon .. " frobnicate")
    assert.equal(2, status)
    assert.equal("", out)
    assert.matches("unknown command 'frobnicate'", err)
    status, out, err = run(mascon .. " doctor --fast")
    assert.equal(2, status)
    assert.equal("", out)
    assert.matches("unknown option '%-%-fast'", err)
    status, out, err = run(mascon .. " help frobnicate")
    assert.equal(2, status)
    assert.equal("", out)
    assert.matches("unknown command 'frobnicate'", err)
    status, out = run(mascon)
    assert.equal(2, status)
    assert.equal("", out)
  end)

  it("names the script that is not there, with status 2", function()
    local status, _, err = run(mascon .. " nowhere.lua")
    assert.equal(2, status)
    assert.equal("mascon: no such file: nowhere.lua\n", err)
  end)

  it("runs a script with its arguments, the library and no new globals", function()
    local path = script[[
      for name in pairs(_G) do assert(name ~= "mc" and name ~= "mascon", name) end
      print(require("mascon").version, ...)
      print(#arg, arg[0]:match("%.lua$"))
    ]]
    local status, out = run(mascon .. " " .. path .. " 'a b' --c")
    os.remove(path)
    assert.equal(0, status)
    assert.equal(require("mascon").version .. "\ta b\t--c\n2\t.lua\n", out)
  end)

  it("gives a script's own exit status, and 1 for an error, with the user's line", function()
    local path = script("os.exit(6)")
    assert.equal(6, (run(mascon .. " " .. path)))
    os.remove(path)
    path = script('local mc = require "mascon"\nmc.zeros("two")\n')
    local status, _, err = run(mascon .. " " .. path)
    os.remove(path)
    assert.equal(1, status)
    assert.matches("%.lua:2: zeros: ", err)
  end)

  it("runs a script from standard input, and one without .lua by its path", function()
    local status, out = run(mascon .. " - a", 'print(require("mascon").version, ...)')
    assert.equal(0, status)
    assert.equal(require("mascon").version .. "\ta\n", out)
    local path = os.tmpname()
    local file = assert(io.open(path, "wb"))
    file:write("#!/usr/bin/env mascon\nprint(...)\n")
    file:close()
    status, out = run(mascon .. " " .. path .. " b")
    os.remove(path)
    assert.equal(0, status)
    assert.equal("b\n", out)
  end)

  it("says how to build where there is no build", function()
    local path = script('require "mascon"')
    local status, _, err = run("MASCON_BUILD_DIR=/nowhere " .. mascon .. " " .. path)
    os.remove(path)
    assert.equal(1, status)
    assert.matches("mascon is not built: run scripts/quickstart.sh, or cmake", err, 1, true)
  end)

  it("is found through a symbolic link and from another folder", function()
    local link = os.tmpname()
    os.remove(link)
    os.execute(("ln -s \"$PWD/%s\" %s"):format(mascon, link))
    local status, out = run("cd / && " .. link .. " version")
    os.remove(link)
    assert.equal(0, status)
    assert.matches("^mascon ", out)
  end)

  it("is replaced by luajit, so that a kill leaves no child", function()
    local path = script('io.write(io.open("/proc/self/stat"):read("*l"):match("^%d+"), "\\n")')
    local _, out = run(("sh -c 'echo $$; exec %s %s'"):format(mascon, path))
    os.remove(path)
    local shell, lua = out:match("^(%d+)\n(%d+)\n$")
    assert.is_string(shell)
    assert.equal(shell, lua)
  end)
end)

describe("libmascon.so", function()
  it("stays in the process when LuaJIT closes it, for its threads still sleep in it", function()
    local path = script[[
      local ffi = require "ffi"
      ffi.load(package.searchpath("mascon.libmascon", package.cpath))
      collectgarbage()
      collectgarbage()
      print(io.open("/proc/self/maps"):read("*a"):find("libmascon.so", 1, true) ~= nil)
    ]]
    local status, out = run(mascon .. " " .. path)
    os.remove(path)
    assert.equal(0, status)
    assert.equal("true\n", out)
  end)
end)

describe("mascon doctor", function()
  it("prints a line a fact and finds no problem in a good build", function()
    local status, out = run(mascon .. " doctor")
    for _, what in ipairs{ "LuaJIT", "gc64", "Lua libraries", "library", "CPU", "threads",
      "matrix products", "HDF5 files", "CUDA", "CUDA self%-test", "arithmetic" } do
      assert.matches(what, out)
    end
    assert.is_nil(out:find("PROBLEM"), out)
    assert.equal(0, status)
  end)

  it("tells what the GPU is and tries it, or says why there is none", function()
    local _, out = run(mascon .. " doctor")
    if require("mascon").cuda.is_available() then
      assert.matches("ok +CUDA +[^\n]+, capability %d+%.%d, [^\n]+ GiB of which [^\n]+ driver for CUDA %d+%.%d, "
        .. "runtime %d+%.%d; products by [^\n]+; attention by ", out)
      assert.matches("ok +CUDA self%-test +%d+ results are the CPU's, a graph replays, a copy moves %d+ GB/s", out)
    else
      assert.matches("none +CUDA +device cuda: ", out)
      assert.matches("none +CUDA self%-test +no GPU", out)
    end
  end)

  it("says what is missing, and status 1, where there is no build", function()
    local status, out = run("MASCON_BUILD_DIR=/nowhere " .. mascon .. " doctor")
    assert.equal(1, status)
    assert.matches("ok +LuaJIT", out)
    assert.matches("PROBLEM +library", out)
    assert.matches("1 problem%(s%) found", out)
  end)
end)

describe("mascon repl", function()
  local function repl(input)
    local status, out, err = run(mascon .. " repl", input)
    assert.equal(0, status)
    return out, err
  end

  it("prints expressions, with and without =, and nothing for statements", function()
    assert.equal("3\n4\nnil\t5\n", (repl("1 + 2\n=2 + 2\nx = 7\nnil, 5\n")))
  end)

  it("shows what is in a plain table, one level deep", function()
    assert.equal('{2, 3}\n{}\n{1, "a", b = {...}, c = true}\n',
      (repl('mc.zeros(2, 3):shape()\n{}\n{1, "a", b = {1}, c = true}\n')))
    local out = repl("local t = {}; for i = 1, 50 do t[i] = i end; print(); many = t\nmany\n")
    assert.matches("19, 20, ... 30 more}", out, 1, true)
  end)

  it("survives values that cannot be shown", function()
    local out, err = repl('setmetatable({}, {__tostring = function() error("mute") end})\n1\n')
    assert.equal("1\n", out)
    assert.matches("mute", err)
  end)

  it("goes on with the next line while a statement is not complete", function()
    assert.equal("1\n2\n9\n", (repl("for i = 1, 2 do\nprint(i)\nend\n4 +\n5\n")))
  end)

  it("prints errors and goes on", function()
    local out, err = repl("error('bad')\nx y\nerror({})\n1\n")
    assert.equal("1\n", out)
    assert.matches("stdin:1: bad\n", err)
    assert.matches("stdin:1: .-'y'", err)
    assert.matches("table: ", err)
  end)

  it("reports a statement that the input leaves incomplete", function()
    local out, err = repl("print(1)\nf(")
    assert.equal("1\n", out)
    assert.matches("<eof>", err)
  end)

  it("has mc as its only new global", function()
    local path = script("for name in pairs(_G) do print(name) end")
    local _, plain = run("luajit " .. path)
    os.remove(path)
    local had = {}
    for name in plain:gmatch("%S+") do had[name] = true end
    local new = {}
    for name in repl("for name in pairs(_G) do print(name) end\n"):gmatch("%S+") do
      if not had[name] then new[#new + 1] = name end
    end
    assert.same({ "mc" }, new)
  end)

  it("computes with mc", function()
    assert.equal("6\n", (repl("local t = mc.arange(4); print(t:sum():item())\n")))
  end)
end)
