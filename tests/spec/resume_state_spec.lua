-- Everything that a run needs besides its parameters, saved between two optimizer steps and loaded into a model of the
-- other layout: moments, master weights, step, gathered main gradients, data position, schedule and random numbers.
local helper = require "helper"
local main_grads = require("mascon.checkpoint.main_grads").main_grads
local mc = require "mascon"

local G, D, STEPS, MICRO = 12, 6, 4, 2

local Net = mc.nn.Module:extend "Net"
function Net.init(self, single)
  self.embed = mc.nn.Embedding { num_embeddings = 11, embedding_dim = D, dtype = "bfloat16" }
  self.dropout = mc.nn.Dropout { p = 0.2 }
  self.experts = mc.nn.GroupedLinear { num_gemms = G, in_features = D, out_features = D, params_dtype = "bfloat16",
    fuse_wgrad_accumulation = true, single_grouped_weight = single, single_grouped_bias = single,
    init_method = function(t) t:normal_(0, 0.3) end }
end
function Net.forward(self, ids)
  local x = self.dropout(self.embed(ids):view(-1, D))
  local splits = {}
  for i = 1, G do splits[i] = i % 4 end -- sums to 18; some experts have no row
  return self.experts(x, splits)
end

local function new_run(single)
  mc.manual_seed(5)
  local model = Net(single)
  local tokens = {}
  for i = 1, 150 do tokens[i] = (i * i + 5 * i) % 11 end
  return { model = model,
    opt = mc.optim.AdamW { params = model, lr = 0.01, weight_decay = 0.1, master_weights = true },
    data = mc.data.Windows { data = mc.tensor(tokens, { dtype = "int32" }), length = 6, batch_size = 3, seed = 2 },
    rate = mc.optim.schedule.warmup_cosine { warmup = 1, total = STEPS, peak = 0.03, final = 0.01 } }
end

-- One micro-batch; after MICRO of them a step.
local function advance(run, batch)
  local ids = run.data:next()
  local y = run.model(ids):to "float32"
  y:mul(y):mean():backward()
  if batch % MICRO == 0 then
    run.opt:set_lr(run.rate(batch / MICRO))
    run.opt:step()
    run.opt:zero_grad()
  end
end

local function same_runs(a, b)
  a.model.experts:set_layout { weight = "single", bias = "single" }
  b.model.experts:set_layout { weight = "single", bias = "single" }
  local x, y, n = a.model:state_dict(), b.model:state_dict(), 0
  for name, t in pairs(x) do helper.same(y[name], t, name) end
  x, y = a.opt:state_dict(), b.opt:state_dict()
  for name, t in pairs(x) do
    n = n + 1
    if type(t) == "number" then assert.equal(t, y[name], name) else helper.same(y[name], t, name) end
  end
  assert.is_true(n >= 10)
end

describe("a run that stops between two micro-batches", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  for _, single in ipairs { false, true } do
    for _, way in ipairs { "load_into", "mc.load" } do
      it(("goes on bit for bit %s, by %s"):format(single and "from single to per expert" or "from per expert to single",
        way), function()
        local whole = new_run(single)
        for batch = 1, 3 do advance(whole, batch) end
        -- embeddings have a plain gradient; it is part of no checkpoint, so this run's is not trained
        local function freeze(run) run.model.embed.weight:requires_grad_(false) run.model.embed.weight.grad = nil end
        freeze(whole)
        whole.model.experts.bias.grad = nil
        mc.save(path, { model = whole.model:state_dict(), opt = whole.opt:state_dict(), data = whole.data:state_dict(),
          main_grads = main_grads(whole.model):state_dict(), rng = mc.get_rng_state(), batch = 3 })
        for batch = 4, 2 * STEPS do advance(whole, batch) end

        local other = new_run(not single)
        for batch = 1, 2 do advance(other, batch) end
        mc.manual_seed(99)
        local batch
        if way == "load_into" then
          local report = mc.checkpoint.load_into(path, { model = other.model, opt = other.opt, data = other.data,
            main_grads = main_grads(other.model) }, { rng = true })
          batch = report.rest.batch
        else
          local ck = mc.load(path)
          other.model:load_state_dict(ck.model)
          other.opt:load_state_dict(ck.opt)
          other.data:load_state_dict(ck.data)
          main_grads(other.model):load_state_dict(ck.main_grads)
          mc.set_rng_state(ck.rng)
          batch = ck.batch
        end
        freeze(other)
        other.model.experts.bias.grad = nil
        for b = batch + 1, 2 * STEPS do advance(other, b) end
        same_runs(whole, other)
      end)
    end
  end

  it("has no main gradients to save after zero_grad, and a load of none zeroes what is there", function()
    local run = new_run(true)
    advance(run, 1)
    local grads = main_grads(run.model)
    assert.are.equal(1, #grads:slots())
    assert.is_true(mc.equal(grads:state_dict()["experts.weight"], run.model.experts.weight.main_grad))
    assert.is_true(run.model.experts.weight.main_grad:abs():max():item() > 0)
    local empty = new_run(false)
    assert.are.same({}, main_grads(empty.model):state_dict())
    mc.save(path, { grads = main_grads(empty.model):state_dict() })
    mc.checkpoint.load_into(path, { grads = grads })
    assert.are.equal(0, run.model.experts.weight.main_grad:abs():max():item())
    assert.are.same({}, grads:state_dict())
    helper.raises("main_grads: wanted a module, got 7", main_grads, 7)
  end)

  it("gives each rank the main gradients of its experts", function()
    local run = new_run(true)
    advance(run, 1)
    mc.save(path, { grads = main_grads(run.model):state_dict() }, { layout = "per_expert" })
    local Part = mc.nn.Module:extend "Part"
    function Part.init(self)
      self.experts = mc.nn.GroupedLinear { num_gemms = 3, in_features = D, out_features = D,
        fuse_wgrad_accumulation = true }
    end
    local part = Part()
    mc.checkpoint.load_into(path, { grads = main_grads(part) }, { experts = { first = 6, count = 3, total = G } })
    helper.same(part.experts.weight.main_grad, run.model.experts.weight.main_grad:narrow(1, 7, 3))
    local sd = main_grads(run.model):state_dict()
    sd["experts.weight"] = nil
    for i = 0, 4 do sd["experts.weight" .. i] = mc.zeros(D, D) end
    helper.raises("[partial] experts.weight{0-4}: only 5 of 12 experts are in the checkpoint, missing 5-11",
      function() main_grads(run.model):load_state_dict(sd) end)
  end)
end)
