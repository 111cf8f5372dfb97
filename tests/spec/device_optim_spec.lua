--- Optimizer steps, factors and clipping on a device against the CPU's; many tensors at once against one at a time;
-- steps in a graph.
local ffi = require "ffi"
local H = require "device_helper"
local helper = require "helper"
local lib = require "mascon.lib"
local mc = require "mascon"

local C, check = lib.C, lib.check

local function numbers(dtype, n) return mc.randn(n, { dtype = "float64" }):to(dtype) end
local function stat(dtype) return dtype == "float64" and dtype or "float32" end
local function one(x) return mc.tensor({ x }, { dtype = "float32" }) end
local function handle(t) return t and t.h or nil end

-- Sizes about a vector and a chunk of the kernels (16384).
local SIZES = { 0, 1, 3, 8, 17, 255, 4099, 16384, 16391, 33000 }

-- {param, exp_avg, exp_avg_sq, master or false, grad} of n elements on the CPU.
local function adam_state(dtype, n, o)
  local param = numbers(dtype, n)
  local moments = o.moments or stat(dtype)
  return { param, (numbers("float32", n) * 0.1):to(moments), numbers("float32", n):abs():to(moments),
    o.master and param:to(stat(dtype)) or false, numbers(o.grad or dtype, n) }
end

-- The same on a device; `view` is applied to each of them.
local function on(device, state, view)
  local list = {}
  for i, t in ipairs(state) do
    list[i] = t and (view or function(x) return x end)(t:to(device):clone())
  end
  return list
end

local HYPER = { 0.9, 0.99, 1e-6, 0.1 }
local function adam(s, step, lr, scale, decoupled)
  check(C.mc_adam_step(s[1].h, s[2].h, s[3].h, handle(s[4]), s[5].h, step.h, lr.h, handle(scale), HYPER[1], HYPER[2],
    HYPER[3], HYPER[4], decoupled or 1))
end

local function array(list, k)
  local a = ffi.new("mc_tensor *[?]", math.max(1, #list))
  for i = 1, #list do a[i - 1] = list[i][k] and list[i][k].h or nil end
  return a
end
local function adam_many(list, step, lr, scale)
  return C.mc_adam_step_many(#list, array(list, 1), array(list, 2), array(list, 3), array(list, 4), array(list, 5),
    step.h, lr.h, handle(scale), HYPER[1], HYPER[2], HYPER[3], HYPER[4], 1)
end

-- Two steps on both devices. Moments that were rounded to the other neighbour in bfloat16 show in the second step.
local function compare(state, run, what, view)
  local here, there = on("cpu", state, view), on(H.device, state, view)
  for step = 1, 2 do
    local numbers_of = { one(step), one(0.125), one(0.5) }
    run(here, unpack(numbers_of))
    for i = 1, 3 do numbers_of[i] = numbers_of[i]:to(H.device) end
    run(there, unpack(numbers_of))
  end
  local rounded = here[2].dtype == "bfloat16" and "bfloat16"
  for i = 1, 4 do
    if here[i] then
      H.near(there[i]:to("cpu"), here[i], helper.tolerance(rounded or here[i].dtype, 4), what .. " " .. i)
    end
  end
end

local KINDS = {
  { "float64" }, { "float64", master = true }, { "float32" }, { "float32", master = true },
  { "float16" }, { "float16", grad = "float32", master = true }, { "bfloat16" }, { "bfloat16", master = true },
  { "bfloat16", grad = "float32", master = true }, { "bfloat16", moments = "bfloat16" },
  { "bfloat16", moments = "bfloat16", master = true }, { "bfloat16", moments = "bfloat16", grad = "float32" },
}
local function name_of(kind)
  return ("%s, moments %s, grad %s%s"):format(kind[1], kind.moments or "wide", kind.grad or "alike",
    kind.master and ", master" or "")
end

local VIEWS = {
  function(t) return mc.cat({ t:narrow(1, 1, 1), t }):narrow(1, 2, t:size(1)) end, -- one element from alignment
  function(t) return mc.stack({ t, t }, 2):select(2, 1) end, -- strided
  function(t) return mc.stack({ t, t }):transpose(1, 2):contiguous():transpose(1, 2) end, -- turned
}

describe("steps on a device", function()
  before_each(function() mc.manual_seed(41) end)

  it("of Adam agree for every mix of dtypes and every size", function()
    for _, kind in ipairs(KINDS) do
      for _, n in ipairs(SIZES) do compare(adam_state(kind[1], n, kind), adam, name_of(kind) .. " " .. n) end
    end
  end)

  it("of Adam agree on views that are not aligned or not contiguous, alone or all", function()
    for _, kind in ipairs(KINDS) do
      for i, view in ipairs(VIEWS) do
        compare(adam_state(kind[1], 37, kind), adam, name_of(kind) .. " view " .. i, view)
      end
      local turn = 0
      compare(adam_state(kind[1], 37, kind), adam, name_of(kind), function(t)
        turn = turn + 1
        return turn % 2 == 0 and VIEWS[2](t) or t
      end)
    end
  end)

  it("of Adam agree without a grad_scale, and with weight decay in the gradient", function()
    compare(adam_state("float32", 50, {}), function(s, step, lr) adam(s, step, lr, nil, 0) end, "Adam")
    compare(adam_state("bfloat16", 50, {}), function(s, step, lr) adam(s, step, lr, nil, 0) end, "Adam")
  end)

  it("of SGD agree: momentum, dampening, nesterov, none, stale buffers", function()
    local function sgd(momentum, dampening, nesterov)
      return function(s, step, lr, scale)
        check(C.mc_sgd_step(s[1].h, momentum ~= 0 and s[2].h or nil, handle(s[4]), s[5].h, step.h, lr.h, scale.h,
          momentum, dampening, 0.1, nesterov))
      end
    end
    for _, kind in ipairs(KINDS) do
      if not kind.moments then
        for _, run in ipairs { sgd(0, 0, 0), sgd(0.9, 0.5, 0), sgd(0.9, 0, 1) } do
          for _, n in ipairs { 0, 5, 300, 16399 } do compare(adam_state(kind[1], n, kind), run, "SGD " .. n) end
          compare(adam_state(kind[1], 21, kind), run, "SGD strided", VIEWS[2])
        end
      end
    end
    local state = adam_state("float32", 20, {})
    mc.no_grad(function() state[2]:fill_(0 / 0) end)
    compare(state, sgd(0.9, 0, 0), "SGD stale")
  end)

  it("are skipped where grad_scale is not finite", function()
    for _, bad in ipairs { 1 / 0, -1 / 0, 0 / 0 } do
      for _, view in ipairs { false, VIEWS[2] } do
        local state = adam_state("bfloat16", 100, { master = true })
        local there = on(H.device, state, view or nil)
        adam(there, one(1):to(H.device), one(1):to(H.device), one(bad):to(H.device))
        for i = 1, 4 do helper.same(there[i]:to("cpu"), state[i]) end
      end
    end
  end)
end)

describe("many tensors at once on a device", function()
  before_each(function() mc.manual_seed(42) end)

  -- Of all kinds, sizes and some layouts.
  local function mixture()
    local states, views = {}, {}
    for i = 1, 30 do
      local kind = KINDS[i % #KINDS + 1]
      states[i] = adam_state(kind[1], SIZES[i % #SIZES + 1], kind)
      views[i] = i % 5 == 0 and states[i][1]:numel() > 0 and VIEWS[i % 3 + 1] or nil
    end
    return states, views
  end

  it("take steps of Adam with the bits of single calls", function()
    local states, views = mixture()
    local single, many = {}, {}
    for i, s in ipairs(states) do single[i], many[i] = on(H.device, s, views[i]), on(H.device, s, views[i]) end
    local step, lr, scale = one(3):to(H.device), one(0.1):to(H.device), one(2):to(H.device)
    for _, s in ipairs(single) do adam(s, step, lr, scale) end
    check(adam_many(many, step, lr, scale))
    for i = 1, #states do
      for k = 1, 4 do
        if single[i][k] then helper.same(many[i][k]:to("cpu"), single[i][k]:to("cpu"), ("%d: %d"):format(i, k)) end
      end
    end
  end)

  it("change nothing when one is wrong, which is named", function()
    local list = {}
    for i = 1, 3 do list[i] = on(H.device, adam_state("float32", 9, {})) end
    local before = list[1][1]:clone()
    list[2][5] = mc.zeros(8, { device = H.device })
    assert.equal(1, adam_many(list, one(1):to(H.device), one(1):to(H.device)))
    assert.equal("adam_step: parameter 2: grad is [8], wanted [9]", ffi.string(C.mc_last_error()))
    helper.same(list[1][1]:to("cpu"), before:to("cpu"))
  end)

  it("take two steps in order where one stands there twice", function()
    local s = on(H.device, adam_state("float32", 100, {}))
    local t = on(H.device, s)
    local step, lr = one(1):to(H.device), one(0.1):to(H.device)
    check(adam_many({ s, s }, step, lr))
    adam(t, step, lr)
    adam(t, step, lr)
    helper.same(s[1]:to("cpu"), t[1]:to("cpu"))
  end)

  it("are multiplied by a factor as on the CPU, bit for bit", function()
    for _, dtype in ipairs(H.floats) do
      for _, of in ipairs { "float32", dtype } do
        local here, there = {}, {}
        for i, n in ipairs(SIZES) do
          local x = numbers(dtype, n)
          local view = i % 4 == 3 and VIEWS[i % 3 + 1] or function(t) return t end
          here[i], there[i] = { view(x:clone()) }, { view(x:to(H.device):clone()) }
        end
        for i = #SIZES + 1, 25 do
          local x = numbers(dtype, i)
          here[i], there[i] = { x:clone() }, { x:to(H.device):clone() }
        end
        local factor = mc.tensor({ 0.3 }, { dtype = of })
        check(C.mc_scale_many(#here, array(here, 1), factor.h))
        check(C.mc_scale_many(#there, array(there, 1), factor:to(H.device).h))
        for i = 1, #here do helper.same(there[i][1]:to("cpu"), here[i][1], dtype .. " " .. i) end
      end
    end
  end)

  it("have the sum of squares of single calls, bit for bit", function()
    for _, dtype in ipairs(H.floats) do
      local list, single = {}, mc.zeros(1, { dtype = "float64", device = H.device })
      for i = 1, 22 do list[i] = { numbers(dtype, SIZES[i % #SIZES + 1]):to(H.device) } end
      local many = single:clone()
      for _, x in ipairs(list) do check(C.mc_sum_squares(single.h, x[1].h)) end
      check(C.mc_sum_squares_many(many.h, #list, array(list, 1)))
      helper.same(many:to("cpu"), single:to("cpu"), dtype)
    end
  end)
end)

-- A model of two dtypes with masters, and gradients from a seed.
local function model(device, o)
  mc.manual_seed(7)
  local net = mc.nn.Sequential(mc.nn.Linear { in_features = 9, out_features = 33 },
    mc.nn.LayerNorm { normalized_shape = 33 },
    mc.nn.GroupedLinear { num_gemms = 3, in_features = 8, out_features = 5, params_dtype = "bfloat16" })
  net:to { device = device }
  o.params = { { params = net, roles = { "norm", "bias" }, weight_decay = 0 }, { params = net } }
  return net, mc.optim.AdamW(o)
end
local function give_gradients(net, seed)
  mc.manual_seed(seed)
  for _, slot in ipairs(net:slots()) do
    local p = slot.tensor
    local g = mc.randn(p:shape(), { dtype = "float64" }):to(p.dtype):to(p.device)
    if p.grad then p.grad:copy_(g) else p.grad = g end
  end
end

describe("an optimizer on a device", function()
  it("trains as on the CPU, with clipping, masters and bfloat16 state", function()
    for _, o in ipairs { {}, { master_weights = true }, { state_dtype = "bfloat16", betas = { 0.9, 0.95 } } } do
      local nets = {}
      for _, device in ipairs { "cpu", H.device } do
        local options = { lr = 0.01 }
        for k, v in pairs(o) do options[k] = v end
        local net, opt = model(device, options)
        for step = 1, 3 do
          give_gradients(net, step)
          net.norm = mc.optim.clip_grad_norm_(net, 0.5)
          opt:set_lr(0.01 / step)
          opt:step()
        end
        assert.equal(3, opt:state_dict().step)
        nets[#nets + 1] = { net = net, norm = mc.optim.clip_grad_norm_(net, math.huge) }
      end
      H.near(nets[2].norm:to("cpu"), nets[1].norm, 1e-5, "norm")
      local list = nets[2].net:parameters()
      for i, p in ipairs(nets[1].net:parameters()) do
        H.near(list[i]:detach():to("cpu"), p:detach(), helper.tolerance(p.dtype, 30), "parameter " .. i)
      end
    end
  end)
end)

describe("a step in a graph", function()
  if H.device ~= "cuda" then return end

  it("counts steps and follows set_lr at each replay, bit for bit as steps one by one", function()
    for _, o in ipairs { {}, { master_weights = true } } do
      local results = {}
      for _, graphed in ipairs { false, true } do
        local options = { lr = 0.01 }
        for k, v in pairs(o) do options[k] = v end
        local net, opt = model(H.device, options)
        local function train()
          mc.optim.clip_grad_norm_(net, 0.5)
          opt:step()
        end
        local graph
        for step = 1, 5 do
          give_gradients(net, step)
          opt:set_lr(0.01 / step)
          if step == 2 and graphed then graph = mc.cuda.graph(train) end
          if graph then graph:replay() else train() end
        end
        local sd = opt:state_dict()
        assert.equal(5, sd.step)
        results[#results + 1] = { net:parameters(), sd }
      end
      for i, p in ipairs(results[1][1]) do helper.same(results[2][1][i]:detach():to("cpu"), p:detach():to("cpu")) end
      for name, t in pairs(results[1][2]) do
        if mc.is_tensor(t) then helper.same(results[2][2][name]:to("cpu"), t:to("cpu"), name) end
      end
    end
  end)

  it("is refused where a replay would do more than a step", function()
    local net, opt = model(H.device, { lr = 0.01 })
    give_gradients(net, 1)
    local function step() opt:step() end
    helper.raises("AdamW: a graph is being recorded, and each of its replays would make the optimizer's state again; "
      .. "take a step before it is recorded", mc.cuda.graph, step)
    opt:step()
    helper.raises("AdamW: a graph is being recorded, and each of its replays would set the learning rate again; set it "
      .. "before a replay", mc.cuda.graph, function()
      opt:set_lr(1)
    end)
    local graph = mc.cuda.graph(step)
    graph:replay()
    assert.equal(2, opt:state_dict().step)
  end)

  it("takes the learning rate that a load has brought", function()
    local net, opt = model(H.device, { lr = 0.01 })
    give_gradients(net, 1)
    opt:step()
    local sd = opt:state_dict()
    sd["group1.lr"], sd["group0.lr"] = 0, 0
    local copy = {}
    for name, v in pairs(sd) do copy[name] = mc.is_tensor(v) and v:clone() or v end
    local graph = mc.cuda.graph(function() opt:step() end)
    opt:load_state_dict(copy)
    local before = net[1].bias:detach():to("cpu")
    graph:replay()
    helper.same(net[1].bias:detach():to("cpu"), before)
  end)
end)
