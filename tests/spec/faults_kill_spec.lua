--- Whenever a process that saves is killed, what was saved before is there, whole, and what it leaves is cleaned up.
package.path = "tests/faults/?.lua;" .. package.path
local mc = require "mascon"
local tools = require "tools"

local random = math.random

-- What the log says: the last step that was announced complete, the last that was begun.
local function told(log)
  local complete, begun = 0, 0
  for what, k in tools.slurp(log):gmatch "(%l+) (%d+) [%d.]+\n" do
    if what == "complete" then complete = tonumber(k) else begun = tonumber(k) end
  end
  return complete, begun
end

-- Kills a saver at `rounds` moments spread over the first two saves of a fresh process; check(complete, begun) looks
-- at the folder each time. Returns how many savers left something unfinished behind.
local function kill_often(how, folder, rounds, check)
  local log = os.tmpname()
  math.randomseed(#how * 1000 + rounds)
  local saver = tools.worker("saver", how, folder, log)
  local function run(first, wait)
    saver:send(tostring(first))
    local pid = assert(tonumber(saver:line()))
    wait(pid)
    tools.kill(pid, tools.KILL)
    assert.equal("gone", saver:line())
  end
  -- how long two saves take, the first of them in a fresh process
  local began = tools.now()
  run(1, function(pid)
    while told(log) < 2 do
      assert.is_true(tools.kill(pid, 0), "the saver has failed")
      assert.is_true(tools.now() - began < 60, "two saves take more than a minute")
      tools.sleep(0.002)
    end
  end)
  local span = tools.now() - began
  local interrupted = 0
  for round = 1, rounds do
    local complete, begun = told(log)
    check(complete, begun)
    if begun > complete then interrupted = interrupted + 1 end
    local delay = span * (round - random()) / rounds -- one in each stretch, none left out
    run(begun + 1, function() tools.sleep(delay) end)
  end
  check(told(log))
  saver:wait()
  os.remove(log)
  return interrupted
end

local function check_file(path)
  return function(complete, begun)
    local step, why = tools.step_of(path)
    assert.is_truthy(step, why)
    assert.is_true(step >= complete and step <= begun,
      ("step %d is in the file; %d was complete, %d begun"):format(step, complete, begun))
  end
end

describe("a kill at any moment", function()
  local folder
  before_each(function() folder = tools.new_folder() end)
  after_each(function() tools.remove_folder(folder) end)

  for how, rounds in pairs { sync = 50, async = 50 } do
    it(("of a process with %s saves over a file leaves the file whole, old or new"):format(how), function()
      local path = folder .. "/x.h5"
      mc.save(path, tools.object(0))
      local interrupted = kill_often(how, folder, rounds, check_file(path))
      assert.is_true(interrupted >= rounds / 4, interrupted .. " saves were met")
      mc.save(path, tools.object(0))
      assert.equal("x.h5", tools.names(folder))
      assert.equal(0, tools.step_of(path))
    end)
  end

  for _, how in ipairs { "rotate", "rotate_async" } do
    it(("in %s leaves `latest` naming a whole file, and none but whole files"):format(how), function()
      local function latest() return mc.train.Checkpoints { folder = folder, keep = 2 }:latest() end
      mc.train.Checkpoints { folder = folder, keep = 2 }:save(0, tools.object(0))
      -- the save that completes removes what is too old, so each one that died after the new file had its name and
      -- before that may have left one more
      local last, unfinished = 0, 0
      local interrupted = kill_often(how, folder, 35, function(complete, begun)
        unfinished = complete > last and 1 or unfinished + 1
        last = complete
        -- read past the class: making one cleans up, and the next saver shall find everything
        local name = tools.slurp(folder .. "/latest"):match "^(step_%d+%.h5)\n$"
        check_file(folder .. "/" .. assert(name))(complete, begun)
        local n = 0
        for file in tools.names(folder):gmatch "%S+" do
          if file:find "^step_%d+%.h5$" then
            n = n + 1
            if file ~= name then assert.is_truthy(tools.step_of(folder .. "/" .. file)) end
          end
        end
        assert.is_true(n >= 1 and n <= 2 + 1 + unfinished, n .. " files are kept")
      end)
      assert.is_true(interrupted >= 10, interrupted .. " saves were met")
      local kept = latest()
      assert.equal("", (tools.names(folder):gsub("latest", ""):gsub("step_%d+%.h5", ""):gsub("%s", "")))
      assert.is_truthy(tools.step_of(kept))
    end)
  end
end)

describe("a kill at any moment of a conversion", function()
  it("leaves its source and a file of before, and the next one goes on or starts anew", function()
    local folder = tools.new_folder()
    local source, path = folder .. "/source.h5", folder .. "/x.h5"
    mc.save(source, tools.object(7), { layout = "per_expert" })
    local interrupted = kill_often("convert", folder, 30, function(complete)
      assert.equal(7, tools.step_of(source))
      if complete > 0 then
        local step, why = tools.step_of(path)
        assert.equal(7, step, why)
      end
    end)
    assert.is_true(interrupted >= 8, interrupted .. " conversions were met")
    mc.checkpoint.convert(source, path, { layout = "single", overwrite = true })
    assert.equal(7, tools.step_of(path))
    assert.equal("source.h5 x.h5", tools.names(folder))
    tools.remove_folder(folder)
  end)
end)

describe("a signal that ends a process", function()
  for signal, number in pairs { SIGTERM = tools.TERM, SIGINT = tools.INT } do
    it(("(%s) loses no checkpoint that was announced, in the middle of an async save, too"):format(signal), function()
      local folder, log = tools.new_folder(), os.tmpname()
      local path = folder .. "/x.h5"
      mc.save(path, tools.object(0))
      math.randomseed(number)
      for _ = 1, 10 do
        local _, begun = told(log)
        local command = "exec scripts/mascon tests/faults/saver.lua async %s %s %d 2>/dev/null"
        local saver = tools.start { "sh", "-c", command:format(folder, log, begun + 1) }
        assert.equal("ready", saver:line())
        tools.sleep(random() * 0.06)
        saver:kill(number)
        local status, by = saver:wait()
        assert.is_true(by == number or status ~= 0, "it went on")
        check_file(path)(told(log))
      end
      mc.save(path, tools.object(0))
      assert.equal("x.h5", tools.names(folder))
      tools.remove_folder(folder)
      os.remove(log)
    end)
  end
end)

describe("what a writer leaves", function()
  it("is removed when it is dead and kept when it lives", function()
    local folder, log = tools.new_folder(), os.tmpname()
    local path = folder .. "/x.h5"
    local hdf5 = require "mascon.checkpoint.hdf5"
    -- a dead one
    local saver = tools.worker("saver", "sync", folder, log, "1")
    saver:line()
    local limit = tools.now() + 20
    while not tools.names(folder):find("tmp", 1, true) do assert.is_true(tools.now() < limit, "nothing is written") end
    saver:kill(tools.KILL)
    saver:wait()
    local living = hdf5.create(path)
    living:bytes("/b", "of the living")
    local before = tools.names(folder, "x.h5")
    -- a third writer of this path, in a process of its own
    local other = tools.worker("saver", "sync", folder, log, "1")
    other:line()
    while select(2, tools.slurp(log):gsub("complete", "")) < 2 do assert.is_true(tools.now() < limit, "no save") end
    other:kill(tools.KILL)
    other:wait()
    assert.is_truthy(before:find("tmp", 1, true))
    living:commit()
    local file = hdf5.open(path)
    assert.equal("of the living", file:text(file.entries[2]))
    file:close()
    mc.save(path, tools.object(3))
    assert.equal("x.h5", tools.names(folder))
    tools.remove_folder(folder)
    os.remove(log)
  end)
end)
