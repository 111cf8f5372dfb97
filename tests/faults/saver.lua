--- Saves in a loop until it is killed, and notes in a log what it has begun and what it was told is complete.
--
--   saver.lua HOW FOLDER LOG [FIRST]
--
-- HOW: sync and async save over FOLDER/x.h5; rotate and rotate_async keep two files in FOLDER; convert changes the
-- layout of FOLDER/source.h5 into FOLDER/x.h5, over and over. With FIRST it begins at that step. Without, it is the
-- parent of many: for each line "FIRST" on standard input a copy of this process does the work; its number is
-- written, and when it is gone "gone".
package.path = arg[0]:match "^(.*)/" .. "/?.lua;" .. package.path
local tools = require "tools"
local mc = require "mascon"

local how, folder, log_path, first = unpack(arg)

local function work(step)
  local log = assert(io.open(log_path, "a"))
  log:setvbuf "no" -- a line is there as a whole once write returns
  local function note(what, k) log:write(("%s %d %.6f\n"):format(what, k, tools.now())) end
  local path = folder .. "/x.h5"
  if how == "sync" then
    for k = step, math.huge do
      local object = tools.object(k)
      note("begun", k)
      mc.save(path, object)
      note("complete", k)
    end
  elseif how == "async" then
    -- the next save waits for the one before, so its return completes that
    for k = step, math.huge do
      local object = tools.object(k)
      note("begun", k)
      local handle = mc.save(path, object, { async = true })
      if k > step then note("complete", k - 1) end
      for _, t in ipairs { object.b, object.model.a } do t:fill_(-1) end -- the snapshot is taken
      if k % 3 == 0 then
        handle:wait()
        note("complete", k)
      end
    end
  elseif how == "rotate" or how == "rotate_async" then
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 2 }
    local opts = how == "rotate_async" and { async = true } or nil
    for k = step, math.huge do
      local object = tools.object(k)
      note("begun", k)
      checkpoints:save(k, object, opts)
      if how == "rotate" then
        note("complete", k)
      elseif k > step then
        note("complete", k - 1)
      end
    end
  elseif how == "convert" then
    for k = step, math.huge do
      note("begun", k)
      mc.checkpoint.convert(folder .. "/source.h5", path,
        { layout = k % 2 == 0 and "single" or "per_expert", overwrite = true })
      note("complete", k)
    end
  end
  error("saver.lua: what is " .. tostring(how))
end

if first then
  print "ready"
  io.stdout:flush()
  work(tonumber(first))
end
for line in io.lines() do
  local pid = tools.fork(function() work(tonumber(line)) end)
  io.write(pid, "\n")
  io.flush()
  tools.wait(pid)
  io.write "gone\n"
  io.flush()
end
