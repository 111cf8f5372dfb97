--- The mixture of experts: the routing ops against plain loops, the block against one dense expert per token, layouts,
-- gradients, balance.
local mc = require "mascon"
local helper = require "helper"

local F, nn = mc.nn.functional, mc.nn
local F64 = { dtype = "float64" }
local NAN = 0 / 0

local function i32(v) return mc.tensor(v, { dtype = "int32" }) end

describe("router_topk", function()
  it("weighs the chosen experts by each score function", function()
    local z = { 1, 3, 2, -1 }
    local x = mc.tensor({ z }, F64)
    local sum = 0
    for _, v in ipairs(z) do sum = sum + math.exp(v) end
    local w, ids, scores, _
    w, ids, scores = F.router_topk(x, { k = 2, use_pre_softmax = true })
    assert.same({ { 1, 2 } }, ids:totable())
    assert.equal("int32", ids.dtype)
    helper.close(w, mc.tensor({ { math.exp(3) / sum, math.exp(2) / sum } }, F64), 1e-15)
    helper.close(scores, x:softmax(), 1e-15)
    w, ids, scores = F.router_topk(x, { k = 2, scaling_factor = 3 })
    local two = math.exp(3) + math.exp(2)
    assert.same({ { 1, 2 } }, ids:totable())
    helper.close(w, mc.tensor({ { 3 * math.exp(3) / two, 3 * math.exp(2) / two } }, F64), 1e-15)
    helper.close(scores, x:softmax(), 1e-15)
    w, _, scores = F.router_topk(x, { k = 2, score_function = "sigmoid" })
    local function sigmoid(v) return 1 / (1 + math.exp(-v)) end
    local both = sigmoid(3) + sigmoid(2)
    helper.close(w, mc.tensor({ { sigmoid(3) / both, sigmoid(2) / both } }, F64), 1e-15)
    helper.close(scores, x:sigmoid(), 1e-15)
    w = F.router_topk(x, { k = 1, score_function = "sigmoid" })
    helper.close(w, mc.tensor({ { sigmoid(3) } }, F64), 1e-15)
  end)

  it("gives ties to the lowest id, ranks NaN last and chooses none twice", function()
    local x = mc.tensor { { 1, 1, 1, 1 }, { 0, 2, 2, 1 }, { NAN, 0, 1, NAN }, { NAN, NAN, NAN, NAN } }
    for _, options in ipairs { { k = 3 }, { k = 3, use_pre_softmax = true }, { k = 3, score_function = "sigmoid" } } do
      local _, ids = F.router_topk(x, options)
      local list = ids:totable()
      assert.same({ 0, 1, 2 }, list[1])
      assert.same({ 1, 2, 3 }, list[2])
      for t = 3, 4 do
        local seen = {}
        for _, id in ipairs(list[t]) do
          assert.is_nil(seen[id])
          seen[id] = true
          assert.is_true(id >= 0 and id < 4)
        end
      end
      if options.use_pre_softmax == nil then assert.same({ 2, 1, 0 }, list[3]) end
    end
  end)

  it("lets the bias choose but not weigh, and keeps to the best groups", function()
    local x = mc.tensor({ { 0, 1, 2, 3 } }, F64)
    local w, ids = F.router_topk(x, { k = 2, score_function = "sigmoid", bias = mc.tensor({ 9, 0, 0, 0 }, F64) })
    assert.same({ { 0, 3 } }, ids:totable())
    local a, b = 0.5, 1 / (1 + math.exp(-3))
    helper.close(w, mc.tensor({ { a / (a + b), b / (a + b) } }, F64), 1e-15)
    -- groups {0, 1} and {2, 3}: the best single expert is in the first, the best pair in the second
    local y = mc.tensor({ { 5, 0, 3, 3 } }, F64)
    local _, of_one = F.router_topk(y, { k = 2, num_groups = 2, group_topk = 1 })
    assert.same({ { 2, 3 } }, of_one:totable())
    local _, of_all = F.router_topk(y, { k = 2 })
    assert.same({ { 0, 2 } }, of_all:totable())
  end)

  it("has the derivatives of central differences for weights and scores", function()
    mc.manual_seed(1)
    for _, options in ipairs {
      { k = 2 }, { k = 2, use_pre_softmax = true, scaling_factor = 2 }, { k = 2, score_function = "sigmoid" },
      { k = 1, score_function = "sigmoid" }, { k = 4 }, { k = 2, num_groups = 2, group_topk = 2 },
    } do
      helper.check_gradients(function(x)
        local weights, _, scores = F.router_topk(x, options)
        return weights, scores
      end, { helper.leaf(3, 4) })
      helper.check_gradients(function(x) return (F.router_topk(x, options)) end, { helper.leaf(2, 4) })
      helper.check_gradients(function(x) return (select(3, F.router_topk(x, options))) end, { helper.leaf(2, 4) })
    end
  end)

  it("names options that do not fit", function()
    local x = mc.zeros(2, 4)
    helper.raises("router_topk: option k is missing", F.router_topk, x, {})
    helper.raises("router_topk: use_pre_softmax = true goes with score_function = \"softmax\"", F.router_topk, x,
      { k = 1, score_function = "sigmoid", use_pre_softmax = true })
    helper.raises("router_topk: ", F.router_topk, x, { k = 5 })
  end)
end)

describe("moe_sort, moe_permute and moe_unpermute", function()
  local ids = { { 2, 0 }, { 0, -1 }, { 2, 3 }, { 0, 2 } }

  it("sort the slots stably by expert and drop negative ids", function()
    local counts, rows, slots = F.moe_sort(i32(ids), 5)
    assert.same({ 3, 0, 3, 1, 0 }, counts:totable())
    assert.same({ 1, 2, 6, 0, 4, 7, 5, -1 }, slots:totable())
    assert.same({ { 3, 0 }, { 1, -1 }, { 4, 6 }, { 2, 5 } }, rows:totable())
    helper.raises("moe_sort: ", F.moe_sort, i32 { { 0, 5 } }, 5)
    helper.raises("moe_sort: ids: a tensor of float32, wanted int32 or int64", F.moe_sort, mc.zeros(1, 1), 5)
  end)

  it("carry rows there and back, weighted", function()
    mc.manual_seed(2)
    local x, w = mc.randn(4, 3, F64), mc.randn(4, 2, F64)
    local _, rows, slots = F.moe_sort(i32(ids), 5)
    local sorted = F.moe_permute(x, rows, slots)
    assert.same({ 8, 3 }, sorted:shape())
    helper.same(sorted[1], x[1])
    helper.same(sorted[3], x[4])
    helper.same(sorted[8], mc.zeros(3, F64))
    local back = F.moe_unpermute(sorted, rows, slots, w)
    helper.close(back[1], x[1] * (w[1][1] + w[1][2]), helper.tolerance("float64", 2))
    helper.close(back[2], x[2] * w[2][1], helper.tolerance("float64", 2))
    helper.close(F.moe_unpermute(sorted, rows, slots)[3], x[3] * 2, helper.tolerance("float64", 2))
  end)

  it("have the derivatives of central differences", function()
    mc.manual_seed(3)
    local _, rows, slots = F.moe_sort(i32(ids), 5)
    helper.check_gradients(function(x) return F.moe_permute(x, rows, slots) end, { helper.leaf(4, 2) })
    helper.check_gradients(function(h, w) return F.moe_unpermute(h, rows, slots, w) end,
      { helper.leaf(8, 2), helper.leaf(4, 2) })
    helper.check_gradients(function(h) return F.moe_unpermute(h, rows, slots) end, { helper.leaf(8, 2) })
    helper.check_gradients(function(w) return F.moe_unpermute(mc.ones(8, 2, F64), rows, slots, w) end,
      { helper.leaf(4, 2) })
  end)
end)

describe("the balancing losses", function()
  it("are 1 at balance, E when one expert takes all, and the mean squared logsumexp", function()
    local even = F.moe_aux_loss(mc.full({ 4, 4 }, 0.25), mc.tensor({ 2, 2, 2, 2 }, { dtype = "int64" }))
    assert.equal(1, even:item())
    local one = mc.tensor { { 1, 0, 0, 0 }, { 1, 0, 0, 0 } }
    assert.equal(4, F.moe_aux_loss(one, mc.tensor({ 2, 0, 0, 0 }, { dtype = "int64" })):item())
    local z = F.moe_z_loss(mc.tensor({ { 0, 0 }, { 1, 1 } }, F64), 2)
    assert.near(2 * (math.log(2) ^ 2 + (1 + math.log(2)) ^ 2) / 2, z:item(), 1e-14)
  end)

  it("have the derivatives of central differences", function()
    mc.manual_seed(4)
    local counts = mc.tensor({ 3, 0, 2 }, { dtype = "int64" })
    helper.check_gradients(function(s) return F.moe_aux_loss(s:softmax(), counts, 0.7) end, { helper.leaf(4, 3) })
    helper.check_gradients(function(s) return F.moe_aux_loss(s:sigmoid(), counts) end, { helper.leaf(4, 3) })
    helper.check_gradients(function(x) return F.moe_z_loss(x, 0.3) end, { helper.leaf(4, 3) })
  end)
end)

local function block(options)
  local o = { hidden_size = 4, ffn_hidden_size = 3, num_experts = 5, dtype = "float64",
    init_method = function(t) t:normal_(0, 0.5) end }
  for k, v in pairs(options or {}) do o[k] = v end
  return nn.MoE(o)
end

describe("MoE", function()
  -- Each token through each of its experts, by dense products.
  local function by_token(moe, x)
    local weights, ids = moe.router(x)
    local w, chosen = weights:totable(), ids:totable()
    local out = {}
    for t = 1, x:size(1) do
      local y = mc.zeros(1, 4, F64)
      for j = 1, #chosen[t] do
        local e = chosen[t][j]
        local up, down = moe.experts.gate_up:expert(e), moe.experts.down:expert(e)
        local h = F.swiglu(F.linear(x:narrow(1, t, 1), up.weight, up.bias))
        y = y + F.linear(h, down.weight, down.bias) * w[t][j]
      end
      out[t] = y
    end
    return mc.cat(out)
  end

  it("is each token through its experts, in every kind of routing", function()
    mc.manual_seed(5)
    for _, options in ipairs {
      {}, { top_k = 1 }, { top_k = 5 }, { bias = true }, { use_pre_softmax = true },
      { score_function = "sigmoid", expert_bias = true, scaling_factor = 2 },
      { num_experts = 6, num_groups = 3, group_topk = 2 },
    } do
      local moe = block(options)
      if moe.experts.down.bias then
        mc.no_grad(function()
          moe.experts.gate_up.bias:normal_()
          moe.experts.down.bias:normal_()
        end)
      end
      for _, n in ipairs { 1, 7 } do
        local x = mc.randn(n, 4, F64)
        helper.close(moe(x), by_token(moe, x), helper.tolerance("float64", 16))
      end
      assert.same({ 2, 3, 4 }, moe(mc.randn(2, 3, 4, F64)):shape())
      assert.same({ 0, 4 }, moe(mc.zeros(0, 4, F64)):shape())
    end
  end)

  it("has the derivatives of central differences in both layouts, balancing losses included", function()
    for _, single in ipairs { false, true } do
      mc.manual_seed(6)
      local moe = block { num_experts = 3, bias = true, single_grouped_weight = single, single_grouped_bias = single,
        aux_loss_coeff = 0.5, z_loss_coeff = 0.25 }
      local with_aux = nn.Module:extend "WithAux"
      function with_aux:init() self.moe = moe end
      function with_aux:forward(x) return self.moe(x), self.moe.aux end -- luacheck: ignore 212
      local m, inputs = with_aux(), { helper.leaf(5, 4) }
      for _, slot in ipairs(m:slots()) do inputs[#inputs + 1] = slot.tensor end
      helper.check_gradients(function(x) return m(x) end, inputs)
    end
  end)

  it("gives every parameter under every name a gradient that is not zero, in each layout", function()
    for _, single in ipairs { false, true } do
      mc.manual_seed(7)
      local moe = block { single_grouped_weight = single, aux_loss_coeff = 0.01 }
      local loss = moe(mc.randn(64, 4, F64)):sum() + moe.aux
      loss:backward()
      local n = 0
      for name, p in moe:named_parameters() do
        assert.is_true(p.grad ~= nil and p.grad:abs():sum():item() > 0, name)
        n = n + 1
      end
      assert.equal(single and 3 or 11, n)
    end
  end)

  it("has the names of the issue in both layouts, and loads either from the other", function()
    local per, single = block { num_experts = 2 }, block { num_experts = 2, single_grouped_weight = true }
    local list = {}
    for name in per:named_parameters() do list[#list + 1] = name end
    assert.same({ "router.weight", "experts.gate_up.weight0", "experts.gate_up.weight1", "experts.down.weight0",
      "experts.down.weight1" }, list)
    list = {}
    for name in single:named_parameters() do list[#list + 1] = name end
    assert.same({ "router.weight", "experts.gate_up.weight", "experts.down.weight" }, list)
    single:load_state_dict(per:state_dict())
    helper.same(single.experts.down.weight:detach(), per.experts.down.weight:detach())
    assert.same({ weight = "single" }, single:layout())
    single:set_layout { weight = "per_expert" }
    assert.same({ weight = "per_expert" }, single.experts.down:layout())
  end)

  it("notes counts, scores and balance outside the graph, and adds the losses by their coefficients", function()
    mc.manual_seed(8)
    local moe = block { aux_loss_coeff = 0.5, z_loss_coeff = 0.25 }
    moe(mc.randn(6, 4, F64))
    local m = moe.metrics
    assert.equal(12, m.counts:sum():item())
    assert.same({ 6, 5 }, m.scores:shape())
    assert.is_false(m.scores.requires_grad)
    helper.close(moe.aux:detach(), m.aux_loss * 0.5 + m.z_loss * 0.25, helper.tolerance "float64")
    local plain = block()
    plain(mc.randn(6, 4, F64))
    assert.equal(0, plain.aux)
    assert.is_nil(plain.metrics.aux_loss)
  end)

  it("keeps what it noted when the scope of its forward ends", function()
    local moe = block { aux_loss_coeff = 0.5 }
    mc.scope(function() moe(mc.randn(6, 4, F64)) end)
    assert.equal(12, moe.metrics.counts:sum():item())
    assert.is_true(moe.aux:item() > 0)
  end)

  it("moves the router's bias towards even loads", function()
    local moe = block { score_function = "sigmoid", expert_bias = true }
    moe.router:update_expert_bias(mc.tensor({ 4, 0, 2, 2, 2 }, { dtype = "int64" }), 0.25)
    assert.same({ -0.25, 0.25, 0, 0, 0 }, moe.router.expert_bias:totable())
    assert.is_not_nil(moe:state_dict()["router.expert_bias"])
    mc.no_grad(function() moe.router.expert_bias:copy_(mc.tensor({ 0, 9, 0, 0, 9 }, F64)) end)
    moe(mc.randn(6, 4, F64))
    assert.same({ 0, 6, 0, 0, 6 }, moe.metrics.counts:totable())
    local without = block()
    helper.raises("update_expert_bias: the router was built with expert_bias = false",
      without.router.update_expert_bias, without.router, mc.zeros(5))
  end)

  it("keeps the router in float32 inside a bfloat16 model", function()
    mc.manual_seed(9)
    local moe = block { dtype = "bfloat16" }
    assert.equal("float32", moe.router.weight.dtype)
    local y = moe(mc.randn(3, 4, { dtype = "bfloat16" }))
    assert.equal("bfloat16", y.dtype)
    y:sum():backward()
    assert.equal("float32", moe.router.weight.grad.dtype)
  end)

  it("names options and shapes that do not fit", function()
    helper.raises("MoE: option num_experts is missing", nn.MoE, { hidden_size = 1, ffn_hidden_size = 1 })
    helper.raises("MoE: unknown option n_experts", nn.MoE, { hidden_size = 1, ffn_hidden_size = 1, n_experts = 2 })
    helper.raises("Router: top_k = 9 of num_experts = 5", block, { top_k = 9 })
    helper.raises("Router: expert_bias = true goes with score_function = \"sigmoid\"", block, { expert_bias = true })
    helper.raises("Router: num_experts = 5, top_k = 2, num_groups = 2, group_topk = 1 do not go together", block,
      { num_groups = 2 })
    helper.raises("MoE: x is [2, 5], its last axis must be hidden_size = 4", block(), mc.zeros(2, 5, F64))
  end)
end)

describe("training a MoE", function()
  -- Five steps with clipping; `change(moe, step)` may switch layouts. Returns losses and the final weights.
  local function train(single, change, fused, dtype)
    mc.manual_seed(10)
    dtype = dtype or "float32"
    local moe = block { dtype = dtype, num_experts = 12, bias = true, aux_loss_coeff = 0.01, z_loss_coeff = 0.001,
      single_grouped_weight = single, single_grouped_bias = single, fuse_wgrad_accumulation = fused }
    local opt = mc.optim.AdamW { params = moe, lr = 0.01, master_weights = true }
    local losses = {}
    for step = 1, 5 do
      local x = mc.randn(16, 4, { dtype = dtype })
      local y = moe(x)
      local loss = ((y - x) * (y - x)):mean():to("float32") + moe.aux
      loss:backward()
      mc.optim.clip_grad_norm_(moe, 0.1)
      opt:step()
      opt:zero_grad()
      losses[step] = loss:item()
      if change then change(moe, step) end
    end
    return losses, moe
  end

  local function same_run(losses, moe, want, other)
    assert.same(want, losses)
    helper.same(moe.router.weight:detach(), other.router.weight:detach())
    for _, layer in ipairs { "gate_up", "down" } do
      helper.same(moe.experts[layer].weight:detach(), other.experts[layer].weight:detach())
      helper.same(moe.experts[layer].bias:detach(), other.experts[layer].bias:detach())
    end
  end

  it("is the same to the last bit in both layouts, and when the layout changes on the way", function()
    local want, other = train(false)
    assert.is_true(want[5] < want[1])
    local losses, moe = train(true)
    same_run(losses, moe, want, other)
    losses, moe = train(false, function(m, step)
      m:set_layout { weight = step % 2 == 1 and "single" or "per_expert", bias = step % 3 == 0 and "single" or nil }
    end)
    same_run(losses, moe, want, other)
  end)

  it("is the same with weight gradients fused into main_grad", function()
    local want, other = train(false)
    local losses, moe = train(true, nil, true)
    same_run(losses, moe, want, other)
    assert.is_nil(moe.experts.down.weight.grad)
  end)

  it("in bfloat16 with master weights is the same in both layouts too", function()
    local want, other = train(false, nil, false, "bfloat16")
    assert.is_true(want[5] < want[1])
    local losses, moe = train(true, nil, false, "bfloat16")
    same_run(losses, moe, want, other)
    losses, moe = train(true, nil, true, "bfloat16") -- gradients in float32: other bits, about the same run
    assert.near(want[5], losses[5], 0.01 * want[1])
    assert.equal("float32", moe.experts.down.weight.main_grad.dtype)
  end)
end)
