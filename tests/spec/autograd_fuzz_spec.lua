-- Backward frees gradients as early as it can: on random graphs of ops, views, in-place writes, users' functions and
-- hooks, that must not show, neither in the leaves' gradients nor in what hooks have kept.
local helper = require "helper"
local mc = require "mascon"

local GRAPHS = 200 -- each built five times

local Function = mc.autograd.Function
local own = {
  scaled = Function {
    forward = function(_, x) return x * 3 end, backward = function(_, g) return g * 3 end,
  },
  same = Function {
    forward = function(_, x, y) return x + y end, backward = function(_, g) return g, g end,
  },
  two = Function {
    forward = function(_, x, y) return x + y, x - y end, backward = function(_, a, b) return a + b, a - b end,
  },
  turned = Function {
    forward = function(_, x) return x:transpose(1, 2) end, backward = function(_, g) return g:transpose(1, 2) end,
  },
  sine = Function {
    forward = function(ctx, x)
      ctx:save_for_backward(x:cos())
      return x:sin()
    end,
    backward = function(ctx, g) return g * ctx:saved_tensors() end,
  },
  saved = Function { -- the gradient is the very tensor that was saved
    forward = function(ctx, x)
      ctx:save_for_backward(x)
      return x * x * 0.5
    end,
    backward = function(ctx) return (ctx:saved_tensors()) end,
  },
}

-- Lehmer's generator; whole numbers from 1 to n.
local function generator(seed)
  local s = seed
  return function(n)
    s = s * 16807 % 2147483647
    return s % n + 1
  end
end

local ops = {
  function(a, b) return a + b end, function(a, b) return a * b end, function(a, b) return a - b end,
  function(a) return a + a end, function(a) return -a end, function(a) return a:clone() end,
  function(a) return a:tanh() end, function(a) return a:softmax(-1) end, function(a, b) return a:maximum(b) end,
  function(a, b) return a:matmul(b) end, function(a) return a:transpose(1, 2) end,
  function(a) return a:reshape(2, 8):reshape(4, 4) end, function(a) return a:sum(1, true):expand(4, 4) end,
  function(a, b) return mc.cat({ a:narrow(1, 1, 2), b:narrow(1, 3, 2) }, 1) end,
  function(a, b) return mc.where(a:gt(b), a, b) end,
  function(a) local p, q = mc.nn.functional.split(a, { 1, 3 }, 2) return mc.cat({ q, p }, 2) end,
  function(a) local _, q = mc.nn.functional.split(a, { 1, 3 }, 2) return q:sum(2, true) * a end,
  function(a, b) return (a * 1):add_(b) end, function(a) return (a + 0):mul_(0.5) end,
  function(a, b) return (a * 2):copy_(a * b) end,
  function(a, _, leaves) return a + leaves.row end, function(a, _, leaves) return leaves.layer(a, { 2, 2 }) end,
  function(a, _, leaves) return a:matmul(leaves.layer:expert(1).weight) end,
  function(a) return own.scaled(a) end, function(a, b) return own.same(a, b) end,
  function(a, b) return own.two(a, b) end,
  function(a) return own.turned(a) end, function(a) return own.sine(a) end, function(a) return own.saved(a) end,
}

-- A random loss, its leaves, and the list that its hooks fill with {what they have kept, a copy of it}.
local function build(seed, every)
  local random, kept, pool = generator(seed * 7919 + 1), {}, {}
  for _ = 1, 5 do random(3) end
  mc.manual_seed(seed)
  local layer = mc.nn.GroupedLinear { num_gemms = 2, in_features = 4, out_features = 4 }
  local row = mc.randn(4):requires_grad_()
  local leaves = { layer.weight, layer.bias, row, layer = layer, row = row }
  local function keep(g) kept[#kept + 1] = { g, g:clone() } end
  local hooks = {
    function(g) keep(g) end,
    function(g) keep(g:reshape(-1)) end,
    function(g) local r = g * 2 keep(r) return r end,
  }
  local function hook(t)
    local fn = hooks[random(12)]
    if fn and t.rg then t:register_hook(fn) end
    if every and t.node then t:register_hook(function() end) end
  end
  for i = 1, 3 do
    pool[i] = mc.randn(4, 4):requires_grad_()
    leaves[3 + i] = pool[i]
  end
  for i = 1, #leaves do hook(leaves[i]) end
  for _ = 1, 4 + random(14) do
    for _, out in ipairs { ops[random(#ops)](pool[random(#pool)], pool[random(#pool)], leaves) } do
      local y = out * 0.5
      hook(y)
      pool[#pool + 1] = y
    end
  end
  local loss = pool[#pool] * 1
  for _ = 1, 3 do loss = loss + pool[random(#pool)] end
  return loss:sum(), leaves, kept
end

-- The leaves' gradients by each way to get them.
local ways = {
  { "plain", function(loss) loss:backward() end },
  { "retained", function(loss) loss:backward(nil, { retain_graph = true }) end },
  { "twice", function(loss, leaves)
    loss:backward(nil, { retain_graph = true })
    for i = 1, #leaves do leaves[i].grad = nil end
    loss:backward()
  end },
  { "all seen by hooks", function(loss) loss:backward() end, true }, -- what a hook has seen is never freed early
  { "autograd.grad", function(loss, leaves) return mc.autograd.grad(loss, leaves) end },
}

describe("backward", function()
  it("gives the same bits on random graphs, freeing early or not, and spares what hooks have kept", function()
    for seed = 1, GRAPHS do
      local want
      for _, way in ipairs(ways) do
        local loss, leaves, kept = build(seed, way[3])
        local list = {}
        for i = 1, #leaves do list[i] = leaves[i] end
        local found = way[2](loss, list)
        for i = 1, #list do
          if found then list[i] = found[i] or false else list[i] = list[i].grad or false end
        end
        for i = 1, 30 do kept[#kept + 1] = { mc.full({ 4, 4 }, i), mc.full({ 4, 4 }, i) } end -- takes what was freed
        local what = ("graph %d, %s"):format(seed, way[1])
        for i = 1, #kept do helper.same(kept[i][1], kept[i][2], what .. ", kept by a hook") end
        want = want or list
        for i = 1, #list do
          assert.equal(not want[i], not list[i], what)
          if want[i] then helper.same(list[i], want[i], ("%s, leaf %d"):format(what, i)) end
        end
      end
    end
  end)

  it("takes a tensor that a function has saved as its gradient", function()
    for _, of in ipairs { function(x) return x end, function(x) return x * 1 end } do
      local x = mc.randn(3):requires_grad_()
      own.saved(of(x)):backward(mc.ones(3))
      helper.same(x.grad, x)
      helper.same(mc.autograd.grad(own.saved(of(x)), x, { grad = mc.ones(3) })[1], x)
    end
  end)
end)
