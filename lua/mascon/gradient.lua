--- A tensor's side of autograd: requires_grad, grad, backward, hooks.
local lib = require "mascon.lib"
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"

local C, raise = lib.C, args.raise
local T, getters, setters = tensor.methods, tensor.getters, tensor.setters
local want_tensor, dtype_code = tensor.want_tensor, tensor.dtype_code

local M = {} -- functions of mc.autograd

function getters.requires_grad(t) return t.rg end
function getters.is_leaf(t) return not t.node end

--- t:requires_grad_(flag): t takes part in gradients from now on (a leaf of a floating dtype). Returns t.
function T.requires_grad_(t, flag)
  want_tensor("requires_grad_", t)
  if flag == nil then flag = true end
  if type(flag) ~= "boolean" then raise("requires_grad_: wanted true or false, got " .. args.show(flag)) end
  if t.node then
    raise("requires_grad_: the tensor was computed from others; detach it first")
  end
  if flag and C.mc_tensor_dtype(t.h) > dtype_code.bfloat16 then
    raise(("requires_grad_: a tensor of %s has no gradient; wanted float64, float32, float16 or bfloat16")
      :format(t.dtype))
  end
  t.rg = flag
  return t
end
function setters.requires_grad(t, flag) T.requires_grad_(t, flag) end

function getters.grad(t)
  return rawget(t, "_grad")
end

--- t.grad = g or nil. g has t's shape, dtype and device.
function setters.grad(t, g)
  want_tensor("grad", t)
  if g ~= nil then
    want_tensor("grad", g)
    if not t:_same_shape(g) or g.dtype ~= t.dtype or g.device ~= t.device then
      raise(("grad: %s [%s] on %s for a tensor of %s [%s] on %s"):format(g.dtype, table.concat(g:shape(), ", "),
        g.device, t.dtype, table.concat(t:shape(), ", "), t.device))
    end
    g.kept = true
  end
  rawset(t, "_grad", g)
end

--- Adds g to t.grad; keeps g itself when backward made it just now and nothing else shares its memory.
function T._accumulate_grad(t, g, fresh)
  local had = rawget(t, "_grad")
  if had then
    had:add_(g)
    return
  end
  if g.dtype ~= t.dtype then
    g, fresh = g:to(t.dtype), true
  end
  if not fresh or C.mc_tensor_storage_refs(g.h) ~= 1 or C.mc_tensor_is_contiguous(g.h) == 0 then
    g = g:clone()
  end
  setters.grad(t, g)
end

--- Adds g to what autograd.collect found for t: into[t].
function T._collect_grad(t, g, into)
  into[t] = into[t] and into[t] + g or g
end
--- What was collected for t, or nil.
function T._collected(t, into) return into[t] end

function T.backward(t, grad, opts)
  want_tensor("backward", t)
  if grad ~= nil then want_tensor("backward", grad) end
  autograd.backward(t, grad, opts)
end

local grad_spec = { grad = { tensor.is_tensor, want = "a tensor" }, retain_graph = { "boolean", false } }

--- mc.autograd.grad(t, inputs, {grad =, retain_graph = false}): the gradients of t (of one element, or with `grad` to
-- start from) with respect to `inputs`, a leaf or a list of leaves that require one, as a list. Their grad fields stay
-- as they are. An input that t does not depend on gives nil.
function M.grad(t, inputs, opts)
  want_tensor("autograd.grad", t)
  local o = args.options("autograd.grad", opts, grad_spec)
  if tensor.is_tensor(inputs) then inputs = { inputs } end
  if type(inputs) ~= "table" then
    raise("autograd.grad: wanted a tensor or a list of tensors, got " .. args.show(inputs))
  end
  for i, x in ipairs(inputs) do
    want_tensor(("autograd.grad: input %d"):format(i), x)
    if x.node or not x.rg then
      raise(("autograd.grad: input %d is not a leaf that requires a gradient"):format(i))
    end
  end
  local into, out = autograd.collect(t, o), {}
  for i, x in ipairs(inputs) do out[i] = x:_collected(into) end
  return out
end

--- t:register_hook(fn): fn(g) sees, and may replace, the gradient of t when backward has all of it. Returns a handle:
-- handle:remove() takes the hook away.
function T.register_hook(t, fn)
  want_tensor("register_hook", t)
  if type(fn) ~= "function" then raise("register_hook: wanted a function, got " .. args.show(fn)) end
  if not t.rg then raise("register_hook: the tensor does not require a gradient") end
  local holder = t.node or t
  local hooks = rawget(holder, "hooks") or {}
  hooks[#hooks + 1] = fn
  rawset(holder, "hooks", hooks)
  local function remove()
    for i = #hooks, 1, -1 do
      if hooks[i] == fn then
        table.remove(hooks, i)
        break
      end
    end
    if #hooks == 0 then rawset(holder, "hooks", nil) end
  end
  return { remove = remove }
end

return M
