--- The modules of mc.nn: gradients against central differences, names in state dicts, options, errors by their text.
local mc = require "mascon"
local helper = require "helper"

local nn = mc.nn
local D = "float64"

local function names(m)
  local list = {}
  for name in m:named_parameters() do list[#list + 1] = name end
  return list
end

local function x_of(...) return helper.leaf(...) end

describe("every module", function()
  it("has the derivatives of central differences for its input and its parameters", function()
    mc.manual_seed(1)
    helper.check_module(nn.Linear { in_features = 3, out_features = 2, dtype = D }, x_of(4, 3))
    helper.check_module(nn.Linear { in_features = 3, out_features = 2, bias = false, dtype = D }, x_of(2, 2, 3))
    helper.check_module(nn.LayerNorm { normalized_shape = 4, dtype = D }, x_of(3, 4))
    helper.check_module(nn.RMSNorm { normalized_shape = 4, dtype = D }, x_of(3, 4))
    for _, name in ipairs { "GELU", "SiLU", "Tanh", "Sigmoid", "ReLU", "SwiGLU" } do
      helper.check_module(nn[name](), x_of(3, 4))
    end
    helper.check_module(nn.CausalSelfAttention { embed_dim = 8, num_heads = 4, num_kv_heads = 2, dtype = D },
      x_of(2, 3, 8))
    helper.check_module(nn.CausalSelfAttention { embed_dim = 6, num_heads = 2, bias = true, rope = false, dtype = D },
      x_of(1, 4, 6))
    helper.check_module(nn.Sequential(nn.Linear { in_features = 3, out_features = 8, dtype = D }, nn.SwiGLU(),
      nn.Linear { in_features = 4, out_features = 2, dtype = D }), x_of(5, 3))
    local ids = mc.tensor({ { 0, 2 }, { 2, 1 } }, { dtype = "int32" })
    local embedding = nn.Embedding { num_embeddings = 3, embedding_dim = 2, dtype = D }
    helper.check_gradients(function() return embedding(ids) end, { embedding.weight })
  end)

  it("refuses unknown and missing options, and plain numbers", function()
    helper.raises("Linear: unknown option out; there are: bias, device, dtype, in_features, init_method, out_features",
      nn.Linear, { in_features = 1, out_features = 1, out = 3 })
    helper.raises("Linear: wanted a table of options, got 4", nn.Linear, 4, 2)
    helper.raises("Embedding: option num_embeddings is missing, wanted a positive integer", nn.Embedding,
      { embedding_dim = 1 })
    helper.raises("RMSNorm: unknown option bias", nn.RMSNorm, { normalized_shape = 3, bias = true })
    helper.raises("LayerNorm: option normalized_shape is 0, wanted a positive integer", nn.LayerNorm,
      { normalized_shape = 0 })
    helper.raises("GELU: unknown option approximate", nn.GELU, { approximate = "none" })
    helper.raises("Dropout: p is 1, wanted 0 to below 1", nn.Dropout, { p = 1 })
    helper.raises("CausalSelfAttention: embed_dim = 10 is not a multiple of num_heads = 4; give head_dim",
      nn.CausalSelfAttention, { embed_dim = 10, num_heads = 4 })
    helper.raises("CausalSelfAttention: num_heads = 4 is not a multiple of num_kv_heads = 3", nn.CausalSelfAttention,
      { embed_dim = 8, num_heads = 4, num_kv_heads = 3 })
    helper.raises("CausalSelfAttention: head_dim = 3 is odd, rotary positions turn pairs", nn.CausalSelfAttention,
      { embed_dim = 6, num_heads = 2 })
    helper.raises("MSELoss: option reduction is \"max\", wanted one of \"mean\", \"sum\", \"none\"", nn.MSELoss,
      { reduction = "max" })
  end)

  it("gives its parameters names and roles", function()
    assert.same({ "weight", "bias" }, names(nn.Linear { in_features = 1, out_features = 1 }))
    assert.same({ "weight" }, names(nn.RMSNorm { normalized_shape = 2 }))
    assert.same({}, names(nn.LayerNorm { normalized_shape = 2, elementwise_affine = false }))
    assert.same({ "qkv.weight", "o.weight" }, names(nn.CausalSelfAttention { embed_dim = 4, num_heads = 2 }))
    local attention = nn.CausalSelfAttention { embed_dim = 8, num_heads = 4, num_kv_heads = 1 }
    assert.same({ (4 + 2) * 2, 8 }, attention.qkv.weight:shape())
    local linear = nn.Linear { in_features = 1, out_features = 1 }
    assert.equal("weight", linear.weight.group.role)
    assert.equal("bias", linear.bias.group.role)
    assert.equal("norm", nn.LayerNorm { normalized_shape = 2 }.bias.group.role)
    assert.equal("embedding", nn.Embedding { num_embeddings = 2, embedding_dim = 2 }.weight.group.role)
  end)

  it("is filled by its init_method, or by PyTorch's defaults", function()
    mc.manual_seed(2)
    local seven = nn.Linear { in_features = 3, out_features = 2, init_method = function(t) t:fill_(7) end }
    helper.same(seven.weight:detach(), mc.full({ 2, 3 }, 7))
    helper.same(seven.bias:detach(), mc.zeros(2))
    local wide = nn.Linear { in_features = 100, out_features = 100 }
    local most = wide.weight:detach():abs():max():item()
    assert.is_true(most <= 0.1 and most > 0.09)
    helper.same(nn.LayerNorm { normalized_shape = 3 }.weight:detach(), mc.ones(3))
  end)
end)

describe("Linear in bfloat16", function()
  it("takes and gives bfloat16, and names the dtypes that clash", function()
    local m = nn.Linear { in_features = 3, out_features = 2, dtype = "bfloat16" }
    assert.equal("bfloat16", m(mc.zeros(1, 3, { dtype = "bfloat16" })).dtype)
    helper.raises("linear: x is float32 and weight is bfloat16; convert one with t:to(\"bfloat16\")", m, mc.zeros(1, 3))
  end)
end)

describe("Sequential", function()
  local function net()
    return nn.Sequential(nn.Linear { in_features = 2, out_features = 3 }, nn.ReLU(),
      nn.Linear { in_features = 3, out_features = 1, bias = false })
  end

  it("is indexed from 1 and named from 0", function()
    local seq = net()
    assert.same({ "0.weight", "0.bias", "2.weight" }, names(seq))
    assert.equal(3, seq[1].out_features)
    assert.equal(1, seq[3].out_features)
    assert.is_nil(seq[0])
    assert.is_nil(seq[4])
    assert.equal(3, seq:size())
    local sd = seq:state_dict()
    assert.same({ 1, 3 }, sd["2.weight"]:shape())
    local other = net()
    other:load_state_dict(sd)
    helper.same(other[3].weight:detach(), seq[3].weight:detach())
  end)

  it("calls its modules in order, grows by add, and passes through when empty", function()
    local seq, x = net(), mc.randn(4, 2)
    helper.same(seq(x), seq[3](seq[2](seq[1](x))))
    assert.equal(seq, seq:add(nn.Tanh()))
    assert.same({ 4, 1 }, seq(x):shape())
    assert.equal(4, seq:size())
    assert.equal(x, nn.Sequential()(x))
    local count = 0
    for i, m in seq:each() do
      assert.equal(seq[i], m)
      count = i
    end
    assert.equal(4, count)
  end)

  it("refuses what is no module, and says where a module inside failed", function()
    helper.raises("Sequential: entry 2 is 3, wanted a module", nn.Sequential, nn.ReLU(), 3)
    helper.raises("0 (Linear): linear: x is [2, 5] and weight is [3, 2], wanted [.., K] and [N, K]", net(),
      mc.zeros(2, 5))
    local inner = nn.Sequential(nn.ReLU(), net())
    helper.raises("1.0 (Linear): ", inner, mc.zeros(2, 5))
    assert.same({ 1, 1 }, inner(mc.zeros(1, 2)):shape()) -- and forgets it
  end)
end)

describe("ModuleList", function()
  it("registers its modules in order, and leaves calling them to its owner", function()
    local list = nn.ModuleList { nn.RMSNorm { normalized_shape = 2 }, nn.RMSNorm { normalized_shape = 3 } }
    list:append(nn.RMSNorm { normalized_shape = 4 })
    assert.same({ "0.weight", "1.weight", "2.weight" }, names(list))
    assert.equal(4, list[3].normalized_shape)
    assert.equal(3, list:size())
    helper.raises("the class has no forward", list, mc.zeros(1))
    helper.raises("ModuleList: wanted a table of modules, got 3", nn.ModuleList, 3)
    helper.raises("ModuleList: entry 2 is \"a\", wanted a module", nn.ModuleList, { nn.ReLU(), "a" })
  end)
end)

describe("Dropout", function()
  it("drops while training and not after eval", function()
    mc.manual_seed(1)
    local net = nn.Sequential(nn.Dropout { p = 0.5 })
    local x = mc.ones(100)
    assert.is_false(mc.equal(net(x), x))
    net:eval()
    assert.equal(x, net(x))
    net:train()
    assert.is_false(mc.equal(net(x), x))
  end)
end)

describe("CausalSelfAttention", function()
  it("lets no position see a later one", function()
    mc.manual_seed(4)
    local m = nn.CausalSelfAttention { embed_dim = 8, num_heads = 2 }
    local x = mc.randn(1, 5, 8)
    local before = m(x)
    local changed = x:clone()
    changed:narrow(2, 4, 2):fill_(9)
    local after = m(changed)
    helper.same(after:narrow(2, 1, 3):contiguous():detach(), before:narrow(2, 1, 3):contiguous():detach())
    assert.is_false(mc.equal(after:narrow(2, 4, 1):contiguous(), before:narrow(2, 4, 1):contiguous()))
  end)

  it("sees only differences of positions: a shift of rope's first position changes nothing", function()
    mc.manual_seed(5)
    local q, k = mc.randn(1, 3, 1, 4, { dtype = D }), mc.randn(1, 3, 1, 4, { dtype = D })
    local function scores(first)
      local F = nn.functional
      local a, b = F.rope(q, { first = first }):squeeze(), F.rope(k, { first = first }):squeeze()
      return a:matmul(b:transpose())
    end
    helper.close(scores(7), scores(0), helper.tolerance("float64", 16))
  end)

  it("wants [B, T, embed_dim]", function()
    local m = nn.CausalSelfAttention { embed_dim = 8, num_heads = 2 }
    helper.raises("CausalSelfAttention: x is [3, 8], wanted [B, T, embed_dim]", m, mc.zeros(3, 8))
  end)
end)

describe("losses as modules", function()
  it("are their functions", function()
    mc.manual_seed(6)
    local x, y = mc.randn(4, 3), mc.tensor({ 0, 2, -1, 1 }, { dtype = "int64" })
    helper.same(nn.CrossEntropyLoss { ignore_index = -1 }(x, y),
      nn.functional.cross_entropy(x, y, { ignore_index = -1 }))
    helper.same(nn.MSELoss { reduction = "sum" }(x, x * 2), nn.functional.mse_loss(x, x * 2, { reduction = "sum" }))
  end)
end)

describe("a model and its optimizer", function()
  -- The fake device is plain memory that faults when the host reads it.
  it("run on a device that the host may not read, with the same bits", function()
    local results = {}
    for i, device in ipairs { "cpu", "fake" } do
      mc.manual_seed(8)
      local moe = nn.MoE { hidden_size = 8, ffn_hidden_size = 6, num_experts = 5, bias = true, aux_loss_coeff = 0.1,
        z_loss_coeff = 0.1 }
      local net = nn.Sequential(nn.Embedding { num_embeddings = 10, embedding_dim = 8 },
        nn.LayerNorm { normalized_shape = 8 },
        nn.CausalSelfAttention { embed_dim = 8, num_heads = 4, num_kv_heads = 2 },
        nn.RMSNorm { normalized_shape = 8 }, nn.Dropout { p = 0.25 }, moe):to(device)
      mc.manual_seed(9)
      local opt = mc.optim.AdamW { params = net, lr = 0.01 }
      local ids = mc.tensor({ { 1, 2, 3 }, { 4, 5, 6 } }, { dtype = "int32", device = device })
      local norm
      for _ = 1, 3 do
        local loss = nn.functional.cross_entropy(nn.functional.linear(net(ids), net[1].weight), ids) + moe.aux
        loss:backward()
        norm = mc.optim.clip_grad_norm_(net, 0.1)
        opt:set_lr(0.02)
        opt:step { grad_scale = mc.tensor(0.5, { device = device }) }
        opt:zero_grad()
      end
      results[i] = { norm:cpu(), moe.experts.down.weight:detach():cpu(), net[1].weight:detach():cpu(),
        opt:state_dict()["exp_avg_sq.2.qkv.weight"]:cpu(), moe.metrics.counts:cpu() }
    end
    for k = 1, #results[1] do helper.same(results[2][k], results[1][k], "value " .. k) end
  end)
end)

describe("a field of a module", function()
  local Net = nn.Module:extend "Net"
  function Net:forward(x) return self.inner(x) end
  local function linear() return nn.Linear { in_features = 2, out_features = 2 } end

  it("that was registered stays a parameter, a module or nil", function()
    local net = Net()
    net.inner, net.scale = linear(), nn.Parameter(mc.ones(2))
    helper.raises("Net: scale was registered, it cannot become a tensor; wanted mc.nn.Parameter(t), a module or nil",
      function() net.scale = mc.ones(2) end)
    helper.raises("Net: inner was registered, it cannot become 3", function() net.inner = 3 end)
    net.scale = nil
    assert.same({ "inner.weight", "inner.bias" }, names(net))
    net:register_buffer("mean", mc.zeros(2))
    net.mean = mc.ones(2)
    assert.equal(2, net:state_dict().mean:sum():item())
    helper.raises("Net: mean was registered, it cannot become 1; wanted a tensor or nil", function() net.mean = 1 end)
    helper.raises("register_buffer: wanted a name, got nil", net.register_buffer, net)
  end)
  it("hides no method, and makes no module contain itself", function()
    local net = Net()
    helper.raises("Net: the field forward would hide the method of that name", function() net.forward = linear() end)
    helper.raises("Net: the field to would hide the method", function() net.to = nn.Parameter(mc.ones(1)) end)
    helper.raises("would hide the method", net.register_buffer, net, "train", mc.ones(1))
    net.inner = Net()
    helper.raises("Net: the module assigned to parent contains it", function() net.inner.parent = net end)
    helper.raises("Net: the module assigned to me contains it", function() net.me = net end)
    helper.raises("apply: wanted a function, got nil", net.apply, net)
  end)
  it("with a number replaces the module at that place of a container", function()
    local seq = nn.Sequential(linear(), nn.ReLU(), linear())
    local new = linear()
    seq[1] = new
    assert.equal(new, seq[1])
    assert.same({ "0.weight", "0.bias", "2.weight", "2.bias" }, names(seq))
    helper.raises("Sequential[i] = m: i: 4 is out of range, wanted 1 to 3", function() seq[4] = linear() end)
    helper.raises("Sequential: entry 2 is nil, wanted a module", function() seq[2] = nil end)
  end)
  it("names the failing module however the last call ended, and in a coroutine", function()
    local net = Net()
    net.inner = Net()
    function Net:forward(x)
      if x == "fail" then error("the user's own") end
      return self.inner:forward(x + mc.ones(3))
    end
    pcall(net, "fail")
    local ok, err = pcall(function() return mc.ones(2) + mc.ones(3), nil end)
    assert.is_false(ok)
    assert.is_truthy(err:find("%d: add: shapes"), err)
    local seq = nn.Sequential(nn.ReLU(), linear())
    local failing = coroutine.wrap(function() return pcall(seq, mc.ones(3)) end)
    ok, err = failing()
    assert.is_false(ok)
    assert.is_truthy(err:find("1 (Linear): linear: x is [3]", 1, true), err)
  end)
end)

describe("a move of a module", function()
  it("takes trainable dtypes and devices only, and changes nothing else", function()
    local m = nn.Linear { in_features = 2, out_features = 2 }
    helper.raises('to: a module cannot be "int32"; wanted float64, float32', m.to, m, "int32")
    helper.raises('to: a module cannot be "float8_e4m3fn"', m.to, m, { dtype = "float8_e4m3fn" })
    helper.raises("to: device is nil", m.to, m)
    helper.raises("unknown option dtypo", m.to, m, { dtypo = "float64" })
    assert.equal("float32", m.weight.dtype)
    assert.equal("float64", m:to("float64").weight.dtype)
  end)
end)

describe("tied weights", function()
  it("are one parameter for the optimizer and get both gradients", function()
    mc.manual_seed(7)
    local Net = nn.Module:extend "Net"
    function Net:init()
      self.embed = nn.Embedding { num_embeddings = 5, embedding_dim = 3, dtype = D }
      self.head = nn.Linear { in_features = 3, out_features = 5, bias = false, dtype = D }
      self.head.weight = self.embed.weight
    end
    function Net:forward(ids) return self.head(self.embed(ids)) end
    local net = Net()
    assert.equal(1, #net:parameters())
    local ids = mc.tensor({ 1, 4 }, { dtype = "int32" })
    helper.check_gradients(function() return net(ids) end, { net.embed.weight })
    assert.equal(1, #mc.optim.AdamW { params = net }.entries)
  end)
end)
