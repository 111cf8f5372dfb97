-- mc.train.Checkpoints: which files stay, what `latest` names, what opening cleans up and whom it leaves alone.

local hdf5 = require "mascon.checkpoint.hdf5"
local lfs = require "lfs"
local mc = require "mascon"
local helper = require "helper"

local folder

local function path(name) return folder .. "/" .. name end

local function files()
  local list = {}
  for name in lfs.dir(folder) do
    if name ~= "." and name ~= ".." then list[#list + 1] = name end
  end
  table.sort(list)
  return list
end

local function write(name, text)
  local f = assert(io.open(path(name), "w"))
  f:write(text)
  f:close()
end

local function read(name)
  local f = assert(io.open(path(name)))
  local text = f:read("*a")
  f:close()
  return text
end

local function object(step) return { w = mc.full({ 10 }, step), step = step } end

-- the steps of the files that are there
local function steps()
  local list = {}
  for _, name in ipairs(files()) do
    local step = name:match("^step_(%d+)%.h5$")
    if step then list[#list + 1] = tonumber(step) end
  end
  table.sort(list)
  return list
end

-- fn() with what it writes to standard error
local function with_stderr(fn)
  local said, real = {}, io.stderr
  io.stderr = { write = function(_, text) said[#said + 1] = text end } -- luacheck: ignore 122
  local ok, result = pcall(fn)
  io.stderr = real -- luacheck: ignore 122
  assert(ok, result)
  return result, table.concat(said)
end

describe("the checkpoints of a run", function()
  before_each(function()
    folder = os.tmpname()
    os.remove(folder)
  end)
  after_each(function()
    for _, name in ipairs(files()) do
      if not os.remove(path(name)) then lfs.rmdir(path(name)) end
    end
    lfs.rmdir(folder)
  end)

  it("are all kept when nothing else is said, and latest names the last one", function()
    local checkpoints = mc.train.Checkpoints { folder = folder }
    assert.is_nil(checkpoints:latest())
    for step = 1, 4 do assert.are.equal(path(("step_%07d.h5"):format(step)), checkpoints:save(step, object(step))) end
    assert.are.same({ 1, 2, 3, 4 }, steps())
    assert.are.equal("step_0000004.h5\n", read("latest"))
    assert.are.equal(path("step_0000004.h5"), checkpoints:latest())
    assert.are.equal(4, mc.load(checkpoints:latest()).step)
    assert.are.equal(5, #files())
  end)

  it("stay as many as keep says, and those of every keep_every steps besides", function()
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 2, keep_every = 40 }
    for step = 10, 120, 10 do
      checkpoints:save(step, object(step))
      assert.is_true(checkpoints:latest() == path(("step_%07d.h5"):format(step)))
    end
    assert.are.same({ 40, 80, 110, 120 }, steps())
    checkpoints = mc.train.Checkpoints { folder = folder, keep = 1 } -- who says nothing more keeps nothing more
    checkpoints:save(130, object(130))
    assert.are.same({ 130 }, steps())
  end)

  it("are sorted by their steps as numbers", function()
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 2 }
    for _, step in ipairs { 9999999, 10000000, 123456789 } do checkpoints:save(step, object(step)) end
    assert.are.same({ 10000000, 123456789 }, steps())
    assert.are.equal("step_123456789.h5\n", read("latest"))
  end)

  it("of one step twice are one file, which counts once", function()
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 2 }
    checkpoints:save(1, object(1))
    checkpoints:save(2, object(2))
    checkpoints:save(2, object(20))
    assert.are.same({ 1, 2 }, steps())
    assert.are.equal(20, mc.load(checkpoints:latest()).step)
  end)

  it("of later steps are left alone by a run that went back, until it passes them", function()
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 2 }
    for _, step in ipairs { 30, 40 } do checkpoints:save(step, object(step)) end
    for _, step in ipairs { 10, 15, 20 } do checkpoints:save(step, object(step)) end
    assert.are.same({ 15, 20, 30, 40 }, steps())
    assert.are.equal(path("step_0000020.h5"), checkpoints:latest())
    checkpoints:save(35, object(35))
    assert.are.same({ 30, 35, 40 }, steps())
  end)

  it("never touch files of other names", function()
    lfs.mkdir(folder)
    local others = { "step_1.h5", "step_00000001.h5", "step_0000001.h5.bak", "best.h5", "xstep_0000001.h5",
      "step_0000001_h5", "step_000001x.h5", "best.h5.tmp-1-1", "step_1.h5.tmp-1-1" }
    for _, name in ipairs(others) do write(name, name) end
    lfs.mkdir(path("step_0000002.h5"))
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 1 }
    checkpoints:save(7, object(7))
    checkpoints:save(8, object(8))
    for _, name in ipairs(others) do assert.are.equal(name, read(name)) end
    assert.are.equal("directory", lfs.attributes(path("step_0000002.h5"), "mode"))
    assert.are.same({ 1, 1, 2, 8 }, steps()) -- step_1.h5, step_00000001.h5 and the folder are not ours
  end)

  it("are deleted only after the new one is in place and found right", function()
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 1 }
    checkpoints:save(1, object(1))
    lfs.mkdir(path("step_0000002.h5")) -- so that the save cannot take its name
    helper.raises("it is a folder", checkpoints.save, checkpoints, 2, object(2))
    assert.are.equal("step_0000001.h5\n", read("latest"))
    assert.are.equal(1, mc.load(checkpoints:latest()).step)
    assert.are.same({ 1, 2 }, steps())
    -- a pointer that cannot be replaced: the new file is there, and nothing is deleted
    os.remove(path("latest"))
    lfs.mkdir(path("latest"))
    helper.raises("latest", checkpoints.save, checkpoints, 3, object(3))
    assert.are.same({ 1, 2, 3 }, steps())
  end)

  it("are read back from the disk before any of them is deleted, and where verify asks for it", function()
    lfs.mkdir(folder)
    local probe = hdf5.create(path("probe.h5"))
    local Writer = getmetatable(probe).__index
    probe:discard()
    local check_written, then_remove, calls = Writer.check_written, Writer.then_remove, {}
    function Writer.check_written(...)
      calls[#calls + 1] = "check"
      return check_written(...)
    end
    function Writer.then_remove(...)
      calls[#calls + 1] = "remove"
      return then_remove(...)
    end
    finally(function() Writer.check_written, Writer.then_remove = check_written, then_remove end)
    local function calls_of(options)
      options.folder = folder
      local checkpoints = mc.train.Checkpoints(options)
      calls = {}
      for step = 1, 2 do
        local _, handle = checkpoints:save(step, object(step))
        if handle then handle:wait() end
      end
      return calls
    end
    for _, async in ipairs { false, true } do
      assert.are.same({ "check", "check", "remove" }, calls_of { keep = 1, async = async })
      assert.are.same({ "check", "check", "remove" }, calls_of { keep = 1, verify = true, async = async })
      assert.are.same({ "check", "check" }, calls_of { verify = true, async = async })
      assert.are.same({}, calls_of { async = async })
    end
  end)

  it("are removed after an asynchronous save too", function()
    local checkpoints = mc.train.Checkpoints { folder = folder, keep = 2, async = true }
    local file, save
    for step = 1, 5 do file, save = checkpoints:save(step, object(step)) end
    save:wait()
    assert.are.equal(file, checkpoints:latest())
    assert.are.same({ 4, 5 }, steps())
    assert.are.equal(5, mc.load(file).step)
    file, save = checkpoints:save(6, object(6), { async = false })
    assert.is_nil(save)
    assert.are.equal(file, checkpoints:latest())
  end)

  it("take the options of mc.save", function()
    local checkpoints = mc.train.Checkpoints { folder = folder }
    local sd = mc.nn.GroupedLinear { num_gemms = 3, in_features = 2, out_features = 2, bias = false }:state_dict()
    local file = checkpoints:save(1, { model = sd }, { layout = "single" })
    assert.are.same({ 3, 2, 2 }, mc.load(file).model.weight:shape())
    helper.raises("save: unknown option layouts", checkpoints.save, checkpoints, 1, {}, { layouts = "single" })
  end)

  it("are cleaned of what killed writers left, when they are opened", function()
    lfs.mkdir(folder)
    for _, name in ipairs { "step_0000003.h5.tmp-999999-0", "step_12345678.h5.tmp-999999-17", "latest.tmp-999999-1" } do
      write(name, "half")
    end
    write("step_0000003.h5.partial", "of a conversion")
    mc.train.Checkpoints { folder = folder }
    assert.are.same({ "step_0000003.h5.partial" }, files())
  end)

  it("survive a killed writer: latest names a whole file, and what is half is gone at the next start", function()
    lfs.mkdir(folder)
    write("script.lua", ([[
      local mc = require "mascon"
      local checkpoints = mc.train.Checkpoints { folder = %q, keep = 2, async = true }
      local from = checkpoints:latest()
      local step = from and mc.load(from).step or 0
      while true do
        step = step + 1
        checkpoints:save(step, { w = mc.full({ 2 ^ 20 }, step), step = step })
      end
    ]]):format(folder))
    local reached = 0
    for _, seconds in ipairs { 0.5, 0.62, 0.74 } do
      os.execute(("LUA_PATH=%q LUA_CPATH=%q luajit %s & sleep %g; kill -9 $!; wait $! 2>/dev/null"):format(
        package.path, package.cpath, path("script.lua"), seconds))
      local latest = mc.train.Checkpoints { folder = folder }:latest()
      assert.is_truthy(latest, "no save was through in time")
      assert.are.equal(latest, path(read("latest"):match("[^\n]+")))
      assert.is_true(mc.checkpoint.verify(latest).ok)
      local back = mc.load(latest)
      assert.are.equal(back.step, back.w:max():item())
      assert.is_true(back.step > reached)
      reached = back.step
      for _, name in ipairs(files()) do
        assert.is_truthy(name == "latest" or name == "script.lua" or name:find("^step_%d+%.h5$"), name)
      end
      assert.is_true(#steps() <= 4) -- two, one that was about to be named by latest, one about to be removed
    end
  end)

  describe("whose latest is of no use", function()
    local checkpoints

    before_each(function()
      checkpoints = mc.train.Checkpoints { folder = folder }
      for _, step in ipairs { 9, 10, 100 } do checkpoints:save(step, object(step)) end
    end)

    it("fall back to the newest file that opens, and say so", function()
      os.remove(path("step_0000100.h5"))
      local file, said = with_stderr(function() return checkpoints:latest() end)
      assert.are.equal(path("step_0000010.h5"), file)
      assert.are.equal(("mascon: %s names step_0000100.h5, which cannot be read (No such file or directory); "
        .. "going on from step_0000010.h5\n"):format(path("latest")), said)
      write("step_0000100.h5", "half a fi")
      write("step_0000010.h5", "")
      file, said = with_stderr(function() return checkpoints:latest() end)
      assert.are.equal(path("step_0000009.h5"), file)
      assert.is_truthy(said:find("which cannot be read (not an HDF5 file", 1, true), said)
    end)

    it("take an earlier step rather than one of a run that went back", function()
      write("latest", "step_0000050.h5\n")
      assert.are.equal(path("step_0000010.h5"), (with_stderr(function() return checkpoints:latest() end)))
      os.remove(path("step_0000009.h5"))
      os.remove(path("step_0000010.h5"))
      assert.are.equal(path("step_0000100.h5"), (with_stderr(function() return checkpoints:latest() end)))
    end)

    it("fall back where it is missing, too", function()
      os.remove(path("latest"))
      local file, said = with_stderr(function() return checkpoints:latest() end)
      assert.are.equal(path("step_0000100.h5"), file)
      assert.are.equal(("mascon: %s is missing; going on from step_0000100.h5\n"):format(path("latest")), said)
    end)

    it("raise when no file opens, rather than let a run begin anew", function()
      for _, name in ipairs { "step_0000009.h5", "step_0000010.h5", "step_0000100.h5" } do os.remove(path(name)) end
      helper.raises("latest names step_0000100.h5, which cannot be read (No such file or directory); no other "
        .. "checkpoint there can be read either", checkpoints.latest, checkpoints)
      os.remove(path("latest"))
      assert.is_nil(checkpoints:latest())
      write("step_0000009.h5", "x")
      helper.raises("latest is missing; no other checkpoint there can be read either", checkpoints.latest, checkpoints)
    end)

    it("follow one that names a file of another name", function()
      assert(os.rename(path("step_0000100.h5"), path("best.h5")))
      write("latest", "best.h5\n")
      assert.are.equal(path("best.h5"), checkpoints:latest())
    end)
  end)

  describe("opened by a relative path", function()
    local home
    before_each(function()
      home = lfs.currentdir()
      assert(lfs.mkdir(folder))
      assert(lfs.chdir(folder))
    end)
    after_each(function()
      lfs.chdir(home)
      os.execute("rm -r " .. folder .. "/sub")
    end)

    it("stay in their folder wherever the process goes, in the background too", function()
      for _, async in ipairs { false, true } do
        local checkpoints = mc.train.Checkpoints { folder = "sub/ö x", keep = 2, async = async }
        for step = 1, 3 do checkpoints:save(step, object(step)) end
        assert.are.equal("sub/ö x/step_0000003.h5", (checkpoints:save(3, object(3))))
        assert(lfs.chdir("sub"))
        local file, handle = checkpoints:save(4, object(4))
        if handle then handle:wait() end
        assert.are.equal(folder .. "/sub/ö x/step_0000004.h5", file)
        assert.are.equal(file, checkpoints:latest())
        assert.are.same({ 4, 3 }, checkpoints:steps())
        assert(lfs.chdir(folder))
        assert.are.equal("sub/ö x/step_0000004.h5", checkpoints:latest())
      end
      assert.are.same({ "sub" }, files())
    end)
  end)

  it("name what they cannot use at the user's line", function()
    local Checkpoints = mc.train.Checkpoints
    helper.raises("rotation_spec.lua", function() Checkpoints { folder = "" } end)
    helper.raises('Checkpoints: folder: wanted a path, got ""', Checkpoints, { folder = "" })
    helper.raises("Checkpoints: folder: wanted a path", Checkpoints, { folder = folder .. "\0x" })
    local checkpoints = Checkpoints { folder = folder, keep = 1 }
    helper.raises("rotation_spec.lua", function() checkpoints:save(1, object(1), "async") end)
    helper.raises('Checkpoints: save: wanted a table of options, got "async"', function()
      checkpoints:save(1, object(1), "async")
    end)
    assert(lfs.rmdir(folder))
    helper.raises("Checkpoints: cannot open " .. folder, function() checkpoints:latest() end)
    helper.raises("rotation_spec.lua", function() checkpoints:latest() end)
    assert(lfs.mkdir(folder))
    write("latest", "\27[31mred\n")
    helper.raises("names ?[31mred, which", function() checkpoints:latest() end)
  end)

  it("refuse options that contradict each other", function()
    helper.raises("Checkpoints: keep_every says what keep leaves alone; without keep nothing is removed",
      mc.train.Checkpoints, { folder = folder, keep_every = 10 })
    helper.raises("verify = false", mc.train.Checkpoints, { folder = folder, keep = 1, verify = false })
    helper.raises("option keep is 0, wanted a positive integer", mc.train.Checkpoints, { folder = folder, keep = 0 })
    mc.train.Checkpoints { folder = folder, verify = true }:save(1, object(1))
    helper.raises("Checkpoints: step: wanted an integer, got 1.5", function()
      mc.train.Checkpoints { folder = folder }:save(1.5, object(1))
    end)
  end)
end)
