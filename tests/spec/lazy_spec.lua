-- mc.load(path, {lazy = true}): names, shapes and dtypes at once, bytes when asked for.
local hdf5 = require "mascon.checkpoint.hdf5"
local helper = require "helper"
local mc = require "mascon"

local path = os.tmpname()

local function layer(single)
  local m = mc.nn.GroupedLinear { num_gemms = 3, in_features = 4, out_features = 5, bias = false,
    single_grouped_weight = single }
  mc.no_grad(function() m.weight:copy_(mc.arange(60):view(3, 5, 4)) end)
  return m
end

describe("a lazy load", function()
  teardown(function() os.remove(path) end)

  -- the file's tensors that are read while fn runs, as "path first count"
  local function reads(fn)
    local open, list = hdf5.open, {}
    finally(function() hdf5.open = open end)
    hdf5.open = function(...)
      local file = open(...)
      local plain = file.read
      function file.read(f, entry, first, t)
        list[#list + 1] = ("%s %d %d"):format(entry.path, first, t:numel())
        return plain(f, entry, first, t)
      end
      return file
    end
    fn()
    hdf5.open = open
    return list
  end

  it("reads nothing until it is asked to, and then what was asked for", function()
    local m = layer(true)
    mc.save(path, { model = m:state_dict(), step = 7, list = { true, "x" }, scalar = mc.tensor(2.5),
      none = mc.zeros(0, 3) })
    local list = reads(function()
      local ck = mc.load(path, { lazy = true })
      assert.are.same({ 7, true, "x" }, { ck.step, ck.list[1], ck.list[2] })
      local w = ck.model.weight
      assert.are.same({ "model.weight", { 3, 5, 4 }, "float32", 240 }, { w.name, w.shape, w.dtype, w.bytes })
      assert.are.equal("lazy float32 [3, 5, 4], 240 bytes: model.weight", tostring(w))
      helper.same(w:read(), m.weight)
      helper.same(w:read { first = 2, count = 1 }, m.weight:narrow(1, 2, 1))
      helper.same(w:read { first = 2 }, m.weight:narrow(1, 2, 2))
      helper.same(w:read { count = 2 }, m.weight:narrow(1, 1, 2))
      assert.are.same({ 0, 5, 4 }, w:read { first = 4 }:shape())
      assert.are.equal(2.5, ck.scalar:read():item())
      assert.are.same({ 0, 3 }, ck.none:read():shape())
    end)
    assert.are.same({ "/model/weight 0 60", "/model/weight 20 20", "/model/weight 20 40", "/model/weight 0 40",
      "/scalar 0 1" }, list)
  end)

  it("gives one object for one dataset, whatever its names, and only what `only` names", function()
    local shared = mc.ones(2)
    mc.save(path, { a = { x = shared, y = shared }, b = mc.ones(3) })
    local ck = mc.load(path, { lazy = true, only = "a" })
    assert.are.equal(ck.a.x, ck.a.y)
    assert.is_nil(ck.b)
  end)

  it("reads tensors that remember their layer, so that they convert and load as any others", function()
    mc.save(path, { model = layer(true):state_dict() })
    local whole = mc.load(path, { lazy = true }).model.weight:read()
    assert.are.equal(3, whole.group.count)
    local other = os.tmpname()
    mc.save(other, { model = { weight = whole } }, { layout = "per_expert" })
    helper.same(mc.load(other).model.weight2, layer().weight[3]:detach())
    os.remove(other)
    local target = layer()
    target:load_state_dict { weight = whole }
    assert.is_nil(mc.load(path, { lazy = true }).model.weight:read { count = 2 }.group)
  end)

  it("keeps its file open until it is closed, whatever happens to the path", function()
    mc.save(path, { x = mc.ones(3) })
    local ck = mc.load(path, { lazy = true })
    mc.save(path, { x = mc.zeros(5) })
    assert.are.same({ 1, 1, 1 }, ck.x:read():totable())
    ck.x:close()
    helper.raises("read: x: its file was closed", function() ck.x:read() end)
    ck:close()
    ck = mc.load(path, { lazy = true })
    ck:close()
    helper.raises("read: x: its file was closed", function() ck.x:read() end)
    local n = 0
    for key in pairs(ck) do n = n + (key == "x" and 1 or 10) end
    assert.are.equal(1, n)
  end)

  it("says what does not fit, at the caller's line", function()
    mc.save(path, { x = mc.ones(3, 2), s = mc.tensor(1) })
    local ck = mc.load(path, { lazy = true })
    helper.raises("lazy_spec.lua", function() ck.x:read { first = 3, count = 2 } end)
    helper.raises("read: x: 2 positions from 3 on axis 1 of size 3; positions count from 1",
      function() ck.x:read { first = 3, count = 2 } end)
    helper.raises("read: x: -1 positions from 5 on axis 1 of size 3", function() ck.x:read { first = 5 } end)
    helper.raises("read: s has no axis to take a part of", function() ck.s:read { first = 1 } end)
    helper.raises("option first is 0, wanted", function() ck.x:read { first = 0 } end)
    helper.raises("read: wanted a lazy tensor; call it with a colon", function() ck.x.read() end)
    helper.raises("load: progress has nothing to tell with lazy = true",
      function() mc.load(path, { lazy = true, progress = print }) end)
    helper.raises('there is no "y" in it', function() mc.load(path, { lazy = true, only = "y" }) end)
    local m = mc.nn.Linear { in_features = 2, out_features = 3, bias = false }
    helper.raises("[file] weight: a lazy tensor; :read() it first, or use mc.checkpoint.load_into",
      function() m:load_state_dict { weight = ck.x } end)
    helper.raises("x", function() mc.save(path .. "2", { x = ck.x }) end)
  end)
end)
