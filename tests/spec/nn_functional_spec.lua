--- mc.nn.functional against plain Lua loops and central differences.
local mc = require "mascon"
local helper = require "helper"

local F = mc.nn.functional
local F64 = { dtype = "float64" }

local function i32(v) return mc.tensor(v, { dtype = "int32" }) end

describe("linear", function()
  it("multiplies by the transposed weight and adds the bias, for any leading axes", function()
    mc.manual_seed(1)
    for _, shape in ipairs { { 3, 4 }, { 2, 5, 4 }, { 4 }, { 0, 4 }, { 1, 4 } } do
      local x, w, b = mc.randn(shape), mc.randn(3, 4), mc.randn(3)
      local y = F.linear(x, w, b)
      local want = x:reshape(-1, 4):matmul(w:transpose()) + b
      shape[#shape] = 3
      helper.close(y, want:reshape(shape), helper.tolerance("float32", 4))
    end
  end)

  it("has the derivatives of central differences", function()
    helper.check_gradients(F.linear, { helper.leaf(2, 3, 4), helper.leaf(5, 4), helper.leaf(5) })
    helper.check_gradients(F.linear, { helper.leaf(1, 4), helper.leaf(5, 4) })
  end)

  it("sums the gradient of its bias and weight to zero when there are no rows", function()
    local x, w, b = mc.zeros(0, 4), mc.randn(3, 4, { requires_grad = true }), mc.randn(3, { requires_grad = true })
    F.linear(x, w, b):sum():backward()
    helper.same(w.grad, mc.zeros(3, 4))
    helper.same(b.grad, mc.zeros(3))
  end)

  it("names the shapes and dtypes that do not fit", function()
    helper.raises("linear: x is [2, 3] and weight is [5, 4], wanted [.., K] and [N, K]", F.linear, mc.zeros(2, 3),
      mc.zeros(5, 4))
    helper.raises("linear: x is float32 and weight is float64; convert one with t:to(\"float64\")", F.linear,
      mc.zeros(2, 4), mc.zeros(5, 4, F64))
    helper.raises("linear: bias is [4], wanted [5]", F.linear, mc.zeros(2, 4), mc.zeros(5, 4), mc.zeros(4))
  end)
end)

describe("embedding", function()
  it("takes rows by 0-based ids of any shape and adds their gradients up", function()
    local table_ = helper.leaf(4, 3)
    local ids = i32 { { 3, 0 }, { 3, 1 } }
    local y = F.embedding(ids, table_)
    assert.same({ 2, 2, 3 }, y:shape())
    helper.same(y:detach():select(1, 2):select(1, 1), table_:detach():select(1, 4))
    helper.check_gradients(function(w) return F.embedding(ids, w) end, { table_ })
  end)

  it("names the position, the value and the range of an id that is out of range", function()
    helper.raises("index[1, 0] is 4, legal are 0 to 3 (0-based)", F.embedding, i32 { { 0, 1 }, { 4, 2 } },
      mc.zeros(4, 3))
    helper.raises("index[0, 1] is -1, legal are 0 to 3 (0-based)", F.embedding, i32 { { 0, -1 } }, mc.zeros(4, 3))
  end)

  it("says what dtype ids must have", function()
    helper.raises("embedding: ids: a tensor of float32, wanted int32 or int64; make it with dtype = \"int32\"",
      F.embedding, mc.tensor { 1, 2 }, mc.zeros(4, 3))
  end)
end)

describe("dropout", function()
  it("keeps the share 1 - p, scales it, and sends gradients through what it kept", function()
    mc.manual_seed(3)
    local x = mc.ones(10000, { requires_grad = true })
    local y = F.dropout(x, 0.25)
    local kept = y:detach():gt(0):sum():item()
    -- the number kept is binomial: 5 standard deviations
    assert.is_true(math.abs(kept - 7500) < 5 * math.sqrt(10000 * 0.25 * 0.75))
    helper.close(y:detach():max(), mc.tensor(4 / 3), helper.tolerance "float32")
    y:sum():backward()
    helper.same(x.grad, y:detach())
  end)

  it("is the identity outside training and at p = 0, and draws anew each time", function()
    local x = mc.ones(64)
    assert.equal(x, F.dropout(x, 0.5, false))
    assert.equal(x, F.dropout(x, 0))
    assert.is_false(mc.equal(F.dropout(x, 0.5), F.dropout(x, 0.5)))
  end)

  it("refuses a p of 1", function()
    helper.raises("dropout: p is 1, wanted a number of 0 to below 1", F.dropout, mc.ones(2), 1)
  end)
end)

describe("norms", function()
  it("normalise the last axis as the formulas say", function()
    mc.manual_seed(4)
    local x, w, b = mc.randn(2, 3, 7, F64), mc.randn(7, F64), mc.randn(7, F64)
    local rms = x / ((x * x):mean(-1, true) + 1e-5):sqrt() * w
    helper.close(F.rms_norm(x, w, 1e-5), rms, helper.tolerance("float64", 7))
    local d = x - x:mean(-1, true)
    local layer = d / ((d * d):mean(-1, true) + 1e-5):sqrt() * w + b
    helper.close(F.layer_norm(x, w, b), layer, helper.tolerance("float64", 7))
  end)

  it("have the derivatives of central differences, with and without parameters", function()
    mc.manual_seed(5)
    helper.check_gradients(F.rms_norm, { helper.leaf(3, 5), helper.leaf(5) })
    helper.check_gradients(function(x) return F.rms_norm(x) end, { helper.leaf(2, 2, 4) })
    helper.check_gradients(F.layer_norm, { helper.leaf(3, 5), helper.leaf(5), helper.leaf(5) })
    helper.check_gradients(function(x) return F.layer_norm(x) end, { helper.leaf(3, 4) })
    helper.check_gradients(function(w) return F.layer_norm(mc.ones(3, 4, F64) * 2, w, nil) end, { helper.leaf(4) })
  end)
end)

describe("rope", function()
  it("turns the pairs (d, d + D/2) by position times theta^(-2d/D)", function()
    mc.manual_seed(6)
    local x = mc.randn(1, 3, 2, 4, F64)
    local y = F.rope(x, { theta = 100, first = 2 }):totable()
    local v = x:totable()
    for t = 1, 3 do
      for h = 1, 2 do
        for d = 1, 2 do
          local angle = (t - 1 + 2) * 100 ^ (-2 * (d - 1) / 4)
          local a, b = v[1][t][h][d], v[1][t][h][d + 2]
          assert.near(a * math.cos(angle) - b * math.sin(angle), y[1][t][h][d], 1e-14)
          assert.near(a * math.sin(angle) + b * math.cos(angle), y[1][t][h][d + 2], 1e-14)
        end
      end
    end
  end)

  it("has the derivative of central differences", function()
    helper.check_gradients(function(x) return F.rope(x, { first = 3 }) end, { helper.leaf(1, 2, 2, 4) })
  end)
end)

describe("attention", function()
  -- softmax(scale q k^T) v, one number at a time
  local function plain(q, k, v, scale, causal)
    local Q, K, V, out = q:totable(), k:totable(), v:totable(), {}
    local T, S, heads, kv, D = q:size(2), k:size(2), q:size(3), k:size(3), q:size(4)
    for b = 1, #Q do
      out[b] = {}
      for t = 1, T do
        out[b][t] = {}
        for h = 1, heads do
          local g = math.floor((h - 1) * kv / heads) + 1
          local last = causal and t + S - T or S
          local sum, row = 0, {}
          for d = 1, D do row[d] = 0 end
          for s = 1, last do
            local dot = 0
            for d = 1, D do dot = dot + Q[b][t][h][d] * K[b][s][g][d] end
            local p = math.exp(scale * dot)
            sum = sum + p
            for d = 1, D do row[d] = row[d] + p * V[b][s][g][d] end
          end
          for d = 1, D do row[d] = row[d] / sum end
          out[b][t][h] = row
        end
      end
    end
    return mc.tensor(out, F64)
  end

  it("is the plain formula: causal or not, with shared keys, with a longer past", function()
    mc.manual_seed(7)
    for _, case in ipairs { { 3, 3, 2, 2, false }, { 4, 4, 4, 2, true }, { 2, 5, 2, 1, true }, { 1, 1, 1, 1, true } } do
      local T, S, heads, kv, causal = unpack(case)
      local q, k, v = mc.randn(2, T, heads, 4, F64), mc.randn(2, S, kv, 4, F64), mc.randn(2, S, kv, 4, F64)
      helper.close(F.attention(q, k, v, { causal = causal }), plain(q, k, v, 0.5, causal),
        helper.tolerance("float64", 16))
    end
  end)

  it("has the derivatives of central differences", function()
    mc.manual_seed(8)
    local function causal(q, k, v) return F.attention(q, k, v, { causal = true }) end
    helper.check_gradients(causal, { helper.leaf(1, 3, 4, 2), helper.leaf(1, 3, 2, 2), helper.leaf(1, 3, 2, 2) })
    helper.check_gradients(F.attention, { helper.leaf(2, 2, 1, 2), helper.leaf(2, 3, 1, 2), helper.leaf(2, 3, 1, 2) })
  end)
end)

describe("split", function()
  it("gives views whose gradients meet again, unused pieces as zeros", function()
    local x = helper.leaf(2, 6)
    local a, b, c = F.split(x, { 1, 2, 3 }, 2)
    assert.same({ 2, 1 }, a:shape())
    assert.same({ 2, 2 }, b:shape())
    assert.equal(x:storage_id(), c:storage_id())
    helper.check_gradients(function(y)
      local p, _, q = F.split(y, { 1, 2, 3 }, -1)
      return p * p, q:sum()
    end, { x })
    helper.raises("split: the sizes sum to 5, axis 2 of x has 6", F.split, x, { 2, 3 }, 2)
  end)
end)

describe("cross_entropy", function()
  local logits = { { 1, 2, 3 }, { 0, -1, 5 }, { 2, 2, 2 }, { -3, 0, 1 } }
  local function loss_of(row, target)
    local sum = 0
    for _, x in ipairs(row) do sum = sum + math.exp(x) end
    return math.log(sum) - row[target + 1]
  end

  it("is logsumexp minus the target's logit, averaged over targets that are not ignored", function()
    local x, target = mc.tensor(logits, F64), mc.tensor({ 2, -100, 0, 1 }, { dtype = "int64" })
    local each = { loss_of(logits[1], 2), 0, loss_of(logits[3], 0), loss_of(logits[4], 1) }
    helper.close(F.cross_entropy(x, target, { reduction = "none" }), mc.tensor(each, F64), 1e-14)
    local sum = each[1] + each[3] + each[4]
    assert.near(sum, F.cross_entropy(x, target, { reduction = "sum" }):item(), 1e-13)
    assert.near(sum / 3, F.cross_entropy(x, target):item(), 1e-13)
    local other = F.cross_entropy(x, target:mul(0) + 2, { ignore_index = 2, reduction = "none" })
    helper.same(other, mc.zeros(4, F64))
  end)

  it("takes logits [B, T, V] with targets [B, T]", function()
    local x, target = mc.tensor(logits, F64), i32 { 2, 1, 0, 1 }
    local flat = F.cross_entropy(x, target, { reduction = "none" })
    helper.same(F.cross_entropy(x:view(2, 2, 3), target:view(2, 2), { reduction = "none" }), flat:view(2, 2))
    helper.same(F.cross_entropy(x:view(2, 2, 3), target:view(2, 2)), F.cross_entropy(x, target))
  end)

  it("has the derivatives of central differences in every reduction", function()
    local target = i32 { 2, -100, 0, 1 }
    for _, reduction in ipairs { "mean", "sum", "none" } do
      helper.check_gradients(function(x) return F.cross_entropy(x, target, { reduction = reduction }) end,
        { helper.leaf(4, 3) })
    end
  end)

  it("names a target that is out of range, its place and the legal range", function()
    helper.raises("cross_entropy: target[2] is 3, legal are 0 to 2 (0-based)", F.cross_entropy, mc.zeros(4, 3),
      i32 { 0, 1, 3, 2 })
    helper.raises("cross_entropy: logits is [4, 3] and target is [3], wanted [.., V] and [..]", F.cross_entropy,
      mc.zeros(4, 3), i32 { 0, 1, 2 })
    helper.raises("cross_entropy: target: a tensor of float32, wanted int32 or int64", F.cross_entropy, mc.zeros(4, 3),
      mc.zeros(4))
    helper.raises("cross_entropy: reduction is \"median\", wanted \"mean\", \"sum\" or \"none\"", F.cross_entropy,
      mc.zeros(4, 3), i32 { 0, 1, 2, 0 }, { reduction = "median" })
    helper.raises("cross_entropy: unknown option weight; there are: ignore_index, reduction", F.cross_entropy,
      mc.zeros(4, 3), i32 { 0, 1, 2, 0 }, { weight = 1 })
  end)
end)

describe("other losses", function()
  it("nll_loss of log_softmax is cross_entropy, ignored targets included", function()
    mc.manual_seed(9)
    local x, target = mc.randn(4, 3, F64), i32 { 2, -100, 0, 1 }
    for _, reduction in ipairs { "mean", "sum", "none" } do
      helper.close(F.nll_loss(x:log_softmax(), target, { reduction = reduction }),
        F.cross_entropy(x, target, { reduction = reduction }), helper.tolerance("float64", 4))
    end
    helper.check_gradients(function(y) return F.nll_loss(y, target) end, { helper.leaf(4, 3) })
  end)

  it("mse_loss and l1_loss average over all elements", function()
    local a, b = mc.tensor { { 1, 2 }, { 3, 4 } }, mc.tensor { { 1, 0 }, { 0, 4 } }
    assert.equal((4 + 9) / 4, F.mse_loss(a, b):item())
    assert.equal(13, F.mse_loss(a, b, { reduction = "sum" }):item())
    assert.equal(5 / 4, F.l1_loss(a, b):item())
    helper.check_gradients(F.mse_loss, { helper.leaf(2, 3), helper.leaf(2, 3) })
    helper.check_gradients(F.l1_loss, { helper.leaf(2, 3), helper.leaf(2, 3) })
    helper.raises("mse_loss: x is float32 [2] and target is float32 [3], wanted equal shapes and dtypes", F.mse_loss,
      mc.zeros(2), mc.zeros(3))
  end)

  it("binary_cross_entropy_with_logits is right at 0 and does not overflow", function()
    local x = mc.tensor({ 0, 1000, -1000, 2 }, F64)
    local target = mc.tensor({ 0.5, 1, 1, 0 }, F64)
    local y = F.binary_cross_entropy_with_logits(x, target, { reduction = "none" }):totable()
    assert.near(math.log(2), y[1], 1e-15)
    assert.equal(0, y[2])
    assert.equal(1000, y[3])
    assert.near(math.log(1 + math.exp(2)), y[4], 1e-14)
    helper.check_gradients(F.binary_cross_entropy_with_logits, { helper.leaf(3, 2), helper.leaf(3, 2) })
    local zero = mc.zeros(1, { dtype = "float64", requires_grad = true })
    F.binary_cross_entropy_with_logits(zero, mc.ones(1, F64)):backward()
    assert.equal(-0.5, zero.grad:item())
  end)
end)
