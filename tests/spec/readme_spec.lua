-- Runs every Lua snippet of the README, as a user would: in a process of its own, in an empty folder. Those marked
-- `lua gpu` need a GPU, or the emulated one: CTest's cuda.readme and cuda_emulated.readme have them.
local lfs = require "lfs"
local gpu = require("mascon").cuda.is_available()

local function read(path)
  local f = assert(io.open(path))
  local text = f:read "*a"
  f:close()
  return text
end

describe("the README", function()
  local root = lfs.currentdir()
  local text = read(root .. "/README.md")
  local n = 0
  for mark, code in text:gmatch "```lua ?(%a*)\n(.-)```" do
    n = n + 1
    local run = (mark ~= "gpu" or gpu) and it or function() end
    run(("has a snippet %d that runs as it stands"):format(n), function()
      assert.is_true(mark == "" or mark == "gpu", "a snippet marked " .. mark)
      local folder = os.tmpname()
      os.remove(folder)
      assert(lfs.mkdir(folder))
      local f = assert(io.open(folder .. "/snippet.lua", "w"))
      f:write(code)
      f:close()
      local build = os.getenv "MASCON_BUILD_DIR" or "build"
      if build:sub(1, 1) ~= "/" then build = root .. "/" .. build end
      local env = ("LUA_PATH='%s/lua/?.lua;%s/lua/?/init.lua;%s/lua/?.lua;;' LUA_CPATH='%s/lib/?.so;;'")
        :format(root, root, build, build)
      local status = os.execute(("cd %s && env %s luajit snippet.lua > out.txt 2>&1"):format(folder, env))
      local out = read(folder .. "/out.txt")
      os.execute("rm -r " .. folder)
      assert.is_true(status == 0 or status == true, out)
    end)
  end
  it("has snippets at all, and names commands that exist", function()
    assert.is_true(n >= 3)
    for script in text:gmatch "scripts/([%w_%.]+)" do
      if script ~= "mascon" and script ~= "examples" then
        assert.is_truthy(lfs.attributes(root .. "/scripts/" .. script), script)
      end
    end
  end)
  it("maps rooms that exist", function()
    for path in text:gmatch "\n| `([%w_/%.]+)`" do
      if path:find("/", 1, true) then
        assert.is_truthy(lfs.attributes(root .. "/" .. path), path)
      end
    end
  end)
end)
