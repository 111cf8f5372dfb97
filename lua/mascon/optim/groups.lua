--- Which parameters an optimizer works on, and with which options.
--
-- A packed parameter counts as its members here: they may fall into different groups, by name or by list. An entry of
-- the result is one base (or plain parameter), with one group when all of it is in that group, else one per member.
local args = require "mascon.args"
local module = require "mascon.nn.module"
local tensor = require "mascon.tensor"

local raise, show = args.raise, args.show
local is_tensor = tensor.is_tensor

local M = {}

local function role_of(t)
  local group = rawget(t, "group")
  return group and group.role or "weight"
end

-- All of a packed base, or a plain parameter, as units {base, index or nil, name, names = those a pattern may meet}.
local function add_units(units, base, name)
  local packed = rawget(base, "_packed")
  if not packed then
    units[#units + 1] = { base = base, name = name, names = { name } }
    return
  end
  for i = 0, packed.count - 1 do
    -- the single name counts in both layouts, so that a pattern such as "%.bias$" does not depend on the layout
    local names = packed.layout == "per_expert" and { name, name .. i } or { name }
    units[#units + 1] = { base = base, index = i, name = name, names = names }
  end
end

local function units_of_module(m)
  local units, seen = {}, {}
  for _, slot in ipairs(m:slots()) do
    if slot.kind == "parameter" and not seen[slot.tensor] then
      seen[slot.tensor] = true
      add_units(units, slot.tensor, slot.name)
    end
  end
  return units
end

local function units_of_list(what, list, known)
  local units = {}
  for i, t in ipairs(list) do
    if not is_tensor(t) then
      raise(("%s: params[%d] is %s, wanted a parameter"):format(what, i, show(t)))
    end
    tensor.want_tensor(what, t)
    if t.node then
      raise(("%s: params[%d] was computed from other tensors, wanted a leaf"):format(what, i))
    end
    local base = rawget(t, "_base") or t
    local name = known[base]
    if not name then
      known.n = (known.n or 0) + 1
      name = ("param%d.%s"):format(known.n - 1, role_of(base))
      known[base] = name
    end
    if base ~= t then
      units[#units + 1] = { base = base, index = t._index, name = name, names = { name } }
    else
      add_units(units, base, name)
    end
  end
  return units
end

local function units_of(what, params, known)
  if module.is_module(params) then return units_of_module(params) end
  if is_tensor(params) then params = { params } end
  if type(params) ~= "table" or #params == 0 then
    raise(("%s: params is %s, wanted a module, a list of parameters, or a list of groups"):format(what,
      type(params) == "table" and "an empty table" or show(params)))
  end
  return units_of_list(what, params, known)
end

local function fits(unit, group)
  if group.roles then
    local found = false
    for _, role in ipairs(group.roles) do found = found or role == role_of(unit.base) end
    if not found then return false end
  end
  if not group.match then return true end
  for _, name in ipairs(unit.names) do
    if name:find(group.match) then return true end
  end
  return false
end

local function is_group_list(params)
  local first = type(params) == "table" and not is_tensor(params) and not module.is_module(params) and params[1]
  return type(first) == "table" and not is_tensor(first) and not module.is_module(first)
end

--- The groups as given: one for a module or list.
function M.list(params)
  return is_group_list(params) and params or { { params = params } }
end

-- Turns {base -> {order, by member}} into entries; raises for a split of a single-layout parameter.
local function entry_of(what, base, taken)
  local packed = rawget(base, "_packed")
  if not packed then return { name = taken.name, param = base, group = taken.by[0] } end
  local first, whole = taken.by[0], true
  for i = 1, packed.count - 1 do whole = whole and taken.by[i] == first end
  if whole and first then
    packed.split = nil
    return { name = taken.name, param = base, group = first }
  end
  if packed.layout == "single" then
    raise(("%s: the experts of %s are in different parameter groups, but they are one parameter; use the per_expert "
      .. "layout"):format(what, taken.name))
  end
  packed.split = "parameter groups"
  return { name = taken.name, param = base, member_groups = taken.by }
end

--- Sorts parameters into groups: each goes to the first group that takes it.
-- @tparam string what the optimizer's name, for errors
-- @tparam {table,...} groups each with params (module or list), and optionally match (a Lua pattern on names) and roles
--   (a list)
-- @treturn {table,...} entries in registration order: {name, param, group = number} or {name, param, member_groups =
--   {[0] = number or nil, ...}}
function M.sort(what, groups)
  local order, taken, known = {}, {}, {}
  for g, group in ipairs(groups) do
    if group.match and not pcall(string.find, "", group.match) then
      raise(("%s: group %d: match = %q is no Lua pattern"):format(what, g, group.match))
    end
    local n = 0
    for _, unit in ipairs(units_of(what, group.params, known)) do
      local key = unit.index or 0
      local had = taken[unit.base]
      if not (had and had.by[key]) and fits(unit, group) then
        if not had then
          had = { name = unit.name, by = {} }
          taken[unit.base] = had
          order[#order + 1] = unit.base
        end
        had.by[key] = g
        n = n + 1
      end
    end
    if n == 0 then
      raise(("%s: group %d takes no parameter%s; each goes to the first group that fits"):format(what, g,
        group.match and (": match = %q"):format(group.match) or ""))
    end
  end
  local entries = {}
  for i, base in ipairs(order) do entries[i] = entry_of(what, base, taken[base]) end
  return entries
end

-- Adds {base} or, when not all of its members are in `members`, {base, index} for each of those.
local function add_owners(list, base, members)
  local packed = rawget(base, "_packed")
  local all = true
  for i = 0, packed and packed.count - 1 or -1 do all = all and members[i] ~= nil end
  if all then
    list[#list + 1] = { base }
    return
  end
  for i = 0, packed.count - 1 do
    if members[i] then list[#list + 1] = { base, i } end
  end
end

--- What an optimizer's entries own: {base, index or nil}, a packed base whole when all its members are in some group.
function M.owned(entries)
  local list = {}
  for _, entry in ipairs(entries) do
    if entry.group then list[#list + 1] = { entry.param } else add_owners(list, entry.param, entry.member_groups) end
  end
  return list
end

--- The tensors of a module, list of parameters, or optimizer that own gradients: {base, index or nil} in registration
-- order, a packed base whole unless only some of its members are listed.
function M.owners(what, params)
  if type(params) == "table" and rawget(params, "entries") then return M.owned(params.entries) end
  local order, members = {}, {}
  for _, unit in ipairs(units_of(what, params, {})) do
    local base = unit.base
    if not members[base] then
      members[base] = {}
      order[#order + 1] = base
    end
    members[base][unit.index or 0] = true
  end
  local list = {}
  for _, base in ipairs(order) do add_owners(list, base, members[base]) end
  return list
end

--- The gradient of a base: main_grad where weight gradients are fused into it, else grad; nil when there is none.
function M.gradient(t)
  local main = t.main_grad
  if main and rawget(t, "grad_added_to_main_grad") then return main end
  return t.grad
end

return M
