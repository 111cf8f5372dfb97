--- Packed parameters: one tensor [G, ...] that holds all experts, under one name or under G.
--
-- The base is the one leaf: it has the memory, the gradient, the optimizer's state. Members are cached views
-- with a stable identity that forward grad and main_grad to slices of the base's. A layout is nothing
-- but the names under which a module registers that memory ("single": weight; "per_expert": weight0 ...), so
-- changing it moves no byte. The names of a layout come from here; which
-- file fits which layout is decided in checkpoint/plan.lua alone.
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local tensor = require "mascon.tensor"
local create = require "mascon.create"
require "mascon.gradient" -- whose fields are extended here

local C, check = lib.C, lib.check
local raise = args.raise
local T, getters, setters = tensor.methods, tensor.getters, tensor.setters

local M = {}

--- Makes `base` [count, ...] a packed parameter. info: count, role ("weight" or "bias"), layout ("single" or
-- "per_expert"), layer (the plain facts that files record: type, num_gemms, in_features, out_features).
function M.make(base, info)
  base._packed = { count = info.count, role = info.role, layout = info.layout }
  base._members = {}
  base.group = { base = base, count = info.count, role = info.role, layer = info.layer }
  return base
end

local function attach(member, base, i)
  check(C.mc_select(member.h, base.h, 0, i), base)
end

--- Member i (0-based) of a packed base: always the same tensor object.
function T.member(base, i)
  local packed = rawget(tensor.want_tensor("member", base), "_packed")
  if not packed then raise("member: the tensor is not a packed parameter") end
  args.integer("member: index", i, 0, packed.count - 1)
  local member = base._members[i]
  if not member then
    member = memory.new()
    attach(member, base, i)
    member.kept = true
    member.is_parameter = rawget(base, "is_parameter")
    member._base, member._index = base, i
    member.rg = base.rg and not (base._frozen and base._frozen[i]) or false
    member.group = { base = base, index = i, count = packed.count, role = packed.role, layer = base.group.layer }
    base._members[i] = member
  end
  return member
end

--- The names of a packed parameter in its present layout, in order: {name, tensor} pairs.
function M.named(name, base)
  local packed = base._packed
  if packed.layout == "single" then
    return { { name, base } }
  end
  local list = {}
  for i = 0, packed.count - 1 do
    list[i + 1] = { name .. i, T.member(base, i) }
  end
  return list
end

--- Registers the base under the other names. Raises when experts differ in what one name cannot express.
function M.set_layout(what, base, layout)
  local packed = base._packed
  if layout ~= "single" and layout ~= "per_expert" then
    raise(("%s: layout %s; wanted \"single\" or \"per_expert\""):format(what, args.show(layout)))
  end
  if layout == "single" then
    if base._frozen and next(base._frozen) then
      raise(("%s: experts differ in requires_grad; make them equal before they become one parameter"):format(what))
    elseif packed.split then
      raise(("%s: experts differ in %s; make them equal before they become one parameter"):format(what, packed.split))
    end
  end
  packed.layout = layout
end

-- -- a member's fields are slices of its base's ------------------------------------------------------

-- The slice of base[field] that belongs to a member; made once per buffer.
local function slice(member, field, buffer)
  local view_key, of_key = field .. "_view", field .. "_of"
  if rawget(member, of_key) ~= buffer or rawget(member, view_key).freed then
    local view = memory.new()
    check(C.mc_select(view.h, buffer.h, 0, member._index))
    view.kept = true
    rawset(member, view_key, view)
    rawset(member, of_key, buffer)
  end
  return rawget(member, view_key)
end

local function zeros_of(base)
  local buffer = create.zeros_like(base)
  buffer.kept = true
  return buffer
end

for _, name in ipairs { "grad", "main_grad" } do
  local field = "_" .. name
  local plain_set = setters[name]

  getters[name] = function(t)
    local base = rawget(t, "_base")
    if not base then return rawget(t, field) end
    local buffer = rawget(base, field)
    return buffer and slice(t, field, buffer)
  end

  setters[name] = function(t, g)
    local base = rawget(t, "_base")
    if not base then
      if plain_set then return plain_set(t, g) end
      if g ~= nil then g.kept = true end
      rawset(t, field, g)
      return
    end
    local buffer = rawget(base, field)
    if g == nil then
      if buffer then slice(t, field, buffer):zero_() end
      return
    end
    tensor.want_tensor(name, g)
    if not buffer then
      buffer = zeros_of(base)
      rawset(base, field, buffer)
    end
    slice(t, field, buffer):copy_(g)
  end
end

local accumulate_plain = T._accumulate_grad
function T._accumulate_grad(t, g, fresh)
  local base = rawget(t, "_base")
  if base then
    local buffer = rawget(base, "_grad")
    if not buffer then
      buffer = zeros_of(base)
      rawset(base, "_grad", buffer)
    end
    slice(t, "_grad", buffer):add_(g)
    return
  end
  accumulate_plain(t, g, fresh)
  local frozen = rawget(t, "_frozen")
  if frozen then
    for i in pairs(frozen) do t._grad:select(1, i + 1):zero_() end
  end
end

-- A member's part of what was collected is a slice of its base's, whichever of the two the graph used.
local collect_plain = T._collect_grad
function T._collect_grad(t, g, into)
  local base = rawget(t, "_base")
  if not base then return collect_plain(t, g, into) end
  local owned = into.owned or {}
  into.owned = owned
  if owned[base] == nil or owned[base] ~= into[base] then
    into[base] = into[base] and into[base]:clone() or create.zeros_like(base)
    owned[base] = into[base]
  end
  into[base]:select(1, t._index + 1):add_(g)
end
function T._collected(t, into)
  local base = rawget(t, "_base")
  if not base then return into[t] end
  return into[base] and into[base]:select(1, t._index + 1)
end

-- A member's hooks see its gradient when the member is used, and its slice when the base is.
local hook_plain = T.register_hook
function T.register_hook(t, fn)
  local own = hook_plain(t, fn)
  local base = rawget(t, "_base")
  if not base then return own end
  local of_base = hook_plain(base, function(g)
    local r = fn(g:select(1, t._index + 1))
    if r == nil then return nil end
    g = g:clone()
    g:select(1, t._index + 1):copy_(r)
    return g
  end)
  return { remove = function() own.remove() of_base.remove() end }
end

-- requires_grad is set on the base for all experts, or on one member, which the base then remembers as frozen.
local requires_plain = T.requires_grad_
function T.requires_grad_(t, flag)
  if flag == nil then flag = true end
  local base = tensor.is_tensor(t) and rawget(t, "_base")
  if base then
    if type(flag) ~= "boolean" then raise("requires_grad_: wanted true or false, got " .. args.show(flag)) end
    local frozen = rawget(base, "_frozen") or {}
    if not base.rg then
      for i = 0, base._packed.count - 1 do frozen[i] = true end
    end
    frozen[t._index] = not flag or nil
    local n = 0
    for _ in pairs(frozen) do n = n + 1 end
    rawset(base, "_frozen", n > 0 and n < base._packed.count and frozen or nil)
    requires_plain(base, n < base._packed.count)
    requires_plain(t, flag)
    return t
  end
  requires_plain(t, flag)
  if rawget(t, "_packed") then
    rawset(t, "_frozen", nil)
    for _, member in pairs(t._members) do member.rg = flag end
  end
  return t
end

local free_plain = T.free
function T.free(t)
  if tensor.is_tensor(t) and rawget(t, "_base") then
    raise("free: the tensor is a member of a packed parameter, whose memory is the base's")
  end
  free_plain(t)
end

-- New memory in the same objects: members follow their base.
local adopt_plain = T._adopt
function T._adopt(t, other)
  if rawget(t, "_base") then
    raise("adopt: a member is a view of its packed parameter and cannot take over other memory")
  end
  adopt_plain(t, other)
  if rawget(t, "_packed") then
    for i, member in pairs(t._members) do
      C.mc_tensor_release(member.h)
      attach(member, t, i)
    end
  end
end

return M
