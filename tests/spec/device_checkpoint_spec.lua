-- Checkpoints from and to a device: the file is the CPU's, bit for bit, whatever the device does meanwhile.

local H = require "device_helper"
local helper = require "helper"
local lfs = require "lfs"
local mc = require "mascon"

local C = require("mascon.lib").C

local folder = os.tmpname()
os.remove(folder)
lfs.mkdir(folder)

local function path(name) return folder .. "/" .. name end

local function slurp(name)
  local f = assert(io.open(path(name), "rb"))
  local bytes = f:read("*a")
  f:close()
  return bytes
end

local function same_file(a, b)
  assert.is_true(slurp(a) == slurp(b), a .. " and " .. b .. " differ")
end

-- Random bytes as a tensor of a dtype.
local function bits(dtype, n)
  if dtype == "bool" then return mc.randint(0, 2, { n }, { dtype = "uint8" }):to("bool") end
  if dtype:match "^float8" or dtype == "uint8" then return mc.randint(0, 256, { n }, { dtype = "uint8" }):to(dtype) end
  if dtype:match "^int" then return mc.randint(0, 1000, { n }, { dtype = dtype }) end
  return mc.randn(n, { dtype = dtype })
end

local DTYPES = { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "float8_e4m3fn",
  "float8_e5m2", "float8_e8m0fnu" }
local BUFFER = 2 ^ 24 -- bytes of one of the core's page-locked buffers

-- A table of tensors of every dtype and of sizes about those of pages and buffers, on the CPU.
local function state()
  local s = { dtypes = {}, sizes = {}, empty = mc.zeros(0, 3), scalar = mc.tensor(2.5), step = 7 }
  for _, dtype in ipairs(DTYPES) do s.dtypes[dtype] = bits(dtype, 1001) end
  for i, n in ipairs { 1, 4095, 4096, 65537, BUFFER - 1, BUFFER, BUFFER + 1 } do
    s.sizes["n" .. i] = bits("uint8", n)
  end
  s.large = bits("float32", BUFFER / 2 + 3)
  return s
end

-- fn of every tensor of nested tables.
local function map(t, fn)
  if mc.is_tensor(t) then return fn(t) end
  if type(t) ~= "table" then return t end
  local result = {}
  for key, value in pairs(t) do result[key] = map(value, fn) end
  return result
end

local function to(device)
  return function(t) return t:to(device) end
end

local function check(got, want, device, what)
  if mc.is_tensor(want) then
    assert.equal(device, got.device, what)
    helper.same(got:to("cpu"), want, what)
  elseif type(want) == "table" then
    for key, value in pairs(want) do check(got[key], value, device, (what or "") .. "." .. key) end
  else
    assert.equal(want, got, what)
  end
end

describe("a checkpoint and a device", function()
  local here, there
  setup(function()
    here = state()
    there = map(here, to(H.device))
    mc.save(path("here.h5"), here)
  end)
  teardown(function()
    for name in lfs.dir(folder) do os.remove(path(name)) end
    lfs.rmdir(folder)
  end)

  it("a file written there is the one written here", function()
    mc.save(path("there.h5"), there)
    same_file("there.h5", "here.h5")
    check(mc.load(path("there.h5"), { device = "cpu" }), here, "cpu")
    assert.is_true(mc.checkpoint.verify(path("there.h5")).ok)
  end)

  it("a file written here loads there", function()
    check(mc.load(path("here.h5"), { device = H.device }), here, H.device)
  end)

  it("one tensor, a part of the tree and progress come there too", function()
    local last, total = 0, nil
    local got = mc.load(path("here.h5"), { device = H.device, only = "sizes", progress = function(done, all)
      assert.is_true(done >= last)
      last, total = done, all
    end })
    check(got, { sizes = here.sizes }, H.device)
    assert.equal(total, last)
    local lazy = mc.load(path("here.h5"), { device = H.device, lazy = true })
    check(lazy.large:read(), here.large, H.device)
  end)

  it("tensors larger than all buffers go there and back, aligned or not", function()
    local big = bits("uint8", 4 * BUFFER + 77)
    local dev = mc.zeros(4 * BUFFER + 80, { dtype = "uint8", device = H.device })
    dev:narrow(1, 2, big:numel()):copy_(big)
    helper.same(dev:narrow(1, 2, big:numel()):to("cpu"), big)
    assert.equal(0, dev[1]:item())
    assert.equal(0, dev[big:numel() + 2]:item())
  end)

  it("an asynchronous save has the values of its call, whatever becomes of the tensors", function()
    local tensors = map(here, to(H.device))
    map(tensors, function(t) -- work that is still under way when the save begins
      if t.dtype == "float32" and t:numel() > 0 then t:mul_(2):mul_(0.5) end
    end)
    local save = mc.save(path("async.h5"), tensors, { async = true })
    map(tensors, function(t) t:zero_() end)
    tensors = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    -- what was freed is used again
    local other = mc.full({ BUFFER / 2 + 3 }, 3, { device = H.device })
    for _ = 1, 5 do other = other + 1 end
    save:wait()
    same_file("async.h5", "here.h5")
    assert.equal(8, other[1]:item())
  end)

  it("an asynchronous save goes on beside training, again and again", function()
    local w = mc.zeros(300001, { device = H.device })
    for turn = 1, 6 do
      w:fill_(turn)
      local save = mc.save(path("turn.h5"), { w = w, turn = turn }, { async = true })
      for _ = 1, 20 do w:add_(1):mul_(2) end
      save:wait()
      local got = mc.load(path("turn.h5"), { device = "cpu" })
      helper.same(got.w, mc.full({ 300001 }, turn, { device = "cpu" }))
    end
  end)

  it("an asynchronous save whose memory fails is an error of the call, or copies to the host", function()
    local a, b, saved = mc.randn(5000, { device = "cpu" }), mc.randn(70000, { device = "cpu" }), 0
    mc.save(path("whole.h5"), { a = a, b = b })
    for nth = 1, 8 do
      local x, y = a:to(H.device), b:to(H.device)
      C.mc_memory_fail_at(nth)
      local ok, save = pcall(mc.save, path("full.h5"), { a = x, b = y }, { async = true })
      C.mc_memory_fail_at(0)
      x:zero_()
      y:zero_()
      if ok then
        save:wait()
        same_file("full.h5", "whole.h5")
        saved = saved + 1
      else
        assert.is_truthy(tostring(save):find("memory", 1, true), tostring(save))
      end
    end
    assert.is_true(saved > 1 and saved < 8)
  end)

  it("a load into parameters on the device waits for what still uses them, and what follows waits for it", function()
    local n = 2 ^ 20
    local model = mc.nn.Linear { in_features = 1024, out_features = 1024, bias = false, device = H.device }
    local want = mc.randn({ 1024, 1024 }, { device = "cpu" })
    mc.save(path("model.h5"), { model = { weight = want } })
    local w = model.weight:detach()
    local before = mc.ones(n, { device = H.device })
    for _ = 1, 10 do before:mul_(2) end
    w:view(-1):copy_(before)
    local used = w * 1
    mc.checkpoint.load_into(path("model.h5"), { model = model })
    local after = model.weight:detach() * 2
    helper.same(used:to("cpu"), mc.full({ 1024, 1024 }, 1024, { device = "cpu" }))
    helper.same(after:to("cpu"), want * 2)
  end)

  it("a bool that is neither 0 nor 1 is an error, and the next load is right", function()
    local flags = mc.zeros(BUFFER + 100, { dtype = "bool", device = "cpu" })
    mc.save(path("bool.h5"), { flags = flags })
    local offset = slurp("bool.h5"):find(("\0"):rep(BUFFER + 100), 1, true)
    assert.is_not_nil(offset)
    local f = assert(io.open(path("bool.h5"), "r+b"))
    f:seek("set", offset - 1 + BUFFER + 50)
    f:write("\5")
    f:close()
    helper.raises("'/flags' holds 5 as a bool", mc.load, path("bool.h5"), { device = H.device })
    check(mc.load(path("here.h5"), { device = H.device }), here, H.device)
  end)

  if H.device:match "^cuda" then
    it("nothing is loaded or saved while a graph is recorded", function()
      local x = mc.ones(10, { device = H.device })
      local text = "a graph is being recorded"
      helper.raises("h5_read: " .. text, mc.cuda.graph, function()
        return mc.load(path("here.h5"), { device = H.device })
      end)
      for _, async in ipairs { false, true } do
        helper.raises("save: " .. text, mc.cuda.graph, function()
          x:add_(1)
          mc.save(path("recorded.h5"), { x = x }, { async = async })
        end)
      end
      assert.is_nil(lfs.attributes(path("recorded.h5")))
      local g = mc.cuda.graph(function() x:add_(1) end)
      local save = mc.save(path("replayed.h5"), { x = x }, { async = true })
      g:replay()
      save:wait()
      helper.same(mc.load(path("replayed.h5"), { device = "cpu" }).x, mc.ones(10, { device = "cpu" }))
      assert.equal(2, x[1]:item())
    end)
  end
end)
