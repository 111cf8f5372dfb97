-- Memory of devices: several of them, the CPU's beside a device's, what failing allocations leave behind, and the end
-- of a process.
local helper = require "helper"
local mc = require "mascon"

local C = require("mascon.lib").C
local F, nn = mc.nn.functional, mc.nn
local same = helper.same

if not helper.device:match "^cuda" then
  describe("memory of a device", function()
    it("is tested on a device", function() pending "MASCON_TEST_DEVICE is not cuda" end)
  end)
  return
end

local emulated = mc.cuda.info().name == "emulated GPU"

local function stats(device)
  mc.collect_garbage()
  return mc.cuda.memory_stats(device)
end

-- Runs Lua text in a process of its own, on an emulator of `environment`; returns its output, errors too.
local function child(environment, text)
  local file = os.tmpname()
  local f = assert(io.open(file, "w"))
  f:write('local mc = require "mascon"\nmc.set_default_device "cuda"\n', text)
  f:close()
  local pipe = io.popen(("env %s scripts/mascon - <%s 2>&1"):format(environment, file))
  local out = pipe:read "*a"
  pipe:close()
  os.remove(file)
  return out
end

local function on_emulator(title, environment, text, wanted)
  it(title, function()
    if not emulated then pending "needs the emulator, whose devices can be chosen" end
    assert.equal(wanted, child(environment, text))
  end)
end

describe("the cache of the CPU", function()
  it("is bounded by the CPU's own peak, not by what a device has used", function()
    local function cached() return mc.memory_stats().cached_bytes - stats().cached_bytes end
    mc.empty(2 ^ 26):free()
    local before, list = cached(), {}
    for i = 1, 4 do list[i] = mc.empty(15e6, { device = "cpu" }) end
    for i = 1, 4 do list[i]:free() end
    assert.is_true(cached() - before <= 64 * 2 ^ 20 + 4 * 64e6 / 2)
    C.mc_memory_trim()
  end)
end)

describe("an allocation that fails", function()
  it("anywhere in a training step leaks nothing, and a step that was made is right to the bit", function()
    local x, y = mc.arange(7):to "int64", mc.arange(1, 8):to "int64"
    local function make()
      mc.manual_seed(3)
      local model = nn.Sequential(nn.Embedding { num_embeddings = 11, embedding_dim = 8 },
        nn.RMSNorm { normalized_shape = 8 },
        nn.MoE { hidden_size = 8, ffn_hidden_size = 16, num_experts = 4, top_k = 2 },
        nn.Linear { in_features = 8, out_features = 11 })
      return model, mc.optim.AdamW { params = model, lr = 1e-2 }
    end
    local function step(model, optimizer)
      optimizer:zero_grad()
      F.cross_entropy(model(x), y):backward()
      mc.optim.clip_grad_norm_(model:parameters(), 0.1)
      optimizer:step()
    end
    local model, optimizer = make()
    step(model, optimizer)
    step(model, optimizer)
    local want, before = model:parameters(), nil
    for n = 1, 101, 4 do
      local other, of_other = make()
      step(other, of_other)
      C.mc_memory_fail_at(n)
      local ok, err = pcall(step, other, of_other)
      C.mc_memory_fail_at(0)
      if ok then
        for i, p in ipairs(other:parameters()) do same(p, want[i], ("allocation %d, parameter %d"):format(n, i)) end
      else
        assert.is_true((err:find "memory" or err:find "scratch") ~= nil, err)
      end
      other, of_other = nil, nil -- luacheck: ignore 311
      local live = stats().live_bytes
      assert.equal(before or live, live, "allocation " .. n)
      before = live
    end
  end)
end)

describe("a block that was freed", function()
  it("is not written while a save in the background reads it", function()
    local path = os.tmpname()
    local t = mc.full({ 1000000 }, 3)
    local handle = mc.save(path, { t = t }, { async = true })
    t:free()
    for i = 1, 10 do mc.full({ 1000000 }, 100 + i):free() end
    handle:wait()
    assert.equal(3e6, mc.load(path).t:sum():item())
    os.remove(path)
  end)

  it("nor is what a graph writes, by its replays and its recording", function()
    local path = os.tmpname()
    local w = mc.zeros(1000000)
    for i = 1, 3 do
      local handle = mc.save(path, { w = w }, { async = true })
      local g = mc.cuda.graph(function() w:add_(1) end)
      g:replay()
      g:replay()
      handle:wait()
      local saved = mc.load(path).w
      assert.equal(2 * (i - 1), saved:min():item())
      assert.equal(2 * (i - 1), saved:max():item())
      g:free()
    end
    os.remove(path)
  end)
end)

describe("several devices", function()
  on_emulator("can all be used in one process", "MCU_EMULATOR_DEVICES=9", [[
    for i = 0, 8 do io.write((mc.ones(3, {device = "cuda:" .. i}) + i):sum():item(), " ") end]],
    "3 6 9 12 15 18 21 24 27 ")

  on_emulator("count their memory each for itself", "MCU_EMULATOR_DEVICES=2", [[
    local function live(d) return mc.cuda.memory_stats(d).live_bytes end
    local t, u = mc.zeros(1024, {device = "cuda:1"}), mc.zeros(2048, {device = "cpu"})
    print(live "cuda", live "cuda:1", mc.memory_stats().live_bytes)
    t:free() u:free()
    print(live "cuda", live "cuda:1", mc.memory_stats().live_bytes)]], "0\t4096\t12288\n0\t0\t0\n")

  on_emulator("raise what was wrong on them, and not what was on others", "MCU_EMULATOR_DEVICES=2", [[
    local w, at = mc.randn(4, 3, {device = "cuda:1"}), mc.full({1}, 9, {dtype = "int64", device = "cuda:1"})
    w:index_select(1, at)
    print(pcall(mc.cuda.synchronize, "cuda"))
    print((select(2, pcall(mc.cuda.synchronize, "cuda:1")):gsub("^.-: ", "")))
    print(pcall(mc.cuda.synchronize, "cuda:1"))]],
    "true\nindex_select: index[0] is 9, legal are 0 to 3 (0-based)\ntrue\n")

  on_emulator("do not disturb one that records: they are made ready, read and written meanwhile",
    "MCU_EMULATOR_DEVICES=2 MCU_EMULATOR_LAZY=1", [[
    local x, q = mc.ones(3), nil
    local g = mc.cuda.graph(function()
      q = mc.full({3000000}, 3, {device = "cuda:1"})
      local back = q:to "cpu":to "cuda:1"
      mc.cuda.synchronize "cuda:1"
      q:copy_(back * 2)
      return (x + 1) * 2
    end)
    print(g:replay():sum():item(), q:sum():item(), q:to("cuda"):sum():item())]], "12\t18000000\t18000000\n")

  on_emulator("have graphs of their own", "MCU_EMULATOR_DEVICES=2", [[
    local x, y = mc.ones(4), mc.ones(4, {device = "cuda:1"})
    local g = mc.cuda.graph(function() return (y + 1) * 2, mc.rand(4, {device = "cuda:1"}) end, {device = "cuda:1"})
    local f = mc.cuda.graph(function() return x + 5 end)
    y:fill_(2)
    g:replay() f:replay()
    print(g.outputs[1]:sum():item(), f.outputs[1]:sum():item(), g.outputs[1].device)
    g:free() f:free()
    print(mc.cuda.memory_stats("cuda:1").graph_bytes, mc.cuda.memory_stats("cuda").graph_bytes)]],
    "24\t24\tcuda:1\n0\t0\n")

  it("may be none", function()
    local out = child("MCU_EMULATOR_DEVICES=0", "")
    if not emulated then pending "needs the emulator, whose devices can be chosen" end
    assert.matches("device cuda: there are 0 cuda devices, numbered from 0", out, 1, true)
  end)
end)

describe("with MASCON_SYNC=1", function()
  it("what a kernel finds wrong names its op once", function()
    local out = child("MASCON_SYNC=1", 'mc.randn(4, 3):index_select(1, mc.full({1}, 9, {dtype = "int64"}))')
    assert.matches("stdin:3: index_select: index[0] is 9", out, 1, true)
  end)
end)

describe("the end of a process", function()
  local ending = [[
    local x = mc.ones(3)
    G = mc.cuda.graph(function() return x + 1 end)
    H = mc.cuda.graph(function() return G.outputs[1] + 1 end)
    G:replay() H:replay()
    for i = 1, 5 do mc.cuda.graph(function() return x + i end):replay() end ]]
  for name, last in pairs {
    ["with graphs and tensors alive"] = "", ["by os.exit"] = "os.exit(0)",
    ["inside a recording"] = "mc.cuda.graph(function() local y = x + 1 os.exit(0, true) return y end)",
  } do
    it("says nothing " .. name, function() assert.equal("", child("", ending .. last)) end)
  end
end)
