--- Saves where the room does not suffice: each failure names the file and the reason, what was there stays, nothing
-- is left behind, and once there is room again saving works.
--
--   scarce.lua disk|limit FOLDER
--
-- disk: FOLDER is a file system of its own, a little larger than three saves, which a ballast file fills up.
-- limit: files may not grow past a size. Prints "fine" at the end; any other end is a failure.
package.path = arg[0]:match "^(.*)/" .. "/?.lua;" .. package.path
local tools = require "tools"
local mc = require "mascon"

local kind, folder = unpack(arg)
local path, ballast = folder .. "/x.h5", folder .. "/ballast"
local REASON = kind == "disk" and "No space left on device" or "File too large"

-- Leaves room for `bytes` more (nil: all there is); of one file, or of the disk.
local function leave(bytes)
  if kind == "limit" then
    tools.limit_file_size(bytes)
    return
  end
  os.remove(ballast)
  if not bytes then return end
  local file = assert(io.open(ballast, "wb"))
  file:setvbuf "no"
  local block = ("x"):rep(4096)
  while file:write(block) do end
  file:close()
  -- now it is full: give back
  local size = file and require("lfs").attributes(ballast, "size")
  local keep = math.max(0, size - bytes)
  assert(os.execute(("truncate -s %d '%s'"):format(keep - keep % 4096, ballast)) == 0)
end

local function check(truth, what) if not truth then error(what, 2) end end

local function failed(what, file, ok, err)
  check(not ok, what .. " went well without room")
  check(tostring(err):find(file, 1, true), ("%s does not name %s: %s"):format(what, file, tostring(err)))
  check(tostring(err):find(REASON, 1, true), ("%s: wanted '%s', got: %s"):format(what, REASON, tostring(err)))
end

local function holds(step)
  local found, why = tools.step_of(path)
  check(found == step, why or ("step %d in place of %d"):format(found or -1, step))
  check(tools.names(folder, "ballast") == "x.h5", "left behind: " .. tools.names(folder, "ballast"))
end

-- From no room at all to nearly enough: whatever fails, fails alike.
local ROOM = { 0, 4096, 65536, tools.BYTES / 2, tools.BYTES - 4096 }

mc.save(path, tools.object(1))
holds(1)
for _, room in ipairs(ROOM) do
  leave(room)
  failed("save", path, pcall(mc.save, path, tools.object(2)))
  leave(nil)
  holds(1)
  leave(room)
  -- an async save may see it at once or when it is waited for
  failed("async save", path, pcall(function() mc.save(path, tools.object(2), { async = true }):wait() end))
  leave(nil)
  holds(1)
end
mc.save(path, tools.object(3))
holds(3)

-- Nobody waits: the next save says what became of the one before, and is not lost for it.
leave(0)
local handle
local ok, err = pcall(function() handle = mc.save(path, tools.object(4), { async = true }) end)
if ok then
  while not handle:done() do tools.sleep(0.005) end
  leave(nil)
  ok, err = pcall(mc.save, path, tools.object(5))
end
failed("the save after a failed async save", path, ok, err)
leave(nil)
mc.save(path, tools.object(6))
holds(6)

-- Rotation: `latest` and what it names stay.
local run = folder .. "/run"
local checkpoints = mc.train.Checkpoints { folder = run, keep = 2 }
os.remove(path)
checkpoints:save(1, tools.object(1))
local first = checkpoints:latest()
leave(65536)
failed("rotation", run .. "/step_0000002.h5", pcall(checkpoints.save, checkpoints, 2, tools.object(2)))
leave(nil)
check(checkpoints:latest() == first and tools.step_of(first) == 1, "latest is lost")
check(tools.names(run) == "latest step_0000001.h5", "left behind: " .. tools.names(run))
for step = 3, 5 do checkpoints:save(step, tools.object(step)) end
check(tools.step_of(checkpoints:latest()) == 5, "rotation does not go on")
check(tools.names(run) == "latest step_0000004.h5 step_0000005.h5", "kept: " .. tools.names(run))
tools.remove_folder(run)

-- Conversion, by the command line too: status 4 is the system's fault. What is done so far is kept for its next try.
mc.save(path, tools.object(7), { layout = "per_expert" })
local out = folder .. "/out.h5"
leave(tools.BYTES / 2)
failed("convert", out, pcall(mc.checkpoint.convert, path, out, { layout = "single" }))
local status = os.execute(("scripts/mascon convert '%s' '%s' --layout single >/dev/null 2>&1"):format(path, out))
leave(nil)
check(status == 4 * 256, "mascon convert ends with " .. status)
check(tools.step_of(path) == 7, "the source of a conversion is lost")
mc.checkpoint.convert(path, out, { layout = "single" })
check(tools.step_of(out) == 7, "convert does not work once there is room")
check(tools.names(folder, "ballast") == "out.h5 x.h5", "left behind: " .. tools.names(folder, "ballast"))

print "fine"
