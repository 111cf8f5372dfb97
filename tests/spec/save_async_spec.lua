-- mc.save with async = true: what is in the file, who hears of a failure and when, and what the end of a process does.

local lfs = require "lfs"
local mc = require "mascon"
local helper = require "helper"

local folder = os.tmpname()
os.remove(folder)
lfs.mkdir(folder)

local function path(name) return folder .. "/" .. name end

local function exists(name) return lfs.attributes(name) ~= nil end

-- A save that fails: its folder goes elsewhere while the bytes are written.
local BIG = 8 * 2 ^ 20
local big
local function failing(opts)
  big = big or mc.ones(BIG)
  lfs.mkdir(path("sub"))
  opts = opts or {}
  opts.async = true
  local save = mc.save(path("sub/x.h5"), { big = big }, opts)
  assert(os.rename(path("sub"), path("away")))
  return save
end

local function clean()
  for _, sub in ipairs { "/sub", "/away", "" } do
    if exists(folder .. sub) then
      for name in lfs.dir(folder .. sub) do os.remove(folder .. sub .. "/" .. name) end
      if sub ~= "" then lfs.rmdir(folder .. sub) end
    end
  end
end

-- Runs a script in a process of its own: what it says on standard output and error, and its status.
local function run(code, limit)
  local file = path("script.lua")
  local f = assert(io.open(file, "w"))
  f:write(('local mc = require "mascon"\nlocal folder = %q\n'):format(folder), code)
  f:close()
  local command = ("cd / && %s LUA_PATH=%q LUA_CPATH=%q luajit %s >%s 2>%s; echo $?"):format(limit or "", package.path,
    package.cpath, file, path("out.txt"), path("err.txt"))
  local p = io.popen(command)
  local status = tonumber(p:read("*a"))
  p:close()
  local texts = {}
  for i, name in ipairs { "out.txt", "err.txt" } do
    f = assert(io.open(path(name)))
    texts[i] = f:read("*a")
    f:close()
  end
  return texts[1], texts[2], status
end

-- The bytes cannot be written for a limit on the size of files; what a script writes itself stays below it.
local LIMIT = "ulimit -f 200;"
local BEGIN = 'local save = mc.save(folder .. "/t.h5", {t = mc.zeros(1000000)}, {async = true})\n'
local LINE = ("mascon: the save of %s failed: "):format(path("t.h5"))

describe("a save in the background", function()
  after_each(clean)
  teardown(function()
    clean()
    lfs.rmdir(folder)
  end)

  it("gives the very file that one in the foreground gives", function()
    local object = { model = { w = mc.arange(300000), turned = mc.arange(600):view(20, 30):transpose(1, 2) }, step = 3,
      text = ("x"):rep(3000) }
    mc.save(path("1.h5"), object)
    local save = mc.save(path("2.h5"), object, { async = true })
    assert.are.equal(path("2.h5"), save.path)
    assert.is_nil(save:wait())
    local function bytes(name)
      local f = assert(io.open(path(name), "rb"))
      local text = f:read("*a")
      f:close()
      return text
    end
    assert.is_true(bytes("1.h5") == bytes("2.h5"))
  end)

  it("holds what there was at the call, whatever becomes of the tensors and tables", function()
    local t, values = mc.ones(3000000), { n = 1 }
    local save = mc.save(path("t.h5"), { t = t, values = values, made = mc.scope(function() return mc.ones(5) end) },
      { async = true })
    t:fill_(2)
    t:free()
    values.n = 2
    collectgarbage()
    collectgarbage()
    save:wait()
    local back = mc.load(path("t.h5"))
    assert.are.equal(1, back.t:min():item())
    assert.are.equal(1, back.t:max():item())
    assert.are.equal(1, back.values.n)
    assert.is_true(mc.checkpoint.verify(path("t.h5")).ok)
  end)

  it("copies tensors of a device that the host cannot read", function()
    local t = mc.arange(100000):to("fake")
    local save = mc.save(path("t.h5"), { t = t }, { async = true })
    t:fill_(0)
    save:wait()
    assert.is_true(mc.equal(mc.arange(100000), mc.load(path("t.h5")).t))
  end)

  it("tells when it is through, and how far it is", function()
    local save = mc.save(path("t.h5"), { t = mc.ones(100000) }, { async = true })
    local finished, done, total
    repeat finished, done, total = save:done() until finished
    assert.is_true(total >= 400000)
    assert.are.equal(total, done)
    assert.is_true(exists(path("t.h5")))
    assert.is_nil(save:wait())
    assert.is_nil(save:wait())
    assert.is_true(save:done())
  end)

  it("is waited for by the next save", function()
    mc.save(path("1.h5"), { t = mc.ones(3000000) }, { async = true })
    local second = mc.save(path("2.h5"), { t = mc.ones(1000000) }, { async = true })
    assert.is_true(exists(path("1.h5")))
    mc.save(path("3.h5"), {})
    assert.is_true(exists(path("2.h5")))
    second:wait()
    -- from another coroutine, too
    coroutine.wrap(function() mc.save(path("4.h5"), { t = mc.ones(1000000) }, { async = true }) end)()
    coroutine.wrap(function() mc.save(path("5.h5"), {}) end)()
    assert.is_true(exists(path("4.h5")))
  end)

  describe("that fails", function()
    it("raises its failure at the line of wait, and leaves nothing for the next save", function()
      local save = failing()
      local ok, err = pcall(function() save:wait() end)
      assert.is_false(ok)
      assert.is_truthy(err:find("save_async_spec.lua:%d+: .*/sub/x.h5: .*No such file or directory"), err)
      helper.raises("No such file or directory", save.wait, save) -- whoever asks again is told again
      assert.is_true(save:done())
      mc.save(path("next.h5"), {})
      assert.is_true(exists(path("next.h5")))
    end)

    it("raises its failure at the next save, once, and that one is not begun", function()
      failing()
      local function next_save() mc.save(path("next.h5"), {}) end
      local ok, err = pcall(next_save)
      assert.is_false(ok)
      assert.is_truthy(err:find("save_async_spec.lua:%d+: save: "), err)
      assert.is_truthy(err:find(("save: %s was not begun: the save of %s before it failed: "):format(path("next.h5"),
        path("sub/x.h5")), 1, true), err)
      assert.is_truthy(err:find("No such file or directory", 1, true), err)
      assert.is_false(exists(path("next.h5")))
      next_save()
      assert.is_true(exists(path("next.h5")))
    end)

    it("is not forgotten when its handle is dropped, or was only asked whether it is through", function()
      failing()
      collectgarbage()
      collectgarbage()
      helper.raises("before it failed", mc.save, path("next.h5"), {})
      clean()
      local save = failing()
      repeat until save:done()
      helper.raises("before it failed", mc.save, path("next.h5"), {}, { async = true })
      helper.raises("No such file or directory", save.wait, save)
    end)

    it("stays unreported by a save that is not begun for faults of its own", function()
      local save = failing()
      helper.raises("save: unknown option layouts", mc.save, path("next.h5"), {}, { layouts = 1 })
      helper.raises("f is a function", mc.save, path("next.h5"), { f = print })
      helper.raises("before it failed", mc.save, path("next.h5"), {})
      assert.is_true(save:done())
    end)

    it("leaves the older file as it was", function()
      local out, err = run([[
        mc.save(folder .. "/t.h5", {n = 1})
        local save = mc.save(folder .. "/t.h5", {t = mc.zeros(1000000)}, {async = true})
        print(pcall(save.wait, save))
        print(mc.load(folder .. "/t.h5").n)
      ]], LIMIT)
      assert.is_truthy(out:find("^false\t[^\n]*t.h5: .*File too large"), out .. err)
      assert.is_truthy(out:find("\n1\n$"), out)
    end)
  end)

  describe("at the end of the process", function()
    it("is waited for", function()
      for _, ending in ipairs { "", "os.exit(0)", "os.exit(true, true)", "save = nil collectgarbage()" } do
        local out, err, status = run(BEGIN:gsub("1000000", "4000000") .. ending)
        assert.are.same({ "", "", 0 }, { out, err, status })
        assert.are.equal(4000000, mc.load(path("t.h5")).t:numel())
        clean()
      end
    end)

    it("is waited for where os.exit was looked up before the save", function()
      local _, err, status = run([[
        local function main()
          mc.save(folder .. "/t.h5", {t = mc.zeros(4000000)}, {async = true})
          return 0
        end
        os.exit(main())
      ]])
      assert.are.same({ "", 0 }, { err, status })
      assert.is_true(exists(path("t.h5")))
    end)

    it("is waited for when the script fails, whose message and status stay", function()
      local _, err, status = run(BEGIN .. 'error("mine")')
      assert.is_truthy(err:find("script.lua:%d+: mine\n"), err)
      assert.are.equal(1, status)
      assert.is_true(exists(path("t.h5")))
      _, _, status = run(BEGIN .. "os.exit(7)")
      assert.are.equal(7, status)
    end)

    it("prints its failure in a line, and the status is 1", function()
      for _, ending in ipairs { "", "os.exit(0)", "os.exit()", "os.exit(true)", "os.exit(0, true)",
        "save = nil collectgarbage()", "repeat until save:done()" } do
        local out, err, status = run(BEGIN .. 'io.write("said before")\n' .. ending, LIMIT)
        assert.are.equal("said before", out)
        assert.are.equal(LINE, err:sub(1, #LINE), ending)
        assert.is_truthy(err:find("^[^\n]*File too large[^\n]*\n$"), err)
        assert.are.equal(1, status, ending)
      end
    end)

    it("keeps a status that says more, and the script's own error", function()
      local _, err, status = run(BEGIN .. "os.exit(75)", LIMIT)
      assert.are.equal(75, status)
      assert.are.equal(LINE, err:sub(1, #LINE))
      _, err, status = run(BEGIN .. 'error("mine")', LIMIT)
      assert.are.equal(1, status)
      assert.is_truthy(err:find("script.lua:%d+: mine\n"), err)
      assert.is_truthy(err:find(LINE, 1, true), err)
    end)

    it("says nothing of what was raised before", function()
      local _, err, status = run(BEGIN .. "pcall(save.wait, save)", LIMIT)
      assert.are.same({ "", 0 }, { err, status })
      _, err, status = run(BEGIN .. 'pcall(mc.save, folder .. "/u.h5", {})', LIMIT)
      assert.are.same({ "", 0 }, { err, status })
    end)
  end)

  it("reports its progress in the foreground, and takes no progress function itself", function()
    local calls, last, all = 0, -1, nil
    mc.save(path("t.h5"), { t = mc.ones(BIG) }, { progress = function(done, total)
      calls = calls + 1
      assert(done >= last and done <= total)
      last, all = done, total
    end })
    assert.is_true(calls >= 1)
    assert.are.equal(all, last)
    assert.is_true(all >= 4 * BIG)
    helper.raises("save: progress is for saves that wait; with async = true, h:done()", mc.save, path("u.h5"), {},
      { async = true, progress = print })
    -- what only the save holds outlives a collection meanwhile
    local t = mc.arange(4 * 2 ^ 20)
    mc.save(path("t.h5"), { turned = t:view(2 ^ 10, 2 ^ 12):transpose(1, 2) }, { progress = function()
      collectgarbage()
      mc.full({ 2 ^ 20 }, -1)
    end })
    assert.is_true(mc.equal(t:view(2 ^ 10, 2 ^ 12):transpose(1, 2):contiguous(), mc.load(path("t.h5")).turned))
    -- an error in it comes out, after the save
    helper.raises("enough of this", mc.save, path("u.h5"), { t = mc.ones(10) }, { progress = function()
      error("enough of this")
    end })
    assert.are.equal(10, mc.load(path("u.h5")).t:numel())
  end)
end)
