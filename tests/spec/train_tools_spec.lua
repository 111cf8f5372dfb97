-- mc.train: budgets, counts of parameters and operations, losses of held-out texts; batches gathered on a device; and
-- the GPU example, whose runs add up.
local lfs = require "lfs"
local mc = require "mascon"
local device_windows = require "mascon.data.device_windows"
local helper = require "helper"
local F = mc.nn.functional

describe("Budget", function()
  it("in steps is the share of the steps that are done", function()
    local budget = mc.train.Budget { steps = 8 }
    assert.equal(0, budget:share(0))
    assert.equal(0.25, budget:share(2))
    assert.is_false(budget:is_spent(7))
    assert.is_true(budget:is_spent(8))
    assert.equal(3, budget:seconds_left(2, 2))
    assert.is_nil(budget:seconds_left(0, 0))
  end)

  it("in minutes follows the clock, over all runs", function()
    local now = 100
    local function clock() return now end
    local first = mc.train.Budget { minutes = 2, clock = clock }
    now = 110
    first:start() -- ten seconds of preparations do not count
    now = 140
    assert.equal(0.25, first:share(7))
    local state = first:state_dict()
    now = 1000
    local second = mc.train.Budget { minutes = 2, clock = clock }
    now = 1010
    second:load_state_dict(state)
    now = 1040
    assert.equal(0.5, second:share(1))
    assert.equal(60, second:seconds_left(1, 5))
    now = 1100
    assert.is_true(second:is_spent(1))
    assert.equal(1, second:share(1))
  end)

  it("wants one of steps and minutes", function()
    helper.raises("Budget: wanted steps or minutes, one of them", mc.train.Budget, {})
    helper.raises("Budget: wanted steps or minutes, one of them", mc.train.Budget, { steps = 1, minutes = 1 })
    helper.raises("Budget: option minutes is 0, wanted a number above 0", mc.train.Budget, { minutes = 0 })
  end)
end)

describe("parameter_counts", function()
  it("counts shared parameters once, experts by their share, and no looked-up table", function()
    local Net = mc.nn.Module:extend "Net"
    function Net:init()
      self.embed = mc.nn.Embedding { num_embeddings = 10, embedding_dim = 4 }
      self.moe = mc.nn.MoE { hidden_size = 4, ffn_hidden_size = 6, num_experts = 8, top_k = 2 }
      self.head = mc.nn.Linear { in_features = 4, out_features = 10 }
      self.twin = mc.nn.Linear { in_features = 4, out_features = 10 }
      self.twin.weight = self.head.weight
    end
    local experts = 8 * (12 * 4 + 4 * 6)
    local all, active = mc.train.parameter_counts(Net())
    assert.equal(40 + 8 * 4 + experts + 40 + 10 + 10, all)
    assert.equal(8 * 4 + experts / 4 + 40 + 10 + 10, active)
    helper.raises("parameter_counts: wanted a module, got 1", mc.train.parameter_counts, 1)
  end)

  it("gives flops_per_token: 6 a parameter, and the attention's own", function()
    local o = { active = 1000, layers = 2, width = 16, context = 32 }
    assert.equal(6000 + 6 * 2 * 16 * 32, mc.train.flops_per_token(o))
    o.causal = false
    assert.equal(6000 + 12 * 2 * 16 * 32, mc.train.flops_per_token(o))
  end)
end)

describe("held_out_loss", function()
  -- Logits of a token see it and the two before it, so that three tokens of context are enough for the exact loss.
  local V = 7
  local tables
  setup(function()
    mc.manual_seed(3)
    tables = { mc.randn(V, V), mc.randn(V, V), mc.randn(V, V) }
  end)
  local function model(ids)
    local n = ids:size(2)
    local y = F.embedding(ids, tables[1])
    for back = 1, 2 do
      if n > back then
        local past = F.embedding(ids:narrow(2, 1, n - back):contiguous(), tables[back + 1])
        y = y + mc.cat({ mc.zeros(ids:size(1), back, V), past }, 2)
      end
    end
    return y
  end

  it("scores each token once, with its context, for lengths that fit and that do not", function()
    for _, n in ipairs { 2, 3, 9, 16, 17, 18, 40 } do
      local tokens = mc.randint(0, V, { n }, { dtype = "int32" })
      local x, y = tokens:narrow(1, 1, n - 1):view(1, -1), tokens:narrow(1, 2, n - 1):view(1, -1)
      local want = F.cross_entropy(model(x), y, { reduction = "sum" }):item()
      for _, o in ipairs { { length = 8, stride = 5 }, { length = 8 }, { length = 100 }, { length = 8, batch_size = 1 },
        { length = 8, stride = 2 } } do
        local got = mc.train.held_out_loss(model, tokens, o)
        assert.near(want, got, 1e-4 * want)
      end
    end
  end)

  it("runs modules in their eval mode, without a graph, and puts them back", function()
    local Net = mc.nn.Module:extend "Net"
    local seen = {}
    function Net:forward(ids)
      seen[#seen + 1] = self.training
      return mc.zeros(ids:size(1), ids:size(2), 4)
    end
    local net = Net()
    local nats = mc.train.held_out_loss(net, mc.zeros(5, { dtype = "int32" }), { length = 2 })
    assert.near(4 * math.log(4), nats, 1e-5)
    assert.is_false(seen[1])
    assert.is_true(net.training)
  end)
end)

describe("DeviceWindows", function()
  it("gives the batches of Windows, and goes on where a state was taken", function()
    local tokens = mc.randint(0, 1000, { 300 }, { dtype = "int32" })
    for _, rows in ipairs { 1, 4, 6 } do
      local o = { data = tokens, length = 9, batch_size = rows, seed = 5 }
      local host, device = mc.data.Windows(o), device_windows(o)
      for _ = 1, 4 do
        local x, y = host:next()
        local dx, dy = device:next()
        assert.is_true(mc.equal(x, dx:contiguous()))
        assert.is_true(mc.equal(y, dy:contiguous()))
      end
      local state = device:state_dict()
      assert.same(host:state_dict(), state)
      local want = device:next():contiguous()
      o.seed = 77
      local other = device_windows(o)
      other:next()
      other:load_state_dict(state)
      assert.is_true(mc.equal(want, other:next():contiguous()))
    end
  end)

  it("wants int32 tokens, more than a window", function()
    helper.raises("DeviceWindows: data is int32 [8], wanted int32 [n] of more tokens than the length, 8",
      device_windows, { data = mc.zeros(8, { dtype = "int32" }), length = 8 })
    helper.raises("DeviceWindows: data is float32 [9]", device_windows, { data = mc.zeros(9), length = 8 })
  end)
end)

describe("the GPU example", function()
  local folder
  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    lfs.mkdir(folder)
  end)
  teardown(function() os.execute(("rm -r '%s'"):format(folder)) end)

  local function run(name, options)
    local pipe = io.popen(("scripts/mascon scripts/examples/moe_lm.lua --run '%s/%s' --device %s --log-every 1 %s 2>&1")
      :format(folder, name, helper.device, options))
    local text = pipe:read "*a"
    pipe:close()
    return text
  end
  local SMALL = "--model tiny --layers 1 --batch 2 --context 16 --vocab 300 --data README.md --eval-every 1000 "

  it("goes on after a stop as if there had been none, from any checkpoint of it", function()
    local whole = run("a", SMALL .. "--steps 6")
    local want = whole:match "\nstep      6 (100 %%  loss %S+  norm %S+)"
    assert.is_truthy(want, whole)
    local first = run("b", SMALL .. "--steps 6 --stop-after 0.000001") -- one step
    assert.is_truthy(first:find("step      1  saving", 1, true), first)
    local second = run("b", "--resume --no-save")
    assert.is_truthy(second:find("resumed at step 1", 1, true), second)
    assert.equal(want, second:match "\nstep      6 (100 %%  loss %S+  norm %S+)")
    assert.equal(whole:match "(%S+) bits per byte", second:match "(%S+) bits per byte")
  end)

  it("refuses what it does not know", function()
    assert.is_truthy(run("c", "--data /nowhere/text"):find("no such file: /nowhere/text", 1, true))
    assert.is_truthy(run("c", "--steps 3 --minutes 3"):find("are both budgets", 1, true))
    assert.is_truthy(run("c", "--resume"):find("nothing to resume in", 1, true))
  end)
end)
