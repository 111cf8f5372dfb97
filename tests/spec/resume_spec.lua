--- Stopping, saving, and going on in a module of the other layout: the run of one that never stopped, bit for bit.
local mc = require "mascon"
local helper = require "helper"

local STEPS, HALF = 8, 4

local function layout_options(single)
  return { single_grouped_weight = single, single_grouped_bias = single }
end

-- A tiny language model: more than ten experts, so that their names do not sort by letters.
local function new_run(single)
  mc.manual_seed(3)
  local Net = mc.nn.Module:extend "Net"
  function Net:init()
    self.embed = mc.nn.Embedding { num_embeddings = 11, embedding_dim = 8 }
    self.norm = mc.nn.RMSNorm { normalized_shape = 8 }
    self.attention = mc.nn.CausalSelfAttention { embed_dim = 8, num_heads = 2 }
    self.dropout = mc.nn.Dropout { p = 0.1 }
    local o = layout_options(single)
    o.hidden_size, o.ffn_hidden_size, o.num_experts, o.bias = 8, 6, 12, true
    o.aux_loss_coeff, o.z_loss_coeff = 0.01, 0.001
    self.moe = mc.nn.MoE(o)
  end
  function Net:forward(ids)
    local x = self.embed(ids)
    x = x + self.dropout(self.attention(self.norm(x)))
    x = x + self.moe(x)
    return mc.nn.functional.linear(x, self.embed.weight)
  end
  local model = Net()
  local text = mc.arange(211, { dtype = "int64" })
  local tokens = {}
  for i = 1, 211 do tokens[i] = (i * i + 3 * i) % 11 end
  text = mc.tensor(tokens, { dtype = text.dtype })
  return {
    model = model,
    opt = mc.optim.AdamW { lr = 0.01, params = {
      { params = model, roles = { "bias", "norm", "embedding" }, weight_decay = 0 }, { params = model } } },
    data = mc.data.Windows { data = text, length = 6, batch_size = 4, seed = 9 },
    rate = mc.optim.schedule.warmup_cosine { warmup = 2, total = STEPS, peak = 0.02, final = 0.001 },
  }
end

-- Steps first .. last; returns losses and gradient norms.
local function train(run, first, last)
  local curve = {}
  for step = first, last do
    local x, y = run.data:next()
    local loss = mc.nn.functional.cross_entropy(run.model(x), y) + run.model.moe.aux
    loss:backward()
    local norm = mc.optim.clip_grad_norm_(run.model, 0.5)
    assert.is_true(norm:item() > 0.5) -- clipping takes part
    run.opt:set_lr(run.rate(step))
    run.opt:step()
    run.opt:zero_grad()
    curve[#curve + 1] = loss:item()
    curve[#curve + 1] = norm:item()
  end
  return curve
end

local function state_of(run)
  run.model.moe:set_layout { weight = "single", bias = "single" }
  local all = {}
  for name, t in pairs(run.model:state_dict()) do all["model." .. name] = t end
  for name, v in pairs(run.opt:state_dict()) do all["optimizer." .. name] = v end
  return all
end

local function same_state(a, b)
  local x, y, n = state_of(a), state_of(b), 0
  for name, v in pairs(x) do
    if type(v) == "number" then assert.equal(v, y[name], name) else helper.same(v, y[name], name) end
    n = n + 1
  end
  for name in pairs(y) do assert.is_not_nil(x[name], name) end
  assert.is_true(n > 20)
end

local path = os.tmpname()

describe("a run that stops, saves and goes on", function()
  local want, whole

  setup(function()
    whole = new_run(false)
    want = train(whole, 1, STEPS)
  end)
  teardown(function() os.remove(path) end)

  local function save(run, options)
    mc.save(path, { model = run.model:state_dict(), optimizer = run.opt:state_dict(), data = run.data:state_dict(),
      rng = mc.get_rng_state(), step = HALF }, options)
  end

  local function check(curve, run)
    assert.same(want, curve)
    same_state(run, whole)
  end

  for _, from in ipairs { false, true } do
    local title = from and "single to per-expert" or "per-expert to single"
    it("continues bit for bit from " .. title .. " with load_into", function()
      local first = new_run(from)
      local curve = train(first, 1, HALF)
      save(first)
      mc.manual_seed(77)
      local second = new_run(not from)
      train(second, 1, 1) -- and nothing of what it was shows
      local report = mc.checkpoint.load_into(path, { model = second.model, optimizer = second.opt, data = second.data },
        { rng = true })
      assert.equal(HALF, report.rest.step)
      for _, v in ipairs(train(second, HALF + 1, STEPS)) do curve[#curve + 1] = v end
      check(curve, second)
    end)

    it("continues bit for bit from " .. title .. " with mc.load and load_state_dict", function()
      local first = new_run(from)
      local curve = train(first, 1, HALF)
      save(first, { layout = from and "per_expert" or "single" }) -- files in the other layout too
      local second = new_run(not from)
      local saved = mc.load(path)
      second.model:load_state_dict(saved.model)
      second.opt:load_state_dict(saved.optimizer)
      second.data:load_state_dict(saved.data)
      mc.set_rng_state(saved.rng)
      for _, v in ipairs(train(second, saved.step + 1, STEPS)) do curve[#curve + 1] = v end
      check(curve, second)
    end)
  end

  it("is refused whole when the optimizer in the file belongs to another model", function()
    local first = new_run(false)
    train(first, 1, 1)
    local sd = first.opt:state_dict()
    sd["exp_avg.moe.experts.down.weight11"] = nil
    mc.save(path, { model = first.model:state_dict(), optimizer = sd })
    local second = new_run(true)
    local before = second.model.moe.experts.down.weight:clone():detach()
    helper.raises("[partial]", mc.checkpoint.load_into, path, { model = second.model, optimizer = second.opt })
    helper.same(second.model.moe.experts.down.weight:detach(), before)
    assert.equal(0, second.opt:state_dict().step)
  end)
end)
