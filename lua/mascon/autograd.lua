--- The tape: reverse-mode differentiation as plain data.
--
-- An op is a table {name =, backward = fn(node, g) -> gradients of its inputs in order}; a node is a table
-- {edge1, edge2, ..., op =, seq =, and what the op keeps}. An edge is the node that made an input, or
-- the input itself when it is a leaf, or false when it needs no gradient. Saved tensors are private
-- handles (`M.save`) with the storage's version, so a node can free them the moment it has run, and a
-- later in-place write is noticed. Each node runs once, newest first; gradients are summed in that order.
local lib = require "mascon.lib"
local args = require "mascon.args"
local extent = require "mascon.extent"
local memory = require "mascon.memory"

local C, check = lib.C, lib.check
local raise = args.raise
local new, free, is_tensor = memory.new, memory.free, memory.is_tensor

local M = {}

-- Recording is on unless mc.no_grad runs. A table, so that every file sees the same switch.
local state = { on = true }
M.state = state

local COLLECT_MIN = 64 * 2 ^ 20 -- live bytes above which backward first collects dead intermediates
local stats = C.mc_memory_stats()

local seq = 0

--- The edge of an input.
function M.edge(t)
  return t.node or (t.rg and t)
end
local edge = M.edge

--- Makes `out` the result of a node with the given edges' inputs; returns the node, on which the op keeps what it needs
-- under names of its own (taken: op, seq, n, many, grads, g, saved, hooks, done, rewritten). op.view: the result
-- shares its first input's memory.
function M.record(out, op, a, b, c)
  seq = seq + 1
  local node = { a and edge(a) or false, b and edge(b) or false, c and edge(c) or false, op = op, seq = seq }
  out.node = node
  out.rg = true
  return node
end

-- A port is the node of one output of a many-output node; it hands its gradient to the parent.
local PORT = { name = "port" }

--- Makes `outs` (a list, false for outputs without gradient) the results of one node with these inputs.
function M.record_many(outs, op, inputs)
  seq = seq + 1
  local node = { op = op, seq = seq, many = true, grads = {} }
  for i = 1, #inputs do
    node[i] = inputs[i] and edge(inputs[i]) or false
  end
  node.n = #inputs
  for i = 1, #outs do
    local out = outs[i]
    if out then
      seq = seq + 1
      out.node = { node, op = PORT, seq = seq, index = i }
      out.rg = true
    end
  end
  return node
end

--- What a node keeps of a tensor to make zeros like it later, without its memory: see M.zeros_of.
function M.like(t)
  return { shape = t:shape(), dtype = t.dtype, device = t.device }
end

--- A private handle on `t` for a node to keep; `node` remembers it and its version.
function M.save(node, t)
  local alias = new()
  check(C.mc_alias(alias.h, t.h), t)
  local saved = node.saved
  if not saved then
    saved = {}
    node.saved = saved
  end
  saved[#saved + 1] = alias
  alias.version_saved = C.mc_tensor_version(t.h)
  return alias
end

local function check_saved(node)
  local saved = node.saved
  for i = 1, saved and #saved or 0 do
    local t = saved[i]
    if t.freed then
      raise(("backward: a tensor that %s needs was freed by %s"):format(node.op.name, t.freed))
    end
    if C.mc_tensor_version(t.h) ~= t.version_saved then
      raise(("backward: a tensor that %s needs was changed in place after the forward pass (version %d, saved at "
        .. "%d); clone it before the change"):format(node.op.name, tonumber(C.mc_tensor_version(t.h)),
        tonumber(t.version_saved)))
    end
  end
end

local function release(node)
  local saved = node.saved
  for i = 1, saved and #saved or 0 do
    free(saved[i], "backward")
  end
  node.saved = nil
  node.done = true
  for i = 1, node.n or 3 do
    node[i] = false
  end
end

local function is_node(e)
  return e.op ~= nil
end

-- Nodes reachable from `root`, newest first.
local function by_age(a, b)
  return a.seq > b.seq
end

local function reachable(root)
  local list, n, seen, stack, top = {}, 0, { [root] = true }, { root }, 1
  while top > 0 do
    local node = stack[top]
    top = top - 1
    n = n + 1
    list[n] = node
    if node.done then
      raise(("backward: the graph behind %s was freed by an earlier backward; use {retain_graph = true} there")
        :format(node.op.name))
    end
    for i = 1, node.n or 3 do
      local e = node[i]
      if e and is_node(e) and not seen[e] then
        seen[e] = true
        top = top + 1
        stack[top] = e
      end
    end
  end
  table.sort(list, by_age)
  return list, n
end

--- Adds g to what arrived before; `owned` sums belong to this pass and are added to in place.
local function accumulate(holder, field, flag, g)
  local had = holder[field]
  if not had then
    holder[field] = g
    holder[flag] = false
  elseif holder[flag] then
    had:add_(g)
  else
    holder[field] = had + g
    holder[flag] = true
  end
end

-- What hooks make of g: each sees it, and may return another of its shape and dtype.
local function hooked(hooks, g)
  for i = 1, hooks and #hooks or 0 do
    local r = hooks[i](g)
    if r ~= nil and r ~= g then
      if not is_tensor(r) or r.dtype ~= g.dtype or not r:_same_shape(g) then
        raise(("backward: a hook returned %s, wanted nil or a tensor of %s [%s]"):format(
          is_tensor(r) and ("%s [%s]"):format(r.dtype, table.concat(r:shape(), ", ")) or args.show(r), g.dtype,
          table.concat(g:shape(), ", ")))
      end
      g = r
    end
  end
  return g
end

-- Where gradients of leaves go: into t.grad, or into a table for mc.autograd.grad. A `fresh` one may be kept as it is.
local function deliver(leaf, g, into, fresh)
  local hooks = rawget(leaf, "hooks")
  if hooks then
    g, fresh = hooked(hooks, g), false
  end
  if into then
    leaf:_collect_grad(g, into)
  else
    leaf:_accumulate_grad(g, fresh)
  end
end
--- deliver(leaf, g): hooks, then leaf.grad; for gradients that are computed after backward.
M.deliver = deliver

-- Leaves with hooks wait in `held` until all of their gradient is there, so that hooks see it whole and once.
local function arrive(leaf, g, into, fresh, held)
  if not rawget(leaf, "hooks") then return deliver(leaf, g, into, fresh) end
  local had = held[leaf]
  if not had then held[#held + 1] = leaf end
  held[leaf] = had and had + g or g
end

-- A gradient that an op of the library has made is the tape's alone until a leaf, a hook or a function of the user's
-- gets it; its bytes go back when the last node that it reached has run. Waiting for the collector instead would hold
-- a gradient for every result of the forward pass. `reached` counts the nodes that a tensor waits at, `shared` holds
-- those that others may have seen.
local function hold(pass, g)
  pass.reached[g] = (pass.reached[g] or 0) + 1
end

local function drop(pass, g)
  local n = pass.reached[g]
  if n == nil or n > 1 then
    if n then pass.reached[g] = n - 1 end
    return
  end
  pass.reached[g] = nil
  if not pass.shared[g] and not g.kept then free(g, "backward") end
end

local function share(pass, g)
  pass.shared[g] = true
end

-- Hands one result of a node's backward to the edge `e`.
local function pass_on(pass, e, r, fresh)
  if is_node(e) then
    local had = e.g
    accumulate(e, "g", "g_owned", r)
    if e.g ~= had then
      hold(pass, e.g)
      if had then drop(pass, had) end
    end
    return
  end
  if pass.into or rawget(e, "hooks") then share(pass, r) end
  arrive(e, r, pass.into, fresh, pass.held)
  if rawget(e, "_grad") == r then share(pass, r) end
end

local function run_node(pass, node, g)
  local op = node.op
  local rewritten = op.view and node[1] and node[1].rewritten
  if rewritten then
    raise(("backward: %s: %s wrote to the tensor that it is a view of, and the view does not know; take the view "
      .. "after the write, or use the out-of-place form"):format(op.name, rewritten))
  end
  if op == PORT then
    local grads, had = node[1].grads, node[1].grads[node.index]
    accumulate(grads, node.index, -node.index, g)
    if grads[node.index] ~= had then
      hold(pass, grads[node.index])
      if had then drop(pass, had) end
    end
    return
  end
  if node.fn then -- a user's function may keep what it sees
    for i = 1, node.n_out do
      if g[i] then share(pass, g[i]) end
    end
  end
  local results = { op.backward(node, g) }
  local count = node.n or 3
  for k = 1, count do
    local e, r = node[k], results[k]
    if r and node.fn then share(pass, r) end
    if e and r then
      -- fresh: this call made it, and no one else holds it (nodes of many inputs, often users', may share)
      pass_on(pass, e, r, not node.n and r ~= g and r ~= results[k - 1] and r ~= results[k - 2])
    end
  end
  for k = 1, count do -- what no node waits with and no leaf has taken
    local r = results[k]
    if r and r ~= g and not pass.reached[r] and not pass.shared[r] and not r.kept then free(r, "backward") end
  end
end

local function run(list, n, retain, into)
  local pass = { into = into, held = {}, reached = {}, shared = {} }
  share(pass, list[1].g or list[1].grads) -- the caller's
  for i = 1, n do
    local node = list[i]
    local g = node.g
    if node.many then
      g = next(node.grads) and node.grads
    end
    if g then
      check_saved(node)
      if node.hooks then
        share(pass, g)
        g = hooked(node.hooks, g)
        share(pass, g)
      end
      run_node(pass, node, g)
      if not node.many then
        drop(pass, g)
      else
        for key, each in pairs(g) do
          if is_tensor(each) and key == math.abs(key) then drop(pass, each) end
        end
      end
    end
    node.g, node.g_owned = nil, nil
    if node.many then node.grads = {} end
    if not retain then
      release(node)
    end
    list[i] = false
  end
  local held = pass.held
  for i = 1, #held do deliver(held[i], held[held[i]], into) end
end

local function start(t, grad)
  if grad == nil then
    if t:numel() ~= 1 then
      raise(("backward: wanted a tensor of one element, or a gradient to start from; got shape [%s]")
        :format(table.concat(t:shape(), ", ")))
    end
    return t:new_full(1)
  end
  if not t:_same_shape(grad) or grad.dtype ~= t.dtype or grad.device ~= t.device then
    raise(("backward: the gradient is %s [%s] on %s, the tensor %s [%s] on %s"):format(grad.dtype,
      table.concat(grad:shape(), ", "), grad.device, t.dtype, table.concat(t:shape(), ", "), t.device))
  end
  return grad
end

local function clear(list, n)
  for i = 1, n do
    local node = list[i]
    if node then
      node.g, node.g_owned = nil, nil
      if node.many then node.grads = {} end
    end
  end
end

local function no_grad(fn, ...)
  local was = state.on
  state.on = false
  local function leave(ok, ...)
    state.on = was
    if not ok then error((...), 0) end
    return ...
  end
  return leave(pcall(fn, ...))
end

--- Runs fn(...) without recording and returns its results; for functions of the library, which do not yield.
M.no_grad = no_grad

--- The same for users' functions.
function M.public_no_grad(fn, ...)
  args.callable("no_grad", fn)
  local was
  local function enter() was, state.on = state.on, false end
  local function exit() state.on = was end
  local function results(ok, ...)
    if not ok then error((...), 0) end
    return ...
  end
  return results(extent.run(enter, exit, fn, ...))
end

local function backward(t, grad, retain, into)
  if not t.rg then
    raise("backward: the tensor does not require a gradient: nothing that made it does")
  end
  grad = start(t, grad)
  if not t.node then
    deliver(t, grad, into)
    return
  end
  if tonumber(stats.live_bytes) > COLLECT_MIN then
    memory.collect()
  end
  local list, n = reachable(t.node)
  t.node.g, t.node.g_owned = grad, false
  local ok, err = pcall(run, list, n, retain, into)
  if not ok then
    clear(list, n)
    error(err, 0)
  end
end

--- t:backward(grad, {retain_graph = false}): adds d(t)/d(leaf) to the grad of every leaf that requires one.
-- grad: of t's shape and dtype; may be absent when t has one element. Frees the graph as it goes.
function M.backward(t, grad, opts)
  opts = args.options("backward", opts, { retain_graph = { "boolean", false } })
  no_grad(backward, t, grad, opts.retain_graph, nil)
end

--- The gradients of `t` with respect to leaves, as backward finds them, collected in a table (see _collect_grad).
function M.collect(t, opts)
  local into = {}
  no_grad(backward, t, opts.grad, opts.retain_graph, into)
  return into
end

-- -- ops of one's own --------------------------------------------------------------------------------

local Context = {}
Context.__index = Context

--- Keeps tensors for backward; get them with ctx:saved_tensors().
function Context:save_for_backward(...)
  for i = 1, select("#", ...) do
    local t = select(i, ...)
    if not is_tensor(t) then
      raise(("save_for_backward: argument %d is %s, wanted a tensor; ctx keeps plain values as fields"):format(i,
        args.show(t)))
    end
  end
  self.to_save = { n = select("#", ...), ... }
end

function Context:saved_tensors()
  return unpack(self.saved or {}, 1, #(self.saved or {}))
end

local function custom_backward(node, grads)
  local ctx = node.ctx
  ctx.saved = node.saved
  local g = {}
  for i = 1, node.n_out do
    g[i] = grads[i] or M.zeros_of(node.shapes[i])
  end
  local results = { node.fn.backward(ctx, unpack(g, 1, node.n_out)) }
  for _, saved in ipairs(node.saved or {}) do -- which the node frees when this returns
    for i = 1, node.n do
      if results[i] == saved then results[i] = saved:detach() end
    end
  end
  for i, want in pairs(node.wants) do
    local r = results[i]
    if r ~= nil and not (is_tensor(r) and table.concat(r:shape(), ", ") == want) then
      raise(("%s: backward returned %s for argument %d, wanted nil or a tensor [%s]"):format(node.op.name,
        is_tensor(r) and ("[%s]"):format(table.concat(r:shape(), ", ")) or args.show(r), i, want))
    end
  end
  return unpack(results, 1, node.n)
end

--- An op of the user's own: mc.autograd.Function{forward = fn(ctx, ...), backward = fn(ctx, g1, ...)}.
-- forward runs without recording and returns tensors; backward gets one gradient per output and returns one
-- gradient (or nil) per argument of forward. ctx keeps plain fields; tensors with ctx:save_for_backward.
function M.Function(spec)
  spec = args.options("autograd.Function", spec, {
    forward = { "function", required = true }, backward = { "function", required = true },
    name = { "string", "Function" },
  })
  local op = { name = spec.name, backward = custom_backward }
  return function(...)
    local n_in = select("#", ...)
    local inputs, wants, needs = { ... }, {}, false
    for i = 1, n_in do
      local x = inputs[i]
      if is_tensor(x) and x.rg then
        needs, wants[i] = true, table.concat(x:shape(), ", ")
      else
        inputs[i] = false
      end
    end
    local ctx = setmetatable({}, Context)
    local outs = { no_grad(spec.forward, ctx, ...) }
    for i = 1, math.max(#outs, 1) do
      if not is_tensor(outs[i]) then
        raise(("%s: forward returned %s, wanted one or more tensors"):format(op.name, args.show(outs[i])))
      end
    end
    if state.on and needs then
      for i, out in ipairs(outs) do outs[i] = out:detach() end -- it may be an argument, or anybody's
      local node = M.record_many(outs, op, inputs)
      node.ctx, node.fn, node.n_out, node.shapes, node.wants = ctx, spec, #outs, {}, wants
      for i, out in ipairs(outs) do
        node.shapes[i] = M.like(out)
      end
      for i = 1, ctx.to_save and ctx.to_save.n or 0 do
        M.save(node, ctx.to_save[i])
      end
      ctx.to_save = nil
    end
    return unpack(outs)
  end
end

return M
