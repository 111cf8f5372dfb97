--- Full disks, closed folders, folders that go, and two processes that save to one path.
package.path = "tests/faults/?.lua;" .. package.path
local mc = require "mascon"
local tools = require "tools"
local hdf5 = require "mascon.checkpoint.hdf5"

local function raises(parts, fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  for _, part in ipairs(parts) do assert.is_truthy(tostring(err):find(part, 1, true), tostring(err)) end
end

describe("a save without room", function()
  local folder
  before_each(function() folder = tools.new_folder() end)
  after_each(function() tools.remove_folder(folder) end)

  -- A file system of a few MB in a mount namespace of its own, so that nothing stays mounted.
  local function small_disk()
    for _, unshare in ipairs { "unshare -m", "unshare -rm" } do
      local try = ("%s sh -c 'mount -t tmpfs -o size=1m none %s' 2>/dev/null"):format(unshare, folder)
      if os.execute(try) == 0 then return unshare end
    end
    return nil
  end

  it("on a full disk says so, leaves what was there and works again once there is room", function()
    local unshare = small_disk()
    if not unshare then return pending "no file system can be mounted here" end
    local mount = ("mount -t tmpfs -o size=%d none '%s'"):format(4 * tools.BYTES, folder)
    local worker = tools.start { "sh", "-c",
      ("exec %s sh -c \"%s && exec scripts/mascon tests/faults/scarce.lua disk '%s'\""):format(unshare, mount, folder) }
    local status, _, said = worker:wait()
    assert.equal("fine", said)
    assert.equal(0, status)
  end)

  it("past a process's file size says so, leaves what was there and works again without the limit", function()
    local worker = tools.worker("scarce", "limit", folder)
    local status, _, said = worker:wait()
    assert.equal("fine", said)
    assert.equal(0, status)
  end)
end)

describe("a save where it is not allowed", function()
  local folder, path
  before_each(function()
    folder = tools.new_folder()
    path = folder .. "/x.h5"
    mc.save(path, tools.object(1))
  end)
  after_each(function() tools.remove_folder(folder) end)

  local function unchanged()
    assert.equal(1, tools.step_of(path))
    assert.equal("x.h5", tools.names(folder))
  end

  it("(a read-only folder) is refused with the file's name and the reason", function()
    tools.chmod(folder, tonumber("555", 8))
    local results = { tools.unprivileged(function()
      local parts = { folder, "Permission denied" }
      raises(parts, mc.save, folder .. "/y.h5", tools.object(2))
      raises(parts, function() mc.save(folder .. "/y.h5", tools.object(2), { async = true }):wait() end)
      raises(parts, function() mc.train.Checkpoints { folder = folder .. "/run", keep = 2 } end)
    end) }
    tools.chmod(folder, tonumber("755", 8))
    assert.is_true(results[1], results[2])
    unchanged()
  end)

  it("(a write-protected file) is refused, and the file stays", function()
    tools.chmod(path, tonumber("444", 8))
    raises({ path, "it is write-protected" }, mc.save, path, tools.object(2))
    raises({ path, "it is write-protected" }, function() mc.save(path, tools.object(2), { async = true }):wait() end)
    unchanged()
  end)

  it("(the folder is gone, before or meanwhile) names the file", function()
    local gone = folder .. "/gone"
    raises({ gone .. "/x.h5", "No such file or directory" }, mc.save, gone .. "/x.h5", tools.object(2))
    assert(os.execute("mkdir " .. gone) == 0)
    local writer = hdf5.create(gone .. "/x.h5")
    writer:bytes("/b", "text")
    tools.remove_folder(gone)
    raises({ gone .. "/x.h5", "No such file or directory" }, writer.commit, writer)
    -- an async save is in flight, at any stage
    math.randomseed(5)
    for _ = 1, 10 do
      assert(os.execute("mkdir " .. gone) == 0)
      local handle = mc.save(gone .. "/x.h5", tools.object(2), { async = true })
      tools.sleep(math.random() * 0.02)
      tools.remove_folder(gone)
      local ok, err = pcall(handle.wait, handle)
      assert.is_true(ok or tostring(err):find(gone .. "/x.h5", 1, true) ~= nil, tostring(err))
      tools.remove_folder(gone)
    end
    unchanged()
  end)
end)

describe("two processes that save to one path", function()
  it("never show a reader anything but one whole file of either", function()
    local folder = tools.new_folder()
    local path = folder .. "/x.h5"
    mc.save(path, tools.object(0))
    local savers = {}
    for i = 1, 2 do savers[i] = tools.worker("racer", path, tostring(i * 1000), "50") end
    local seen, loads, running = {}, 0, true
    while running do
      running = false
      for _, saver in ipairs(savers) do running = running or tools.kill(saver.pid, 0) and not saver:is_over() end
      local step, why = tools.step_of(path)
      assert.is_truthy(step, why)
      seen[math.floor(step / 1000)] = true
      loads = loads + 1
    end
    for _, saver in ipairs(savers) do
      local status, _, said = saver:wait()
      assert.equal(0, status, said)
    end
    assert.is_true(loads >= 10 and seen[1] and seen[2], loads .. " loads")
    assert.equal("x.h5", tools.names(folder))
    tools.remove_folder(folder)
  end)
end)
