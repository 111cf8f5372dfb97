--- mc.optim against the formulas in plain Lua, on float64 parameters; groups; clipping; schedules.
local mc = require "mascon"
local helper = require "helper"

local F64 = { dtype = "float64" }

local function parameter(values, role, dtype)
  return mc.nn.Parameter(mc.tensor(values, { dtype = dtype or "float64" }), role)
end

-- The gradients of three steps for a parameter of three elements.
local GRADIENTS = { { 0.5, -1, 0 }, { 0.25, 2, 0 }, { -3, 1, 1e-3 } }
local START = { 1, -2, 3 }

-- Runs `make{params = {p}}` for three steps; returns the parameter's values after each.
local function run(make, scale)
  local p = parameter(START)
  local opt = make { p }
  local history = {}
  for i, g in ipairs(GRADIENTS) do
    p.grad = mc.tensor(g, F64)
    opt:step { grad_scale = scale }
    history[i] = p:detach():totable()
  end
  return history, opt, p
end

local function compare(history, plain)
  local p = { unpack(START) }
  local state = { {}, {}, {} }
  for step, g in ipairs(GRADIENTS) do
    for j = 1, 3 do p[j] = plain(p[j], g[j], state[j], step) end
    for j = 1, 3 do
      -- lr is a float32 tensor: the update carries its rounding
      assert.near(p[j], history[step][j], 2 ^ -22 * math.max(1, math.abs(p[j])), ("step %d element %d"):format(step, j))
    end
  end
end

local function plain_adam(lr, b1, b2, eps, decay, decoupled)
  return function(p, g, s, step)
    if decoupled then p = p * (1 - lr * decay) else g = g + decay * p end
    s.m = b1 * (s.m or 0) + (1 - b1) * g
    s.v = b2 * (s.v or 0) + (1 - b2) * g * g
    return p - lr * (s.m / (1 - b1 ^ step)) / (math.sqrt(s.v / (1 - b2 ^ step)) + eps)
  end
end

describe("the steps", function()
  it("of Adam are algorithm 1 of its paper, weight decay added to the gradient", function()
    compare(run(function(params) return mc.optim.Adam { params = params, lr = 0.1 } end),
      plain_adam(0.1, 0.9, 0.999, 1e-8, 0))
    compare(run(function(params)
      return mc.optim.Adam { params = params, lr = 0.01, betas = { 0.5, 0.9 }, eps = 1e-3, weight_decay = 0.1 }
    end), plain_adam(0.01, 0.5, 0.9, 1e-3, 0.1))
  end)

  it("of AdamW decay the weights apart from the gradient, by 0.01 unless told otherwise", function()
    compare(run(function(params) return mc.optim.AdamW { params = params, lr = 0.1 } end),
      plain_adam(0.1, 0.9, 0.999, 1e-8, 0.01, true))
  end)

  it("of SGD follow PyTorch: momentum, dampening, nesterov, weight decay", function()
    local function plain(lr, momentum, dampening, decay, nesterov)
      return function(p, g, s, step)
        g = g + decay * p
        if momentum ~= 0 then
          s.buf = step == 1 and g or momentum * s.buf + (1 - dampening) * g
          g = nesterov and g + momentum * s.buf or s.buf
        end
        return p - lr * g
      end
    end
    compare(run(function(params) return mc.optim.SGD { params = params, lr = 0.1 } end), plain(0.1, 0, 0, 0))
    compare(run(function(params)
      return mc.optim.SGD { params = params, lr = 0.1, momentum = 0.9, dampening = 0.5, weight_decay = 0.1 }
    end), plain(0.1, 0.9, 0.5, 0.1))
    compare(run(function(params)
      return mc.optim.SGD { params = params, lr = 0.1, momentum = 0.9, nesterov = true }
    end), plain(0.1, 0.9, 0, 0, true))
  end)

  it("multiply gradients by grad_scale, and skip and do not count where it is not finite", function()
    local plain = plain_adam(0.1, 0.9, 0.999, 1e-8, 0.01, true)
    compare(run(function(params) return mc.optim.AdamW { params = params, lr = 0.1 } end, mc.tensor(0.5)),
      function(p, g, s, step) return plain(p, g * 0.5, s, step) end)
    local history, opt = run(function(params) return mc.optim.AdamW { params = params, lr = 0.1 } end,
      mc.tensor { 1 / 0 })
    assert.same(START, history[3])
    assert.equal(0, opt:state_dict().step)
  end)

  it("leave parameters without a gradient alone", function()
    local a, b = parameter { 1 }, parameter { 2 }
    local opt = mc.optim.AdamW { params = { a, b }, lr = 0.1 }
    a.grad = mc.ones(1, F64)
    opt:step()
    assert.equal(2, b:item())
    assert.is_true(a:item() < 1)
    opt:zero_grad()
    assert.is_nil(a.grad)
  end)

  it("raise the version of what they write, so that a stale graph is noticed", function()
    local p = parameter { 1, 2 }
    local opt = mc.optim.SGD { params = { p }, lr = 0.1 }
    local loss = (p * p):sum()
    p.grad = mc.ones(2, F64)
    opt:step()
    helper.raises("changed in place after the forward pass", loss.backward, loss)
  end)

  it("follow a parameter that changes its dtype", function()
    local net = mc.nn.Linear { in_features = 2, out_features = 2 }
    local opt = mc.optim.AdamW { params = net, master_weights = true }
    local function step()
      for _, p in ipairs(net:parameters()) do p.grad = mc.ones_like(p) end
      opt:step()
    end
    step()
    for _, dtype in ipairs { "float64", "bfloat16", "float32" } do
      net:to(dtype)
      step()
      local sd = opt:state_dict()
      assert.equal(dtype == "float64" and "float64" or "float32", sd["exp_avg.weight"].dtype)
      assert.equal(dtype == "bfloat16", sd["master.weight"] ~= nil)
      assert.equal(dtype, net.weight.dtype)
    end
    assert.near(1 - 0.9 ^ 4, opt:state_dict()["exp_avg.weight"]:max():item(), 1e-6)
  end)

  it("with master weights keep what bfloat16 rounds away", function()
    local p = parameter({ 256 }, "weight", "bfloat16")
    local opt = mc.optim.SGD { params = { p }, lr = 0.25, master_weights = true }
    for _ = 1, 8 do
      p.grad = mc.tensor({ -1 }, { dtype = "bfloat16" })
      opt:step()
    end
    assert.equal(258, p:item()) -- steps of 0.25 at a spacing of 2
    assert.equal(258, opt:state_dict()["master.param0.weight"]:item())
    mc.no_grad(function() p:fill_(1) end) -- written by hand: the master follows
    p.grad = mc.tensor({ -1 }, { dtype = "bfloat16" })
    opt:step()
    assert.equal(1.25, p:item())
  end)
end)

describe("moments in bfloat16", function()
  local BF16 = { dtype = "bfloat16" }

  -- One parameter with such state after two steps, and its optimizer.
  local function trained(options)
    mc.manual_seed(4)
    local p = mc.nn.Parameter(mc.randn(50, BF16))
    options.params, options.lr, options.state_dtype = { p }, 0.1, "bfloat16"
    local opt = mc.optim.AdamW(options)
    for _ = 1, 2 do
      p.grad = mc.randn(50, BF16)
      opt:step()
    end
    return p, opt
  end

  it("are those of float32, rounded to nearest once a step", function()
    mc.manual_seed(8)
    local start, grad = mc.randn(50, BF16), mc.randn(50, BF16)
    local state = {}
    for i, dtype in ipairs { "bfloat16", "float32" } do
      local p = mc.nn.Parameter(start:clone())
      local opt = mc.optim.Adam { params = { p }, lr = 0.1, betas = { 0.9, 0.95 }, state_dtype = dtype }
      p.grad = grad
      opt:step()
      state[i] = opt:state_dict()
      state[i].param = p:detach()
    end
    for _, name in ipairs { "exp_avg.param0.weight", "exp_avg_sq.param0.weight" } do
      assert.equal("bfloat16", state[1][name].dtype)
      assert.equal("float32", state[2][name].dtype)
      helper.same(state[1][name], state[2][name]:to "bfloat16")
    end
    helper.same(state[1].param, state[2].param)
  end)

  it("are kept so in state dicts, and go on bit for bit from there", function()
    for _, master in ipairs { false, true } do
      local p, opt = trained { master_weights = master }
      local q = mc.nn.Parameter(p:detach():clone())
      local other = mc.optim.AdamW { params = { q }, state_dtype = "bfloat16", master_weights = master }
      other:load_state_dict(opt:state_dict())
      assert.equal("bfloat16", other:state_dict()["exp_avg_sq.param0.weight"].dtype)
      p.grad = mc.randn(50, BF16)
      q.grad = p.grad:clone()
      opt:step()
      other:step()
      helper.same(q:detach(), p:detach())
      helper.same(other:state_dict()["exp_avg.param0.weight"], opt:state_dict()["exp_avg.param0.weight"])
    end
  end)

  it("are only for bfloat16 parameters, and follow one that changes its dtype", function()
    local net = mc.nn.Linear { in_features = 2, out_features = 2 }
    local opt = mc.optim.AdamW { params = net, state_dtype = "bfloat16" }
    for _, dtype in ipairs { "float32", "bfloat16", "float16", "float64" } do
      net:to(dtype)
      for _, p in ipairs(net:parameters()) do p.grad = mc.ones_like(p) end
      opt:step()
      local want = (dtype == "bfloat16" or dtype == "float64") and dtype or "float32"
      assert.equal(want, opt:state_dict()["exp_avg.weight"].dtype)
    end
    helper.raises('AdamW: option state_dtype is "int8", wanted "float32" or "bfloat16"', mc.optim.AdamW,
      { params = net, state_dtype = "int8" })
  end)
end)

describe("groups", function()
  local function two()
    local net = mc.nn.Sequential(mc.nn.LayerNorm { normalized_shape = 2 }, mc.nn.Linear { in_features = 2,
      out_features = 2 })
    for _, p in ipairs(net:parameters()) do p.grad = mc.zeros_like(p) end
    return net
  end

  it("by role give norms and biases their own weight decay", function()
    local net = two()
    mc.no_grad(function() for _, p in ipairs(net:parameters()) do p:fill_(1) end end)
    local opt = mc.optim.AdamW { lr = 0.5, weight_decay = 0.5, params = {
      { params = net, roles = { "norm", "bias" }, weight_decay = 0 },
      { params = net },
    } }
    opt:step()
    for name, p in net:named_parameters() do
      assert.equal(name == "1.weight" and 0.75 or 1, p:detach():max():item(), name)
    end
  end)

  it("by name take the first that fits, with learning rates of their own that set_lr keeps in proportion", function()
    local net = two()
    local opt = mc.optim.SGD { lr = 0.1, params = { { params = net, match = "^1%.", lr = 0.2 }, { params = net } } }
    opt:set_lr(1)
    assert.equal(2, opt:get_lr(1))
    assert.equal(1, opt:get_lr(2))
    for _, p in ipairs(net:parameters()) do p.grad = mc.ones_like(p) end
    local before = net[2].bias:clone():detach()
    opt:step()
    helper.close(before - net[2].bias:detach(), mc.full({ 2 }, 2), helper.tolerance "float32")
    helper.close(net[1].bias:detach(), mc.full({ 2 }, -1), helper.tolerance "float32")
  end)

  it("that take nothing, unknown options and bad numbers are errors", function()
    local net = two()
    helper.raises("AdamW: group 1 takes no parameter: match = \"router\"", mc.optim.AdamW,
      { params = { { params = net, match = "router" }, { params = net } } })
    helper.raises("AdamW: unknown option learning_rate; there are: betas, eps, lr, master_weights, params, "
      .. "state_dtype, weight_decay", mc.optim.AdamW, { params = net, learning_rate = 1 })
    helper.raises("AdamW: group: unknown option decay", mc.optim.AdamW, { params = { { params = net, decay = 1 } } })
    helper.raises("AdamW: option betas is a table, wanted a table of two numbers from 0 to below 1", mc.optim.AdamW,
      { params = net, betas = { 0.9, 1 } })
    helper.raises("SGD: option lr is missing, wanted a number of 0 or more", mc.optim.SGD, { params = net })
    helper.raises("SGD: nesterov = true wants momentum above 0 and dampening 0, they are 0 and 0", mc.optim.SGD,
      { params = net, lr = 1, nesterov = true })
    helper.raises("AdamW: params is an empty table", mc.optim.AdamW, { params = {} })
    helper.raises("AdamW: params[2] is 3, wanted a parameter", mc.optim.AdamW, { params = { net[2].weight, 3 } })
    helper.raises("AdamW: set_lr: wanted a number of 0 or more, got -1", function()
      mc.optim.AdamW { params = net }:set_lr(-1)
    end)
  end)
end)

describe("experts in the optimizer", function()
  local function layer(single)
    mc.manual_seed(1)
    return mc.nn.GroupedLinear { num_gemms = 3, in_features = 2, out_features = 2, single_grouped_weight = single,
      single_grouped_bias = single }
  end
  local function give_gradients(gl)
    for _, slot in ipairs(gl:slots()) do
      local p = slot.tensor
      p.grad = mc.arange(p:numel()):view(p:shape()) - 3
    end
  end

  it("are stepped as one in both layouts, bit for bit, and state is named by the layout of the moment", function()
    local a, b = layer(false), layer(true)
    local oa, ob = mc.optim.AdamW { params = a, lr = 0.1 }, mc.optim.AdamW { params = b:parameters(), lr = 0.1 }
    for _ = 1, 3 do
      give_gradients(a)
      give_gradients(b)
      oa:step()
      ob:step()
      a:set_layout { weight = a:layout().weight == "single" and "per_expert" or "single" }
    end
    helper.same(a.weight:detach(), b.weight:detach())
    helper.same(a.bias:detach(), b.bias:detach())
    a:set_layout { weight = "per_expert" }
    assert.is_not_nil(oa:state_dict()["exp_avg.weight2"])
    assert.is_nil(oa:state_dict()["exp_avg.weight"])
    a:set_layout { weight = "single" }
    assert.is_not_nil(oa:state_dict()["exp_avg.weight"])
    assert.is_not_nil(oa:state_dict()["exp_avg_sq.bias1"])
    helper.same(oa:state_dict()["exp_avg_sq.weight"], ob:state_dict()["exp_avg_sq.param0.weight"])
  end)

  it("that are frozen stay, and the others move as if none were", function()
    local a, b = layer(false), layer(false)
    local oa, ob = mc.optim.AdamW { params = a, lr = 0.1 }, mc.optim.AdamW { params = b, lr = 0.1 }
    a:expert(1).weight:requires_grad_(false)
    local before = a:expert(1).weight:clone():detach()
    give_gradients(a)
    give_gradients(b)
    oa:step()
    ob:step()
    helper.same(a:expert(1).weight:detach(), before)
    helper.same(a:expert(0).weight:detach(), b:expert(0).weight:detach())
    helper.same(a:expert(2).weight:detach(), b:expert(2).weight:detach())
  end)

  it("in different groups are stepped apart, and can then not become one parameter", function()
    local gl = layer(false)
    local opt = mc.optim.SGD { lr = 0.5, params = { { params = gl, match = "^weight1$", lr = 0 }, { params = gl } } }
    local before = gl.weight:clone():detach()
    give_gradients(gl)
    opt:step()
    helper.same(gl.weight:detach()[2], before[2])
    helper.close(gl.weight:detach()[3], before[3] - gl.weight.grad[3] * 0.5, helper.tolerance "float32")
    helper.raises("set_layout: experts differ in parameter groups; make them equal before they become one parameter",
      gl.set_layout, gl, { weight = "single" })
    local single = layer(true)
    helper.raises("AdamW: the experts of param0.weight are in different parameter groups", mc.optim.AdamW, {
        params = { { params = { single:expert(0).weight } }, { params = { single:expert(1).weight } } },
      })
  end)

  it("that an optimizer was not given are not stepped, clipped or forgotten by it", function()
    local gl = layer(false)
    local opt = mc.optim.SGD { lr = 1, params = { gl:expert(0).weight, gl:expert(2).weight } }
    gl.weight.grad = mc.tensor { { { 3, 0 }, { 0, 0 } }, { { 100, 0 }, { 0, 0 } }, { { 4, 0 }, { 0, 0 } } }
    local before = gl.weight:clone():detach()
    assert.equal(5, mc.optim.clip_grad_norm_(opt, 10):item())
    opt:step()
    helper.same(gl.weight:detach()[2], before[2])
    helper.close(gl.weight:detach()[3], before[3] - gl.weight.grad[3], helper.tolerance "float32")
    opt:zero_grad()
    assert.equal(100, gl.weight.grad:sum():item())
    assert.equal(1, #mc.optim.SGD { lr = 1, params = gl.weight }.entries)
    gl:set_layout { weight = "single" } -- an optimizer of all of it has taken over
  end)

  it("of a pattern on the single name are the same in both layouts", function()
    for _, single in ipairs { false, true } do
      local gl = layer(single)
      local opt = mc.optim.SGD { lr = 1, params = { { params = gl, match = "bias$", lr = 0 }, { params = gl } } }
      give_gradients(gl)
      opt:step()
      helper.same(gl.bias:detach(), mc.zeros(3, 2))
    end
  end)
end)

describe("clip_grad_norm_", function()
  it("gives the norm before clipping and scales gradients to max_norm", function()
    local a, b = parameter { 0, 0 }, parameter { 0 }
    a.grad, b.grad = mc.tensor({ 3, 0 }, F64), mc.tensor({ 4 }, F64)
    local norm = mc.optim.clip_grad_norm_({ a, b }, 10)
    assert.equal(5, norm:item())
    assert.equal(0, norm:dim())
    assert.same({ 3, 0 }, a.grad:totable())
    mc.optim.clip_grad_norm_({ a, b }, 1)
    assert.near(3 / (5 + 1e-6), a.grad:totable()[1], 1e-15)
    assert.near(4 / (5 + 1e-6), b.grad:item(), 1e-15)
    assert.equal(0, mc.optim.clip_grad_norm_({ parameter { 1 } }, 1):item())
  end)

  it("does the same to a module, an optimizer and a list of its parameters, in both layouts", function()
    local results = {}
    for i, single in ipairs { false, true } do
      mc.manual_seed(5)
      local gl = mc.nn.GroupedLinear { num_gemms = 5, in_features = 7, out_features = 3,
        single_grouped_weight = single }
      for _, of in ipairs { gl, gl:parameters(), mc.optim.AdamW { params = gl } } do
        mc.manual_seed(6)
        for _, slot in ipairs(gl:slots()) do slot.tensor.grad = mc.randn(slot.tensor:shape()) end
        local norm = mc.optim.clip_grad_norm_(of, 0.5)
        results[#results + 1] = { norm, gl.weight.grad:clone(), gl.bias.grad:clone() }
      end
      assert.equal(3 * i, #results)
    end
    for _, r in ipairs(results) do
      for k = 1, 3 do helper.same(r[k], results[1][k]) end
    end
  end)

  it("counts only the experts that are listed", function()
    local gl = mc.nn.GroupedLinear { num_gemms = 3, in_features = 1, out_features = 1, bias = false }
    gl.weight.grad = mc.tensor { { { 3 } }, { { 100 } }, { { 4 } } }
    assert.equal(5, mc.optim.clip_grad_norm_({ gl:expert(0).weight, gl:expert(2).weight }, math.huge):item())
  end)

  it("multiplies 16-bit gradients by a factor that is not rounded to their dtype", function()
    for _, dtype in ipairs { "bfloat16", "float16" } do
      local p = parameter({ 0, 0 }, "weight", dtype)
      p.grad = mc.tensor({ 3, 4 }, { dtype = dtype })
      mc.optim.clip_grad_norm_({ p }, 1.1)
      local factor = mc.tensor(1.1 / (5 + 1e-6), F64):to("float32"):to("float64")
      helper.same(p.grad, (mc.tensor({ 3, 4 }, F64) * factor):to(dtype))
    end
  end)

  it("raises for a norm that is not finite only when asked to", function()
    local p = parameter { 0 }
    p.grad = mc.tensor({ 1 / 0 }, F64)
    helper.raises("clip_grad_norm_: the norm of the gradients is inf", mc.optim.clip_grad_norm_, { p }, 1,
      { error_if_nonfinite = true })
    assert.equal(1 / 0, p.grad:item())
    assert.equal(1 / 0, mc.optim.clip_grad_norm_({ p }, 1):item())
    helper.raises("clip_grad_norm_: max_norm is 0, wanted a number above 0", mc.optim.clip_grad_norm_, { p }, 0)
  end)
end)

describe("an optimizer's state dict", function()
  local function trained()
    local p, q = parameter({ 1, 2 }), parameter({ { 3 } })
    local opt = mc.optim.AdamW { params = { p, q }, lr = 0.1, betas = { 0.8, 0.9 } }
    for _ = 1, 2 do
      p.grad, q.grad = mc.ones(2, F64), mc.ones(1, 1, F64)
      opt:step()
    end
    return opt, p, q
  end

  it("has arrays by parameter name, the step and the numbers of each group", function()
    local sd = trained():state_dict()
    assert.equal(2, sd.step)
    assert.equal(0.1, sd["group0.lr"])
    assert.equal(0.8, sd["group0.beta1"])
    assert.same({ 2 }, sd["exp_avg.param0.weight"]:shape())
    assert.same({ 1, 1 }, sd["exp_avg_sq.param1.weight"]:shape())
  end)

  it("loaded into another optimizer goes on bit for bit, hyper-parameters included", function()
    local opt, p = trained()
    local a = parameter(p:detach():totable())
    local b = parameter { { 0 } }
    local other = mc.optim.AdamW { params = { a, b }, lr = 5 }
    local report = other:load_state_dict(opt:state_dict())
    assert.same({}, report.missing)
    assert.equal(0.1, other:get_lr())
    p.grad, a.grad = mc.ones(2, F64) * 3, mc.ones(2, F64) * 3
    opt:step()
    other:step()
    helper.same(a:detach(), p:detach())
    assert.equal(3, other:state_dict().step)
  end)

  it("of other parameters is refused with all problems, and changes nothing", function()
    local opt = trained()
    local other = mc.optim.AdamW { params = { parameter { 1, 2, 3 } } }
    local ok, err = pcall(other.load_state_dict, other, opt:state_dict())
    assert.is_false(ok)
    assert.matches("[shape]", err, 1, true)
    assert.matches("[unexpected]", err, 1, true)
    assert.equal(0, other:state_dict().step)
  end)

  it("converts between layouts", function()
    local per, single = {}, {}
    for i, into in ipairs { per, single } do
      mc.manual_seed(2)
      into.gl = mc.nn.GroupedLinear { num_gemms = 12, in_features = 2, out_features = 3, bias = false,
        single_grouped_weight = i == 2 }
      into.opt = mc.optim.AdamW { params = into.gl, lr = 0.1 }
    end
    per.gl.weight.grad = mc.randn(12, 3, 2)
    per.opt:step()
    single.opt:load_state_dict(per.opt:state_dict())
    helper.same(single.opt:state_dict()["exp_avg.weight"][12], per.opt:state_dict()["exp_avg.weight11"])
    local back = mc.optim.AdamW { params = per.gl }
    back:load_state_dict(single.opt:state_dict())
    helper.same(back:state_dict()["exp_avg_sq.weight10"], per.opt:state_dict()["exp_avg_sq.weight10"])
  end)

  it("brings master weights back exactly, whichever of model and optimizer is loaded first", function()
    for order = 1, 2 do
      local p = parameter({ 256 }, "weight", "bfloat16")
      local opt = mc.optim.SGD { params = { p }, lr = 0.25, master_weights = true }
      p.grad = mc.tensor({ -1 }, { dtype = "bfloat16" })
      opt:step() -- master 256.25, parameter 256
      local q = parameter({ 1 }, "weight", "bfloat16")
      local other = mc.optim.SGD { params = { q }, lr = 0.25, master_weights = true }
      local function model() mc.no_grad(function() q:copy_(p:detach()) end) end
      if order == 1 then model() end
      other:load_state_dict(opt:state_dict())
      if order == 2 then model() end
      q.grad = p.grad:clone()
      other:step()
      assert.equal(256.5, other:state_dict()["master.param0.weight"]:item())
    end
  end)
end)

describe("schedules", function()
  local schedule = mc.optim.schedule
  it("go up, and down along their curve to the final rate", function()
    local cosine = schedule.warmup_cosine { warmup = 10, total = 110, peak = 1, final = 0.1 }
    assert.equal(0.1, cosine(1))
    assert.equal(1, cosine(10))
    assert.near(0.55, cosine(60), 1e-15)
    assert.equal(0.1, cosine(110))
    assert.equal(0.1, cosine(500))
    local line = schedule.warmup_linear { total = 100, peak = 2 }
    assert.equal(2, line(0))
    assert.equal(1, line(50))
    assert.equal(0, line(100))
    local stable = schedule.warmup_stable_decay { warmup = 2, decay = 10, total = 30, peak = 1 }
    assert.equal(0.5, stable(1))
    assert.equal(1, stable(20))
    assert.near(0.5, stable(25), 1e-15)
    assert.equal(7, schedule.constant { peak = 7 }(123))
  end)

  it("name what does not fit", function()
    helper.raises("warmup_cosine: warmup = 20 is beyond total = 10", schedule.warmup_cosine,
      { warmup = 20, total = 10, peak = 1 })
    helper.raises("warmup_stable_decay: warmup = 5 and decay = 6 are more than total = 10",
      schedule.warmup_stable_decay, { warmup = 5, decay = 6, total = 10, peak = 1 })
    helper.raises("warmup_cosine: option peak is -1, wanted a number of 0 or more", schedule.warmup_cosine,
      { total = 10, peak = -1 })
  end)
end)

describe("a call of an optimizer", function()
  it("that is wrong is named", function()
    local opt = mc.optim.SGD { params = mc.nn.Linear { in_features = 1, out_features = 1 }, lr = 1 }
    helper.raises("get_lr: group: 2 is out of range, wanted 1 to 1", opt.get_lr, opt, 2)
    helper.raises("step: wanted an optimizer before the dot, got nil; call it with a colon, as in x:step()", opt.step)
    helper.raises("zero_grad: wanted a module before the dot", mc.nn.ReLU().zero_grad)
    helper.raises('SGD: group 1: match = "%" is no Lua pattern', mc.optim.SGD,
      { params = { { params = mc.nn.Linear { in_features = 1, out_features = 1 }, match = "%" } }, lr = 1 })
  end)
end)
