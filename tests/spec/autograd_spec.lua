local mc = require "mascon"

local function raises(text, fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok, "an error was expected")
  assert.is_truthy(tostring(err):find(text, 1, true), ("%q does not hold %q"):format(tostring(err), text))
end

-- Central differences of sum(fn(inputs) * weights) in float64 against backward, for every input.
local STEP, TOLERANCE = 1e-6, 1e-6
local function check_gradient(fn, ...)
  local inputs = { ... }
  for _, x in ipairs(inputs) do x:requires_grad_(true) end
  local out = fn(unpack(inputs))
  local weights = mc.rand(out:shape(), { dtype = "float64" })
  local function value() return (fn(unpack(inputs)):detach() * weights):sum():item() end
  out:backward(weights)
  for which, x in ipairs(inputs) do
    local flat, grad = x:detach():view(-1), x.grad:view(-1)
    for i = 1, x:numel() do
      local old = flat[i]:item()
      flat[i]:fill_(old + STEP)
      local up = value()
      flat[i]:fill_(old - STEP)
      local down = value()
      flat[i]:fill_(old)
      local want, got = (up - down) / (2 * STEP), grad[i]:item()
      assert.near(want, got, TOLERANCE * math.max(1, math.abs(want)), ("input %d element %d"):format(which, i))
    end
  end
end

local function f64(shape, low, high)
  return mc.rand(shape, { dtype = "float64" }) * (high - low) + low
end

describe("derivatives against central differences in float64", function()
  mc.manual_seed(11)
  local two = { "add", "sub", "mul", "div", "pow", "maximum", "minimum" }
  for _, name in ipairs(two) do
    it("of " .. name .. ", with broadcasting and numbers", function()
      check_gradient(mc[name], f64({ 2, 3 }, 0.5, 2), f64({ 2, 3 }, 0.5, 2))
      check_gradient(mc[name], f64({ 2, 3 }, 0.5, 2), f64({ 3 }, 0.5, 2))
      check_gradient(mc[name], f64({ 3, 1 }, 0.5, 2), f64({ 1, 2 }, 0.5, 2))
      check_gradient(function(a) return mc[name](a, 1.25) end, f64({ 4 }, 0.5, 2))
      check_gradient(function(a) return mc[name](1.25, a) end, f64({ 4 }, 0.5, 2))
    end)
  end
  for _, name in ipairs { "neg", "abs", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "relu", "gelu",
    "silu" } do
    it("of " .. name, function()
      check_gradient(mc[name], f64({ 5 }, 0.2, 2))
      if name ~= "log" and name ~= "sqrt" and name ~= "rsqrt" then
        check_gradient(mc[name], f64({ 5 }, -2, -0.2))
      end
    end)
  end
  it("of swiglu, clamp and where", function()
    check_gradient(mc.swiglu, f64({ 3, 8 }, -2, 2))
    check_gradient(function(a) return a:clamp(-0.5, 0.5) end, f64({ 9 }, -1, 1))
    local c = mc.tensor { { true, false, true }, { false, false, true } }
    check_gradient(function(a, b) return mc.where(c, a, b) end, f64({ 2, 3 }, -1, 1), f64({ 3 }, -1, 1))
  end)
  it("of sum, mean, amax, amin and prod over any axes", function()
    for _, name in ipairs { "sum", "mean", "amax", "amin", "prod" } do
      check_gradient(function(a) return a[name](a) end, f64({ 2, 3 }, 0.5, 2))
      check_gradient(function(a) return a[name](a, 1) end, f64({ 2, 3 }, 0.5, 2))
      check_gradient(function(a) return a[name](a, -1, true) end, f64({ 2, 3, 2 }, 0.5, 2))
      check_gradient(function(a) return a[name](a, { 1, 3 }) end, f64({ 2, 3, 2 }, 0.5, 2))
    end
  end)
  it("of max and min along an axis, which goes to the one position that they give", function()
    local x = mc.tensor({ { 2, 1, 2 }, { 0, 5, 1 } }, { requires_grad = true })
    local values, positions = x:max(2)
    assert.same({ 2, 5 }, values:totable())
    assert.same({ 0, 1 }, positions:totable())
    values:sum():backward()
    assert.same({ { 1, 0, 0 }, { 0, 1, 0 } }, x.grad:totable())
    values, positions = x:min(-2, true)
    assert.same({ { 0, 1, 1 } }, values:totable())
    assert.same({ { 1, 0, 1 } }, positions:totable())
    values, positions = mc.tensor({ { true, false } }):max(2)
    assert.same({ { true }, { 0 } }, { values:totable(), positions:totable() })
    values = mc.tensor({ { 1, 0 / 0, 2 } }):max(2)
    assert.is_true(values:isnan():item())
    raises("max: axis 3 of a tensor with 2 axes", x.max, x, 3)
  end)
  it("of pow at 0, where one factor of the formula is infinite", function()
    local function gradients(a, b)
      local x, y = mc.tensor(a, { requires_grad = true }), mc.tensor(b, { requires_grad = true })
      x:pow(y):sum():backward()
      return { x.grad:totable(), y.grad:totable() }
    end
    assert.same({ { 0, 0, 12 }, { 0, 0, 0 } }, gradients({ 0, 0, 0 + 1 }, { 0, 2, 12 }))
    local x = mc.tensor({ 0, 2 }, { requires_grad = true });
    (x ^ 0):sum():backward()
    assert.same({ 0, 0 }, x.grad:totable())
    x.grad = nil;
    (0 ^ x):sum():backward()
    assert.same({ 0, 0 }, x.grad:totable())
  end)
  it("of softmax, log_softmax, cumsum and topk", function()
    for axis = 1, 2 do
      check_gradient(function(a) return a:softmax(axis) end, f64({ 3, 4 }, -2, 2))
      check_gradient(function(a) return a:log_softmax(axis) end, f64({ 3, 4 }, -2, 2))
      check_gradient(function(a) return a:cumsum(axis) end, f64({ 3, 4 }, -2, 2))
    end
    check_gradient(function(a) return (a:topk(2)) end, f64({ 3, 5 }, -2, 2))
  end)
  it("of matmul: matrices, vectors, batches that broadcast, transposes", function()
    check_gradient(mc.matmul, f64({ 2, 3 }, -1, 1), f64({ 3, 4 }, -1, 1))
    check_gradient(mc.matmul, f64({ 3 }, -1, 1), f64({ 3 }, -1, 1))
    check_gradient(mc.matmul, f64({ 3 }, -1, 1), f64({ 3, 2 }, -1, 1))
    check_gradient(mc.matmul, f64({ 2, 3 }, -1, 1), f64({ 3 }, -1, 1))
    check_gradient(mc.matmul, f64({ 2, 1, 2, 3 }, -1, 1), f64({ 4, 3, 2 }, -1, 1))
    check_gradient(function(a, b) return mc.matmul(a:t(), b:t()) end, f64({ 3, 2 }, -1, 1), f64({ 4, 3 }, -1, 1))
  end)
  it("of views, copies and joins", function()
    local index = mc.tensor({ 2, 0, 2 }, { dtype = "int32" })
    check_gradient(function(a) return a:view(3, 2):t():reshape(6) end, f64({ 2, 3 }, -1, 1))
    check_gradient(function(a) return a:narrow(2, 2, 2) end, f64({ 2, 3 }, -1, 1))
    check_gradient(function(a) return a[2] * a[1] end, f64({ 2, 3 }, -1, 1))
    check_gradient(function(a) return a:expand(4, 2, 3) end, f64({ 2, 3 }, -1, 1))
    check_gradient(function(a) return a:permute(3, 1, 2):clone() end, f64({ 2, 3, 2 }, -1, 1))
    check_gradient(function(a, b) return mc.cat({ a, b, a }, 2) end, f64({ 2, 3 }, -1, 1), f64({ 2, 1 }, -1, 1))
    check_gradient(function(a, b) return mc.stack({ a, b }, 2) end, f64({ 3 }, -1, 1), f64({ 3 }, -1, 1))
    check_gradient(function(a) return a:index_select(1, index) end, f64({ 3, 2 }, -1, 1))
    check_gradient(function(a) return a:index_select(2, index) end, f64({ 2, 3 }, -1, 1))
    local positions = mc.tensor({ { 0, 1 }, { 1, 1 } }, { dtype = "int64" })
    check_gradient(function(a) return a:gather(2, positions) end, f64({ 2, 3 }, -1, 1))
  end)
  it("of in-place writes to tensors that are not leaves", function()
    check_gradient(function(a, b)
      local c = a * 2
      c:add_(b):mul_(b):sub_(a):div_(2)
      return c * a
    end, f64({ 2, 3 }, 0.5, 1), f64({ 3 }, 0.5, 1))
    check_gradient(function(a, b)
      local c = a * 1
      c:copy_(b)
      return c * a
    end, f64({ 2, 3 }, 0.5, 1), f64({ 3 }, 0.5, 1))
  end)
end)

describe("backward", function()
  it("sums over every use of a leaf and over calls", function()
    local x = mc.tensor({ 2, 3 }, { requires_grad = true });
    (x * x + x):sum():backward()
    assert.same({ 5, 7 }, x.grad:totable());
    (x * 1):sum():backward()
    assert.same({ 6, 8 }, x.grad:totable())
    x.grad = nil
    assert.is_nil(x.grad)
  end)

  it("does not share one gradient between leaves", function()
    local a, b = mc.zeros(2, { requires_grad = true }), mc.zeros(2, { requires_grad = true });
    (a + b):sum():backward()
    a.grad:mul_(5)
    assert.same({ 1, 1 }, b.grad:totable())
    local seed = mc.ones(2)
    a.grad = nil;
    (a * 1):backward(seed)
    a.grad:mul_(5)
    assert.same({ 1, 1 }, seed:totable())
  end)

  it("frees the graph as it goes; a second one raises unless the graph was retained", function()
    local x = mc.ones(2, { requires_grad = true })
    local y = (x * x):sum()
    y:backward(nil, { retain_graph = true })
    y:backward()
    assert.same({ 4, 4 }, x.grad:totable())
    raises("was freed by an earlier backward; use {retain_graph = true} there", y.backward, y)
  end)

  it("notices a saved tensor that was changed in place", function()
    local x = mc.ones(2, { requires_grad = true })
    local h = x * 2
    local y = (h * h):sum()
    mc.no_grad(function() h:add_(1) end)
    raises("backward: a tensor that mul needs was changed in place after the forward pass", y.backward, y)
    assert.is_nil(x.grad)
  end)

  it("refuses in-place writes to leaves that require a gradient, outside no_grad", function()
    local x = mc.ones(2, { requires_grad = true })
    raises("add_: the tensor is a leaf that requires a gradient; write to it inside mc.no_grad", x.add_, x, 1)
    mc.no_grad(function() x:add_(1) end)
    assert.same({ 2, 2 }, x:detach():totable())
  end)

  it("refuses in-place writes that a sharer of the memory would not see", function()
    local w = mc.ones(3, { requires_grad = true })
    local buffer = mc.zeros(2, 3)
    raises("copy_: the tensor is a view", function() buffer[1]:copy_(w * 2) end)
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, buffer:totable())
    raises("add_: the tensor is a view", function() buffer:narrow(1, 1, 1):add_(w) end)
    raises("add_: there are views of the tensor", function() buffer:add_(w) end)
    local y = w * 2
    raises("fill_: the tensor is a view", function() y:view(3, 1):zero_() end)
    local early = y:view(3, 1)
    y:mul_(3)
    raises("backward: view: mul_ wrote to the tensor that it is a view of", function() early:sum():backward() end)
    y = w * 2
    y:mul_(3)
    y:view(3, 1):sum():backward()
    assert.same({ 6, 6, 6 }, w.grad:totable())
    buffer[1]:copy_(mc.ones(3)) -- nothing flows: views may be written
    mc.no_grad(function() buffer[2]:copy_(w) end)
    assert.same({ { 1, 1, 1 }, { 1, 1, 1 } }, buffer:totable())
  end)
  it("does not flow through what a fill, normal_ or uniform_ has overwritten", function()
    for _, fill in ipairs { "zero_", "normal_", "uniform_" } do
      local w = mc.ones(3, { requires_grad = true })
      local y = w * 2
      y[fill](y)
      y:sum():backward()
      assert.is_nil(w.grad, fill)
    end
  end)
  it("wants a scalar or a gradient of the right shape and dtype", function()
    local x = mc.ones(2, { requires_grad = true })
    local y = x * 2
    raises("backward: wanted a tensor of one element, or a gradient to start from; got shape [2]", y.backward, y)
    raises(("backward: the gradient is float32 [3] on %s, the tensor float32 [2] on %s"):format(x.device, x.device),
      y.backward, y, mc.ones(3))
    raises("does not require a gradient", function() mc.ones(1):backward() end)
    raises("requires_grad_: a tensor of int32 has no gradient", mc.zeros, 2, { dtype = "int32", requires_grad = true })
  end)

  it("goes through 20,000 nodes without a deep stack", function()
    local x = mc.ones(1, { requires_grad = true })
    local y = x
    for _ = 1, 20000 do y = y + 1 end
    y:backward()
    assert.equal(1, x.grad:item())
  end)

  it("calls hooks on leaves and on what lies between", function()
    local x = mc.ones(2, { requires_grad = true })
    local seen
    x:register_hook(function(g) return g * 10 end)
    local h = x * 2
    h:register_hook(function(g) seen = g:totable() end)
    h:sum():backward()
    assert.same({ 1, 1 }, seen)
    assert.same({ 20, 20 }, x.grad:totable())
  end)

  it("calls a leaf's hooks once, with the whole gradient, until they are removed", function()
    local w, seen = mc.ones(2, { requires_grad = true }), {}
    local hook = w:register_hook(function(g)
      seen[#seen + 1] = g[1]:item()
      return g:clamp(-4, 4)
    end)
    local sum = w * 2 + w * 3
    sum:sum():backward()
    assert.same({ 5 }, seen)
    assert.same({ 4, 4 }, w.grad:totable())
    hook:remove()
    w:sum():backward()
    assert.same({ 5 }, seen)
    w:register_hook(function() return mc.ones(3) end)
    raises("a hook returned float32 [3], wanted nil or a tensor of float32 [2]", function() w:sum():backward() end)
    raises("register_hook: wanted a function, got 3", w.register_hook, w, 3)
  end)
  it("of a packed parameter reaches members: their hooks, and mc.autograd.grad", function()
    local gl = mc.nn.GroupedLinear { num_gemms = 2, in_features = 2, out_features = 2, bias = false }
    local x, calls = mc.ones(3, 2), 0
    local member = gl:expert(1).weight
    member:register_hook(function(g)
      calls = calls + 1
      return g * 10
    end)
    gl(x, { 1, 2 }):sum():backward()
    assert.equal(1, calls)
    assert.same({ { 1, 1 }, { 1, 1 } }, gl:expert(0).weight.grad:totable())
    assert.same({ { 20, 20 }, { 20, 20 } }, member.grad:totable())
    gl:zero_grad()
    local loss = gl(x, { 1, 2 }):sum() + (member * 3):sum() + (gl:expert(0).weight * 5):sum()
    local g = mc.autograd.grad(loss, { gl:expert(0).weight, member, gl.weight })
    assert.same({ { 6, 6 }, { 6, 6 } }, g[1]:totable())
    assert.same({ { 50, 50 }, { 50, 50 } }, g[2]:totable())
    assert.same({ { { 6, 6 }, { 6, 6 } }, { { 50, 50 }, { 50, 50 } } }, g[3]:totable())
  end)
  it("of mc.autograd.grad wants tensors", function()
    local w = mc.ones(2, { requires_grad = true })
    raises("autograd.grad: wanted a tensor, got nil", mc.autograd.grad, nil, w)
    raises("autograd.grad: wanted a tensor or a list of tensors, got 3", mc.autograd.grad, w:sum(), 3)
    raises("autograd.grad: input 1: wanted a tensor, got 3", mc.autograd.grad, w:sum(), { 3 })
  end)
  it("of mc.autograd.grad leaves grad fields alone", function()
    local x, z = mc.ones(2, { requires_grad = true }), mc.ones(1, { requires_grad = true })
    local g = mc.autograd.grad((x * 3):sum(), { x, z })
    assert.same({ 3, 3 }, g[1]:totable())
    assert.is_nil(g[2])
    assert.is_nil(x.grad)
  end)

  it("records nothing inside no_grad, also when it raises", function()
    local x = mc.ones(2, { requires_grad = true })
    assert.is_false(mc.no_grad(function() return x * 2 end).requires_grad)
    pcall(mc.no_grad, error, "x")
    assert.is_true((x * 2).requires_grad)
    assert.is_true((x * 2).is_leaf == false and x.is_leaf)
  end)

  it("records nothing inside no_grad, and as before while a generator waits in it", function()
    local w = mc.ones(1, { requires_grad = true })
    local inside
    local generator = coroutine.wrap(function()
      mc.no_grad(function()
        for i = 1, 2 do
          inside = (w * 2).requires_grad
          coroutine.yield(i)
        end
      end)
      return "end"
    end)
    for i = 1, 2 do
      assert.equal(i, generator())
      assert.is_false(inside)
      assert.is_true((w * 2).requires_grad)
    end
    assert.equal("end", generator())
    assert.is_true((w * 2).requires_grad)
    raises("no_grad: wanted a function, got nil", mc.no_grad)
  end)
  it("releases what the graph saved as soon as each node has run", function()
    mc.collect_garbage()
    local x = mc.ones(2 ^ 20, { requires_grad = true })
    local before, bytes = mc.memory_stats().live_bytes, 2 ^ 22
    local at_first
    local loss = mc.scope(function()
      local h = x:tanh()
      h:register_hook(function()
        mc.collect_garbage()
        at_first = mc.memory_stats().live_bytes
      end)
      for _ = 1, 20 do h = h:tanh() end
      return h:sum()
    end)
    assert.is_true(mc.memory_stats().live_bytes >= before + 20 * bytes)
    loss:backward()
    assert.is_true(at_first <= before + 5 * bytes, at_first - before)
    mc.collect_garbage()
    assert.is_true(mc.memory_stats().live_bytes <= before + bytes + 4096)
  end)
end)

describe("an op of one's own", function()
  local cube = mc.autograd.Function {
    forward = function(ctx, x, scale)
      ctx:save_for_backward(x)
      ctx.scale = scale
      return x * x * x * scale
    end,
    backward = function(ctx, g)
      local x = ctx:saved_tensors()
      return g * x * x * (3 * ctx.scale)
    end,
  }
  it("takes part in the tape", function()
    check_gradient(function(x) return cube(x * 2, 1.5) end, f64({ 3 }, -1, 1))
  end)
  it("that returns its gradient, or its argument, shares neither with anyone", function()
    local first_and_last = mc.autograd.Function {
      forward = function(_, a, _, _, b) return a + b end,
      backward = function(_, g) return g, nil, nil, g end,
    }
    local a, b, g = mc.ones(2, { requires_grad = true }), mc.ones(2, { requires_grad = true }), mc.ones(2)
    for _ = 1, 2 do first_and_last(a, 0, 0, b):backward(g) end
    assert.same({ 2, 2 }, a.grad:totable())
    assert.same({ 2, 2 }, b.grad:totable())
    assert.same({ 1, 1 }, g:totable())
    local first = mc.autograd.Function {
      forward = function(_, x) return x end,
      backward = function(_, d) return nil, d end,
    }
    local x = mc.ones(2)
    assert.is_true(first(x, a).requires_grad)
    assert.is_false(x.requires_grad)
  end)
  it("names what it returned wrongly", function()
    local function op(forward, backward) return mc.autograd.Function { forward = forward, backward = backward } end
    local function id(_, x) return x * 1 end
    local x = mc.ones(2, { requires_grad = true })
    raises("Function: forward returned nil, wanted one or more tensors", op(function() end, id), x)
    raises("save_for_backward: argument 1 is 3, wanted a tensor", op(function(ctx) ctx:save_for_backward(3) end, id), x)
    raises("Function: backward returned [3] for argument 1, wanted nil or a tensor [2]", function()
      op(id, function() return mc.ones(3) end)(x):sum():backward()
    end)
    raises("Function: backward returned 7 for argument 1", function()
      op(id, function() return 7 end)(x):sum():backward()
    end)
  end)
  it("with several outputs gets a zero gradient for an unused one", function()
    local split = mc.autograd.Function {
      forward = function(_, x) return x * 2, x * 3 end,
      backward = function(_, ga, gb) return ga * 2 + gb * 3 end,
    }
    local x = mc.ones(2, { requires_grad = true })
    local _, b = split(x)
    b:sum():backward()
    assert.same({ 3, 3 }, x.grad:totable())
  end)
end)
