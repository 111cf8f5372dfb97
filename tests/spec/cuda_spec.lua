-- mc.cuda itself: facts, memory, graphs, and what a device does after an error. Needs MASCON_TEST_DEVICE=cuda, a GPU or
-- the emulator of tests/emulator; CTest runs it there only.
local helper = require "helper"
local mc = require "mascon"

local C = require("mascon.lib").C
local F, nn = mc.nn.functional, mc.nn
local raises, same = helper.raises, helper.same

local MIB = 2 ^ 20

if helper.device ~= "cuda" then
  describe("mc.cuda", function()
    it("is tested on a device", function() pending "MASCON_TEST_DEVICE is not cuda" end)
  end)
  return
end

local emulated = mc.cuda.info().name == "emulated GPU"

local function ints(list) return mc.tensor(list, { dtype = "int32" }) end

-- Runs Lua text in a process of its own on the device; returns its output, errors too.
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

local function has(text, wanted)
  assert.is_true(text:find(wanted, 1, true) ~= nil, ("wanted\n  %s\nin\n%s"):format(wanted, text))
end

-- What tensors of a device hold now, without garbage.
local function live()
  mc.collect_garbage()
  return mc.cuda.memory_stats().live_bytes
end

describe("mc.cuda", function()
  it("counts devices, and the first is cuda and cuda:0", function()
    assert.is_true(mc.cuda.device_count() >= 1)
    assert.is_true(mc.cuda.is_available())
    assert.equal("cuda", mc.zeros(1, { device = "cuda:0" }).device)
  end)

  it("tells facts of a device as strings", function()
    local facts = mc.cuda.info()
    for _, key in ipairs { "name", "capability", "driver", "runtime", "attention" } do
      assert.is_string(facts[key], key)
      assert.is_true(#facts[key] > 0, key)
    end
    assert.matches("^%d+%.%d, %d+ multiprocessors$", facts.capability)
    assert.matches("^%d+%.%d$", facts.driver)
    assert.matches("^%d+%.%d$", facts.runtime)
    assert.same(facts, mc.cuda.info "cuda:0")
  end)

  it("names what is wrong with a device's name or number", function()
    local count = mc.cuda.device_count()
    local beyond = "cuda:" .. count
    local functions = {
      function(d) mc.zeros(1, { device = d }) end, function(d) mc.ones(1):to(d) end, mc.set_default_device,
      mc.cuda.synchronize, mc.cuda.info, mc.cuda.memory_stats, function(d) mc.cuda.graph(print, { device = d }) end,
    }
    for _, fn in ipairs(functions) do
      raises(("device %s: there are %d cuda devices, numbered from 0"):format(beyond, count), fn, beyond)
    end
    for _, name in ipairs { "cuda:-1", "cuda:x", "cuda:", "CUDA" } do
      raises(('device "%s": wanted "cpu", "cuda" or "cuda:N"'):format(name), mc.set_default_device, name)
    end
    assert.equal("cuda", mc.get_default_device())
  end)

  it("is where everything is made by default, and cpu is again after nil", function()
    local layer = nn.GroupedLinear { num_gemms = 2, in_features = 4, out_features = 4 }
    assert.equal("cuda", layer.weight.device)
    assert.equal("cuda", mc.rand(2).device)
    assert.equal("cuda", ints { 1 }.device)
    assert.equal("cpu", mc.zeros(1, { device = "cpu" }).device)
    mc.set_default_device(nil)
    local device = mc.zeros(1).device
    mc.set_default_device "cuda"
    assert.equal("cpu", device)
  end)

  it("says which kernels a grouped layer runs", function()
    local layer = nn.GroupedLinear { num_gemms = 2, in_features = 64, out_features = 64, params_dtype = "bfloat16" }
    for _, splits in ipairs { "host", "device" } do
      local path = layer:path { splits = splits }
      for _, pass in ipairs { "forward", "dgrad", "wgrad" } do assert.is_true(#path[pass] > 0, pass) end
    end
  end)
end)

describe("mc.cuda.memory_stats", function()
  it("counts what tensors hold, its peak, and what the cache keeps", function()
    local before = live()
    mc.reset_peak_memory()
    local count = mc.cuda.memory_stats().allocations
    local a, b = mc.empty(MIB), mc.empty(MIB)
    local stats = mc.cuda.memory_stats()
    assert.equal(before + 8 * MIB, stats.live_bytes)
    assert.equal(before + 8 * MIB, stats.peak_bytes)
    assert.equal(count + 2, stats.allocations)
    assert.is_true(stats.total_bytes >= stats.live_bytes + stats.cached_bytes)
    assert.is_true(stats.free_bytes >= 0 and stats.free_bytes <= stats.total_bytes)
    local cached = stats.cached_bytes
    a:free()
    stats = mc.cuda.memory_stats()
    assert.equal(before + 4 * MIB, stats.live_bytes)
    assert.equal(before + 8 * MIB, stats.peak_bytes)
    assert.equal(cached + 4 * MIB, stats.cached_bytes)
    b:free()
    mc.reset_peak_memory()
    assert.equal(before, mc.cuda.memory_stats().peak_bytes)
    assert.equal(before, live())
  end)

  it("shows that a loop takes no new memory from the device after its first round", function()
    local x = mc.randn(64, 64)
    local function round() return mc.scope(function() return (mc.matmul(x, x) + 1):sum() end) end
    for _ = 1, 2 do round() end
    mc.collect_garbage()
    local before = mc.cuda.memory_stats()
    for _ = 1, 50 do round() end
    local after = mc.cuda.memory_stats()
    assert.equal(before.device_allocations, after.device_allocations)
    assert.is_true(after.allocations >= before.allocations + 100)
  end)

  it("takes the CPU's tensors for what they are: not the device's", function()
    local before = live()
    local t = mc.zeros(MIB, { device = "cpu" })
    assert.equal(before, mc.cuda.memory_stats().live_bytes)
    assert.is_true(mc.memory_stats().live_bytes >= before + t:numel() * 4)
  end)
end)

describe("without memory", function()
  it("an error tells what was wanted, what is there and which ops made it, and the device goes on", function()
    local x = mc.randn(4 * MIB)
    local y = x:exp()
    local wanted = mc.cuda.memory_stats().total_bytes + 1
    local ok, why = pcall(mc.empty, wanted, { dtype = "uint8" })
    assert.is_false(ok)
    local n, on, alive, peak, tags = why:match("out of memory: wanted (%d+) bytes on (%w+), (%d+) are live, (%d+) was "
      .. "the peak, %d+ are cached, %d+ belong to graphs; largest, by the op that made them: (.*)$")
    assert.is_truthy(n, why)
    assert.equal(wanted, tonumber(n))
    assert.equal("cuda", on)
    assert.is_true(tonumber(alive) >= 32 * MIB and tonumber(peak) >= tonumber(alive), why)
    assert.matches("exp %d+", tags)
    assert.is_true(mc.isfinite(y):to("int32"):sum():item() > 0)
    assert.equal(6, mc.arange(4):sum():item())
  end)

  if emulated then -- whose memory may be small
    it("garbage is collected, the cache given back, and the call made again", function()
      local out = child("MCU_EMULATOR_MEMORY=67108864", [[
        for i = 1, 40 do local t = mc.zeros(2 ^ 20 + 2 ^ 17 * (i % 8)) end
        local held = {}
        local ok, why = pcall(function() for i = 1, 40 do held[i] = mc.full({2 ^ 20}, i) end end)
        print(ok, #held, why)
        print(held[1][1]:item(), held[#held][7]:item(), #held)
        held = nil
        print(mc.zeros(14 * 2 ^ 20):sum():item())
      ]])
      local ok, n, why = out:match "^(%w+)\t(%d+)\t(.-)\n"
      n = tonumber(n)
      assert.equal("false", ok, out)
      assert.is_true(n >= 14 and n <= 16, out)
      has(why, "out of memory: wanted 4194304 bytes on cuda")
      has(out, ("\n1\t%d\t%d\n0\n"):format(n, n))
    end)
  end
end)

describe("mc.cuda.profile", function()
  it("times each op on the device, the longest first, and shows a table", function()
    local x = mc.randn(64, 64)
    local profile = mc.cuda.profile(function()
      for _ = 1, 3 do mc.matmul(x, x) end
      return x:exp()
    end)
    local calls, share, last = {}, 0, math.huge
    for _, row in ipairs(profile) do
      calls[row.op] = row.calls
      share = share + row.share
      assert.is_true(row.seconds >= 0 and row.seconds <= last, row.op)
      last = row.seconds
    end
    assert.equal(3, calls.matmul)
    assert.equal(1, calls.exp)
    assert.is_true(share == 0 or math.abs(share - 1) < 1e-9)
    assert.matches("\nmatmul +3 ", tostring(profile))
  end)

  it("raises what the function raises, and ends", function()
    raises("my own error", mc.cuda.profile, function() error "my own error" end)
    raises("profile: a graph is being recorded", mc.cuda.graph, function() mc.cuda.profile(function() end) end)
    assert.equal(1, #mc.cuda.profile(function() mc.zeros(3) end))
  end)
end)

describe("what a kernel finds wrong", function()
  local table_ = mc.randn(10, 4)
  local text = "index_select: index[1] is 10, legal are 0 to 9 (0-based)"

  it("is raised where the device is waited for next, once, and the device goes on", function()
    local y = F.embedding(ints { 3, 10 }, table_)
    raises(text, function() return y:sum():item() end)
    mc.cuda.synchronize()
    same(F.embedding(ints { 3, 9 }, table_)[2], table_[10])
    F.embedding(ints { 3, -1 }, table_)
    raises("index_select: index[1] is -1, legal are 0 to 9 (0-based)", mc.cuda.synchronize)
    mc.cuda.synchronize()
    assert.equal(2, mc.ones(2):sum():item())
  end)

  it("is raised for splits, which no other rows than their own suffer from", function()
    local layer = nn.GroupedLinear { num_gemms = 2, in_features = 4, out_features = 4 }
    local x = mc.randn(5, 4)
    local want = layer(x, ints { 2, 3 })
    raises("m_splits[1] is -3", function()
      layer(x, ints { 2, -3 })
      mc.cuda.synchronize()
    end)
    same(layer(x, ints { 2, 3 }), want)
  end)

  it("is raised after the replay of a graph that met it, and the next replay is right", function()
    local ids = ints { 1, 2 }
    local graph = mc.cuda.graph(function() return F.embedding(ids, table_) end)
    ids:copy_(ints { 1, 10 })
    graph:replay()
    raises(text, mc.cuda.synchronize)
    ids:copy_(ints { 4, 5 })
    same(graph:replay(), table_:narrow(1, 5, 2))
    graph:free()
  end)

  local lookup = [[
local w = mc.randn(10, 4)
local y = mc.nn.functional.embedding(mc.tensor({3, 10}, {dtype = "int32"}), w)
print "went on"
print(pcall(function() return y:sum():item() end))
]]

  it("is raised by the very call with MASCON_SYNC=1, at the user's line", function()
    local out = child("MASCON_SYNC=1", lookup)
    has(out, "stdin:4: ")
    has(out, text)
    assert.is_nil(out:find("went on", 1, true), out)
  end)

  it("is raised later without it", function()
    local out = child("MASCON_SYNC=0", lookup)
    has(out, "went on\nfalse\tstdin:6: ")
    has(out, text)
  end)
end)

-- -- graphs ------------------------------------------------------------------------------------------

-- A mixture-of-experts language model with all that a training step has; `inputs` are its batches.
local VOCAB, WIDTH, LENGTH, BATCH = 32, 16, 8, 4

local Net = nn.Module:extend "Net"
function Net:init()
  self.embed = nn.Embedding { num_embeddings = VOCAB, embedding_dim = WIDTH }
  self.norm1 = nn.RMSNorm { normalized_shape = WIDTH }
  self.attention = nn.CausalSelfAttention { embed_dim = WIDTH, num_heads = 2 }
  self.norm2 = nn.RMSNorm { normalized_shape = WIDTH }
  self.moe = nn.MoE { hidden_size = WIDTH, ffn_hidden_size = 16, num_experts = 4, top_k = 2, aux_loss_coeff = 0.01,
    z_loss_coeff = 0.001, single_grouped_weight = true }
  self.dropout = nn.Dropout { p = 0.1 }
  self.head = nn.Linear { in_features = WIDTH, out_features = VOCAB }
end
function Net:forward(ids)
  local x = self.embed(ids)
  x = x + self.attention(self.norm1(x))
  return self.head(x + self.dropout(self.moe(self.norm2(x))))
end

local function batch(i)
  local x, y = {}, {}
  for b = 1, BATCH do
    x[b], y[b] = {}, {}
    for t = 1, LENGTH do
      x[b][t] = (i * 7 + b * 5 + t * (1 + i % 3)) % VOCAB
      y[b][t] = (i * 7 + b * 5 + (t + 1) * (1 + i % 3)) % VOCAB
    end
  end
  return ints(x), ints(y)
end

local WARM, STEPS = 2, 50

-- WARM steps op by op and STEPS more, these in a graph or not: losses, norms and rows of the experts, and the state.
local function train(in_graph)
  mc.manual_seed(11)
  local net = Net()
  local opt = mc.optim.AdamW { params = net, lr = 0.05, weight_decay = 0.1 }
  local x, y = batch(0)
  local function step()
    return mc.scope(function()
      local loss = F.cross_entropy(net(x), y) + net.moe.aux
      loss:backward()
      local norm = mc.optim.clip_grad_norm_(net, 0.5)
      opt:step()
      opt:zero_grad()
      return loss:detach(), norm, net.moe.metrics.counts
    end)
  end
  local seen, graph = {}, nil
  for i = 1, WARM + STEPS do
    opt:set_lr(0.05 / i)
    local bx, by = batch(i)
    x:copy_(bx)
    y:copy_(by)
    local loss, norm, counts
    if in_graph and i > WARM then
      graph = graph or mc.cuda.graph(step)
      loss, norm, counts = graph:replay()
    else
      loss, norm, counts = step()
    end
    seen[i] = { loss:clone(), norm:clone(), counts:clone() }
  end
  if graph then graph:free() end
  return seen, net:state_dict(), opt:state_dict()
end

describe("a graph of a training step", function()
  it("replayed 50 times gives the bits of 50 steps, the routing and the learning rate new in each", function()
    local want, net, opt = train(false)
    local got, net_too, opt_too = train(true)
    local different = 0
    for i = 1, WARM + STEPS do
      for k = 1, 3 do same(got[i][k], want[i][k], ("step %d, result %d"):format(i, k)) end
      if i > WARM + 1 and not mc.equal(want[i][3], want[i - 1][3]) then different = different + 1 end
    end
    assert.is_true(different > STEPS / 2, ("the rows of the experts changed %d times"):format(different))
    assert.is_true(want[WARM + STEPS][1]:item() < want[1][1]:item())
    for name, t in pairs(net) do same(net_too[name], t, name) end
    for name, value in pairs(opt) do
      if mc.is_tensor(value) then same(opt_too[name], value, name) end
    end
    assert.equal(0, mc.cuda.memory_stats().graph_bytes)
  end)
end)

describe("mc.cuda.graph", function()
  it("records without running, runs in stream order, and returns the outputs", function()
    local x = mc.ones(4)
    local graph = mc.cuda.graph(function()
      x:add_(1)
      return x * 10, "text", x
    end)
    assert.equal(4, x:sum():item())
    x:fill_(5)
    local ten, text, same_x = graph:replay()
    x:mul_(2)
    assert.equal(48, x:sum():item())
    assert.equal(240, ten:sum():item())
    assert.equal("text", text)
    assert.equal(x, same_x)
    assert.equal(ten, graph.outputs[1])
    graph:replay()
    assert.equal(520, ten:sum():item())
    graph:free()
    assert.equal(520, ten:sum():item())
  end)

  it("calls the function `warmup` times for real first", function()
    local x, calls = mc.zeros(1), 0
    local graph = mc.cuda.graph(function()
      calls = calls + 1
      x:add_(1)
    end, { warmup = 3 })
    assert.equal(4, calls)
    assert.equal(3, x:item())
    graph:replay()
    assert.equal(4, x:item())
    graph:free()
  end)

  it("keeps what it reads and writes, and gives its memory back when it is freed", function()
    local x = mc.full({ 1000 }, 2)
    local sum = mc.zeros {}
    local before = mc.cuda.memory_stats().graph_bytes
    local graph = mc.cuda.graph(function() sum:copy_((x * x):sum()) end)
    assert.is_true(mc.cuda.memory_stats().graph_bytes > before)
    x:free()
    mc.collect_garbage()
    for _ = 1, 20 do mc.zeros(1000) end
    graph:replay()
    assert.equal(4000, sum:item())
    graph:free()
    assert.equal(before, mc.cuda.memory_stats().graph_bytes)
  end)

  it("gives the memory of a forgotten graph back, too", function()
    mc.collect_garbage()
    local before = mc.cuda.memory_stats().graph_bytes
    local x = mc.ones(1000)
    for _ = 1, 10 do mc.cuda.graph(function() return x + 1 end) end
    for _ = 1, 2 do mc.collect_garbage() end
    assert.equal(before, mc.cuda.memory_stats().graph_bytes)
  end)

  it("draws new random numbers in each replay, those of the same calls without it", function()
    mc.manual_seed(5)
    local want = {}
    for i = 1, 4 do want[i] = mc.rand(7) end
    mc.manual_seed(5)
    local graph = mc.cuda.graph(function() return mc.rand(7) end)
    for i = 1, 4 do same(graph:replay(), want[i]) end
    graph:free()
  end)

  it("counts as a write to what it changes, so that a stale backward is noticed", function()
    local x = mc.ones(3)
    local graph = mc.cuda.graph(function() x:add_(1) end)
    local w = mc.ones(3, { requires_grad = true })
    local loss = (w * x):sum()
    graph:replay()
    raises("was changed in place after the forward pass", loss.backward, loss)
    graph:free()
  end)

  it("may be empty", function()
    local graph = mc.cuda.graph(function() end)
    graph:replay()
    graph:free()
  end)

  it("is an error to replay or free after it was freed", function()
    local graph = mc.cuda.graph(function() return mc.ones(1) end)
    graph:free()
    raises("graph: replay: it was freed", graph.replay, graph)
    raises("graph: free: it was freed", graph.free, graph)
  end)

  it("names options and arguments that it does not know", function()
    raises("graph: wanted a function, got 3", mc.cuda.graph, 3)
    raises("graph: unknown option warm", mc.cuda.graph, print, { warm = 1 })
    raises("graph: cpu has no graphs; they need a CUDA device", mc.cuda.graph, print, { device = "cpu" })
  end)
end)

describe("while a graph is recorded", function()
  local x = mc.ones(4)
  local p = nn.Parameter(mc.ones(3))
  p.grad = mc.ones(3)
  local layer = nn.GroupedLinear { num_gemms = 2, in_features = 4, out_features = 4 }
  local rows = mc.randn(4, 4)
  local function adamw() return mc.optim.AdamW { params = { p }, lr = 0.1 } end
  local used = adamw()
  used:step()
  local other = mc.cuda.graph(function() return x + 1 end)
  local host = "a graph is being recorded, and its replays would not do this; keep values of the host out of the "
    .. "function, or in tensors that are filled before a replay"
  local device = mc.ones(2)

  local cases = {
    { "a value is not read", "read: " .. host, function() return x:sum():item() end },
    { "a tensor is not read", "read: " .. host, function() return x:totable() end },
    { "a tensor is not printed", "read: " .. host, function() return tostring(x) end },
    { "a tensor is not brought to the CPU", "read: " .. host, function() return x:to "cpu" end },
    { "a tensor is not made of the host's values", "write: " .. host, function() return mc.tensor { 1, 2 } end },
    { "splits are no table", "m_splits are of the host", function() return layer(rows, { 2, 2 }) end },
    { "an optimizer's state is not made", "AdamW: a graph is being recorded, and each of its replays would make the "
      .. "optimizer's state again; take a step before it is recorded", function() adamw():step() end },
    { "a learning rate is not set", "set it before a replay", function() used:set_lr(0.5) end },
    { "nothing is waited for", "synchronize: a graph is being recorded", function() mc.cuda.synchronize() end },
    { "no other one is", "graph: one is being recorded already", function() mc.cuda.graph(function() end) end },
    { "no other one is replayed", "graph: a replay cannot be recorded into another graph",
      function() other:replay() end },
    { "an error of the function's own ends it", "my own error", function()
      device:add_(1)
      error "my own error"
    end },
    { "a wrong shape ends it", "[4]", function() return x + mc.zeros(3) end },
  }
  for _, case in ipairs(cases) do
    local title, text, fn = unpack(case)
    it(title .. ", and the device can be used afterwards", function()
      local before = mc.cuda.memory_stats().graph_bytes
      raises(text, mc.cuda.graph, fn)
      assert.equal(0, C.mc_graph_recording())
      mc.collect_garbage()
      assert.equal(before, mc.cuda.memory_stats().graph_bytes)
      assert.equal(4, x:sum():item())
      assert.equal(2, device:sum():item())
      local graph = mc.cuda.graph(function() return x * 3 end)
      assert.equal(12, graph:replay():sum():item())
      graph:free()
    end)
  end

  it("an error that is no string comes out as it is", function()
    local mine = {}
    local ok, why = pcall(mc.cuda.graph, function() error(mine) end)
    assert.is_false(ok)
    assert.equal(mine, why)
  end)

  it("memory that runs out is an error or made room for, and the device can be used afterwards", function()
    local function fn() return (x * 2 + 1):exp():sum() end
    for nth = 1, 12 do
      C.mc_memory_fail_at(nth)
      local ok, graph = pcall(mc.cuda.graph, fn)
      C.mc_memory_fail_at(0)
      assert.equal(0, C.mc_graph_recording())
      if ok then
        helper.close(graph:replay(), fn(), 1e-6)
        graph:free()
      else
        assert.matches("out of memory", graph)
      end
    end
    assert.equal(4, x:sum():item())
  end)

  it("asking whether one is tells so", function()
    local inside
    mc.cuda.graph(function() inside = C.mc_graph_recording() end):free()
    assert.equal(1, inside)
    assert.equal(0, C.mc_graph_recording())
  end)
end)
