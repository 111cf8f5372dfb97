-- Graphs under hostile use: what a recorded graph owns, what replays write, what an error leaves behind.
local helper = require "helper"
local mc = require "mascon"

local C = require("mascon.lib").C
local F, nn = mc.nn.functional, mc.nn
local raises, same = helper.raises, helper.same

if not helper.device:match "^cuda" then
  describe("a graph", function()
    it("is tested on a device", function() pending "MASCON_TEST_DEVICE is not cuda" end)
  end)
  return
end

local function ids(list) return mc.tensor(list, { dtype = "int64" }) end
local function total(t) return t:sum():item() end
-- Takes what was freed and fills it with other numbers.
local function take(n, shape)
  local list = {}
  for i = 1, n do list[i] = mc.full(shape, 1000 + i) end
  return list
end
local function stats()
  mc.collect_garbage()
  return mc.cuda.memory_stats()
end

describe("what a graph owns", function()
  it("is what it reads, though the tensor was freed before the replay", function()
    local x = mc.full({ 4 }, 3)
    local g = mc.cuda.graph(function() return x + 1 end)
    x:free()
    take(50, { 4 })
    assert.equal(16, total(g:replay()))
  end)

  it("stays with each of two graphs, whichever is freed first", function()
    for first = 1, 2 do
      local x = mc.full({ 4 }, 3)
      local a = mc.cuda.graph(function() return x + 1 end)
      local b = mc.cuda.graph(function() return a.outputs[1] * 2, x * 10 end)
      a:replay()
      b:replay()
      local of_a = a.outputs[1]
      if first == 1 then a:free() else b:free() end
      take(20, { 4 })
      x:fill_(7)
      if first == 1 then
        b:replay()
        assert.equal(32, total(b.outputs[1]))
        assert.equal(280, total(b.outputs[2]))
      else
        assert.equal(32, total(a:replay()))
        assert.equal(32, total(b.outputs[1]))
      end
      assert.equal(first == 1 and 16 or 32, total(of_a))
    end
  end)

  it("is not what its outputs hold after it was freed", function()
    local x = mc.full({ 1000 }, 3)
    local g = mc.cuda.graph(function()
      local t = x * 2
      return t + 1, t
    end)
    local a, b = g:replay()
    g:free()
    take(50, { 1000 })
    assert.equal(7000, total(a))
    assert.equal(6000, total(b))
    raises("graph: replay: it was freed", g.replay, g)
    raises("graph: free: it was freed", g.free, g)
  end)

  it("is memory that an output goes back to when it is freed, and nobody else gets", function()
    local x = mc.ones(2)
    local g = mc.cuda.graph(function() return x * 3 end)
    g.outputs[1]:free()
    local other = mc.full({ 2 }, 77)
    g:replay()
    assert.equal(154, total(other))
  end)

  it("is scratch of its own, while eager ops grow theirs", function()
    local wide, narrow = mc.randn(300, 2000), mc.randn(8)
    local function work() return narrow:cumsum(1), wide:sum(1), (wide:topk(50)) end
    local want = { work() }
    local g = mc.cuda.graph(work)
    mc.randn(400, 8000):topk(60)
    local got = { g:replay() }
    for i = 1, 3 do same(got[i], want[i]) end
  end)

  it("takes nothing away from collection and trimming while it is recorded", function()
    local x, y = mc.ones(5000), mc.full({ 5000 }, 3)
    local g = mc.cuda.graph(function()
      local a = x + 1
      mc.randn(100000):free()
      mc.collect_garbage()
      C.mc_memory_trim()
      return a * y
    end)
    take(10, { 5000 })
    assert.equal(30000, total(g:replay()))
  end)

  it("goes back, so that a thousand graphs take no more than one", function()
    local x = mc.ones(3000)
    local function one()
      local g = mc.cuda.graph(function() return (x + 1) * 2, mc.ones(10) end)
      g:replay()
      g:free()
    end
    for _ = 1, 3 do one() end
    local before = stats()
    for _ = 1, 1000 do one() end
    local after = stats()
    assert.equal(0, after.graph_bytes)
    assert.equal(before.live_bytes, after.live_bytes)
    assert.equal(before.cached_bytes, after.cached_bytes)
    assert.equal(before.device_allocations, after.device_allocations)
  end)

  it("comes from the cache first: a graph of a warm step takes nothing new from the device", function()
    local x = mc.randn(100, 100)
    local function step() return x:exp() + 1 end
    step()
    local before = stats()
    local g = mc.cuda.graph(step)
    local after = mc.cuda.memory_stats()
    assert.equal(before.device_allocations, after.device_allocations)
    assert.equal(before.cached_bytes, after.cached_bytes + after.graph_bytes)
    g:free()
    assert.equal(0, mc.cuda.memory_stats().graph_bytes)
  end)
end)

describe("a replay", function()
  it("is a write to the graph's outputs: backward through their old values raises", function()
    local x, w = mc.ones(3), mc.ones(3):requires_grad_()
    local g = mc.cuda.graph(function() return x * 2 end)
    local y = g:replay()
    local loss = (y * w):sum()
    x:fill_(5)
    g:replay()
    raises("backward: a tensor that mul needs was changed in place", loss.backward, loss)
    loss = (y * w):sum()
    loss:backward()
    assert.equal(30, total(w.grad))
  end)

  it("is counted for the outputs after the graph was freed", function()
    local x, w = mc.ones(3), mc.ones(3):requires_grad_()
    local g = mc.cuda.graph(function() return x * 2 end)
    local y = g:replay()
    local version, loss = y:version(), (y * w):sum()
    g:free()
    assert.equal(version, y:version())
    loss:backward()
    assert.equal(6, total(w.grad))
    loss = (y * w):sum()
    y:add_(1)
    raises("was changed in place", loss.backward, loss)
  end)

  it("is a write to tensors from before that it writes", function()
    local w, buffer = mc.ones(3):requires_grad_(), mc.ones(3)
    local g = mc.cuda.graph(function() buffer:add_(1) end)
    local loss = (w * buffer):sum()
    g:replay()
    raises("was changed in place", loss.backward, loss)
  end)

  it("fills gradients that were made while recording", function()
    local w, x = mc.ones(3):requires_grad_(), mc.ones(3)
    local g = mc.cuda.graph(function()
      w.grad = nil
      local loss = (w * x):sum()
      loss:backward()
      return loss
    end)
    g:replay()
    local grad = w.grad
    assert.equal(3, total(grad))
    x:fill_(4)
    g:replay()
    assert.equal(12, total(grad))
    g:free()
    local loss = (w * x):sum()
    loss:backward()
    assert.equal(24, total(grad))
  end)

  it("cannot be part of another graph, and neither can a recording", function()
    local x = mc.ones(3)
    local a = mc.cuda.graph(function() return x + 1 end)
    local g = mc.cuda.graph(function()
      raises("graph: a replay cannot be recorded into another graph", a.replay, a)
      raises("graph: one is being recorded already", mc.cuda.graph, function() end)
      return x + 2
    end)
    assert.equal(9, total(g:replay()))
  end)

  it("draws the random numbers of the same calls without it", function()
    local x = mc.ones(256)
    mc.manual_seed(7)
    local a, b, r = F.dropout(x, 0.5), F.dropout(x, 0.5), mc.randn(5)
    mc.manual_seed(7)
    local g = mc.cuda.graph(function() return (F.dropout(x, 0.5)) end)
    same(g:replay(), a)
    same(g:replay(), b)
    same(mc.randn(5), r)
  end)
end)

describe("an error while recording", function()
  it("leaves the device as it was, for eager work and for the next graph", function()
    local x, stash = mc.ones(10), nil
    for _ = 1, 5 do
      raises("boom", mc.cuda.graph, function()
        stash = x + 1
        stash:mul_(3)
        error "boom"
      end)
      assert.equal(20, total(x + 1))
    end
    local g = mc.cuda.graph(function() return x + 2 end)
    assert.equal(30, total(g:replay()))
    g:free()
    stash:fill_(2)
    assert.equal(20, total(stash))
    assert.equal(0, mc.cuda.memory_stats().graph_bytes)
  end)

  it("is a yield: what others do meanwhile is not recorded", function()
    local x = mc.ones(3)
    local co = coroutine.create(function()
      local g = mc.cuda.graph(function() coroutine.yield(x + 1) end)
      g:replay()
    end)
    local ok, err = coroutine.resume(co)
    assert.is_false(ok)
    assert.matches("device_graph_spec.lua:%d+: graph: the function yields while it is recorded", err)
    assert.equal(6, total(x + 1))
    local inside = coroutine.wrap(function()
      return mc.cuda.graph(function() return mc.scope(function() return x + 2 end) end)
    end)
    assert.equal(9, total(inside():replay()))
  end)

  it("that the function catches does not harm the graph", function()
    local x = mc.ones(4, 4)
    local g = mc.cuda.graph(function()
      for _, wrong in ipairs {
        function() return x:matmul(mc.ones(3, 3)) end, function() return total(x) end, mc.cuda.synchronize,
        function() return x:to "cpu" end, function() return mc.tensor { 1, 2 } end,
        function() return mc.save(os.tmpname(), { x = x }) end, function() return mc.equal(x, x) end,
      } do
        assert.is_false((pcall(wrong)))
      end
      return x + 1
    end)
    assert.equal(32, total(g:replay()))
  end)

  it("of memory, at any allocation, leaks nothing", function()
    local x = mc.ones(1000)
    local before = stats().live_bytes
    for n = 1, 12 do
      C.mc_memory_fail_at(n)
      local ok, g = pcall(mc.cuda.graph, function()
        local a = x + 1
        return a * 2, a:softmax(-1):sum()
      end)
      C.mc_memory_fail_at(0)
      if ok then
        assert.equal(4000, total((g:replay())))
        g:free()
      end
      g = nil -- luacheck: ignore 311
      assert.equal(2000, total(x + 1))
      assert.equal(0, stats().graph_bytes)
    end
    assert.equal(before, stats().live_bytes)
  end)
end)

describe("what replays find wrong", function()
  it("is raised though the graph was freed before anybody asked", function()
    local w, at = mc.randn(4, 3), mc.zeros(2, { dtype = "int64" })
    local g = mc.cuda.graph(function() return w:index_select(1, at) end)
    at:copy_(ids { 9, 1 })
    g:replay()
    g:free()
    raises("index_select: index[0] is 9, legal are 0 to 3 (0-based)", mc.cuda.synchronize)
    mc.cuda.synchronize()
  end)

  it("is raised though the graph was forgotten and collected", function()
    local w, at, bad = mc.randn(4, 3), mc.zeros(2, { dtype = "int64" }), ids { 1, 9 }
    local g = mc.cuda.graph(function() return w:index_select(1, at) end)
    at:copy_(bad)
    g:replay()
    g = nil -- luacheck: ignore 311
    collectgarbage()
    collectgarbage()
    raises("index_select: index[1] is 9", mc.cuda.synchronize)
    mc.cuda.synchronize()
  end)

  it("is the first of two, once, and the next replay is right", function()
    local layer = nn.GroupedLinear { num_gemms = 3, in_features = 4, out_features = 4 }
    local x, splits = mc.randn(6, 4), ids { 1, 2, 3 }
    local negative, many, right = ids { 1, -2, 3 }, ids { 1, 2, 4 }, ids { 1, 2, 3 }
    local g = mc.cuda.graph(function() return layer(x, splits) end)
    local want = g:replay():clone()
    splits:copy_(negative)
    g:replay()
    splits:copy_(many)
    g:replay()
    splits:copy_(right)
    raises("m_splits[1] is -2, must be 0 or more", mc.cuda.synchronize)
    mc.cuda.synchronize()
    same(g:replay(), want)
  end)
end)

describe("graphs that are collected while another is recorded", function()
  it("do not disturb it", function()
    local x = mc.ones(300)
    for i = 1, 20 do mc.cuda.graph(function() return x + i end):replay() end
    local late = mc.cuda.graph(function() return x + 1 end)
    late:replay()
    local g = mc.cuda.graph(function()
      late:free()
      collectgarbage()
      local y = x
      for _ = 1, 10 do
        y = y + 1
        collectgarbage "step"
      end
      return y
    end)
    assert.equal(3300, total(g:replay()))
  end)
end)
