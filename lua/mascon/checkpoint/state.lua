--- State dicts: a module's slots as a table of names, and a table of names back into the slots.
--
-- A slot is {name, tensor, kind = "parameter" | "buffer" | "state", packed = {count, role, layout} | nil, optional,
-- after = fn(whether it was loaded) | nil} as Module:slots() and Optimizer:slots() list them; a packed slot's name is
-- that of the single layout. Which entry goes where is plan.lua's, the copying execute.lua's; this file stands
-- between them and Lua tables.
local args = require "mascon.args"
local execute = require "mascon.checkpoint.execute"
local experts = require "mascon.checkpoint.plan_experts"
local lazy = require "mascon.checkpoint.lazy"
local lib = require "mascon.lib"
local names = require "mascon.checkpoint.plan_names"
local planner = require "mascon.checkpoint.plan"
local tensor = require "mascon.tensor"

local C = lib.C
local raise, show = args.raise, args.show
local is_tensor = tensor.is_tensor

local M = {}

--- The options of every load, for args.options.
M.OPTIONS = {
  strict = { "boolean", true },
  assign = { function(v) return v == true or v == false or v == "strict" end, false,
    want = 'true, false or "strict"' },
  verify_duplicates = { "boolean", false },
  allow_partial_experts = { "boolean", false },
  allow_mixed_dtypes = { "boolean", false },
  refuse_partial = { "boolean", false },
  refuse_narrowing = { "boolean", false },
  experts = { "table", want = "a table {first =, count =, total =}" },
}

local RANGE = { first = { "natural", required = true }, count = { "positive", required = true },
  total = { "positive", required = true } }

--- The planner's options from those of a load, checked.
-- @tparam string what begins error messages
-- @tparam table opts as args.options gave them
-- @tparam table more options of the planner: where, absent, views
function M.plan_options(what, opts, more)
  for name in pairs(M.OPTIONS) do more[name] = opts[name] end
  if opts.experts then
    more.experts = args.options(what .. ": experts", opts.experts, RANGE)
    local why = experts.problem(more.experts)
    if why then raise(("%s: experts: %s"):format(what, why)) end
  end
  return more
end

-- ---------------------------------------------------------------- slots -> table

-- A view outside the graph that carries its grouping; `state` marks an optimizer's array.
local function detached(t, slot, index)
  local view = t:detach()
  local packed, group = slot.packed, rawget(t, "group") or {}
  if packed and packed.role ~= "scalar" then
    view.group = { base = group.base or (not index and view or nil), index = index, count = packed.count,
      role = packed.role, layer = group.layer, state = slot.kind == "state" or nil }
  end
  return view
end

local function member(t, index)
  if rawget(t, "_packed") then return t:member(index) end
  return t:detach():select(1, index + 1)
end

--- name -> tensor for slots, in the layout of each; the tensors share the slots' memory and take no part in gradients.
-- Raises for a target that half a load has left invalid: its state must not become somebody's checkpoint.
function M.state_dict(slots, target)
  local fields = target and rawget(target, "_fields")
  local why = target and (fields or target)._invalid
  if why then
    raise(("state_dict: the %s is invalid: %s; load it fully before use"):format(
      fields and "module" or "optimizer", why))
  end
  local sd = {}
  for _, slot in ipairs(slots) do
    local packed, t = slot.packed, slot.tensor
    if packed and packed.role ~= "scalar" and packed.layout == "per_expert" then
      local base = detached(t, slot)
      for i = 0, packed.count - 1 do
        local view = detached(member(t, i), slot, i)
        view.group.base, view.group.layer = base, base.group.layer
        sd[names.member(slot.name, i)] = view
      end
    else
      sd[slot.name] = detached(t, slot)
    end
  end
  return sd
end

-- ---------------------------------------------------------------- slots -> wants

--- What slots want of a source, for the planner. prefix goes before every name.
function M.wants(slots, prefix)
  local wants = {}
  for i, slot in ipairs(slots) do
    local t, packed = slot.tensor, slot.packed
    wants[i] = {
      name = (prefix or "") .. slot.name, tensor = t, shape = t:shape(), dtype = t.dtype, device = t.device,
      optional = slot.optional, id = t, after = slot.after,
      packed = packed and { count = packed.count, role = packed.role, layout = packed.layout } or nil,
    }
  end
  return wants
end

-- ---------------------------------------------------------------- table -> offers

-- Equal for tensors that are the same elements in the same order.
function M.identity(t)
  if t:numel() == 0 then return nil end
  return table.concat({ t:storage_id(), tostring(C.mc_tensor_storage_offset(t.h)), t.dtype,
    names.shape(t:shape()), names.shape(t:stride()) }, ":")
end

local function offer_of(name, value, own)
  local kind = type(value)
  if kind == "number" then return { name = name, value = value } end
  if lazy.is_lazy(value) then
    return { name = name, problem = "a lazy tensor; :read() it first, or use mc.checkpoint.load_into" }
  end
  if not is_tensor(value) then return { name = name, problem = ("a %s, not a tensor"):format(kind) } end
  tensor.want_tensor(name, value)
  local size = value:element_size()
  local storage, group = value:storage_id(), rawget(value, "group")
  return {
    -- [G * N, K] from a file that says so
    packed = group and group.role == "weight" and group.count and not group.index and { count = group.count } or nil,
    name = name, tensor = value, shape = value:shape(), dtype = value.dtype, device = value.device,
    id = M.identity(value), contiguous = value:is_contiguous(), storage = storage,
    storage_first = tonumber(C.mc_tensor_storage_offset(value.h)) / size,
    storage_numel = tonumber(C.mc_tensor_storage_bytes(value.h)) / size,
    obstacle = own[storage] and "it is memory of the module itself" or nil,
  }
end

--- A nested or dotted table as a list of offers, in numeric-aware order of their dotted names.
-- @tparam string what for error messages
-- @tparam table own storage ids that are targets of the load
function M.flatten(what, sd, own)
  local offers, open = {}, {}
  local function walk(value, prefix)
    if open[value] then raise(("%s: the table contains itself at %s"):format(what, prefix)) end
    open[value] = true
    local keys, by_key = {}, {}
    for key, entry in pairs(value) do
      if type(key) ~= "string" and not args.is_integer(key) then
        raise(("%s: the table has the key %s; wanted names"):format(what, show(key)))
      end
      local text = type(key) == "string" and key or ("%d"):format(key)
      if not by_key[text] then
        by_key[text] = {}
        keys[#keys + 1] = text
      end
      table.insert(by_key[text], entry) -- 1 and "1" are two entries of one name: the planner says so
    end
    for _, key in ipairs(names.sort(keys)) do
      for _, entry in ipairs(by_key[key]) do
        local name = prefix == "" and key or prefix .. "." .. key
        if type(entry) == "table" and not is_tensor(entry) and not lazy.is_lazy(entry) then
          walk(entry, name)
        else
          offers[#offers + 1] = offer_of(name, entry, own)
        end
      end
    end
    open[value] = nil
  end
  walk(sd, "")
  return offers
end

-- ---------------------------------------------------------------- the load

--- The lists of a finished plan, as load_state_dict returns them.
function M.report(plan)
  local report = {}
  for _, list in ipairs { "loaded", "converted", "ignored", "missing", "unexpected", "warnings" } do
    report[list] = plan[list]
  end
  return report
end

--- Notes on a target, and on the modules in it, that it must not be used (`why`), or may be again (nil).
function M.set_invalid(target, why)
  if type(target) ~= "table" then return end
  if not rawget(target, "_fields") then
    rawset(target, "_invalid", why)
    return
  end
  for _, m in target:named_modules() do rawget(m, "_fields")._invalid = why end
end

--- Loads a nested or dotted table into slots; on any error nothing has changed.
-- @tparam {table,...} slots
-- @tparam table absent name -> reason, of names the target was built without
-- @tparam table sd tensors (and numbers, for one-element slots) by name, in any layout; never changed
-- @tparam table|nil opts strict, assign, verify_duplicates, allow_partial_experts, allow_mixed_dtypes (experts of one
--   layer may differ in dtype), refuse_partial (both layouts, one of them incomplete, is an error), refuse_narrowing
--   (casts that round are errors), experts = {first, count, total} (only these experts of the source, for the
--   grouped layers that have `count`; plan_experts.lua)
-- @tparam string where begins the error text
-- @tparam table|nil target the module, for the mark of a half-done load
-- @treturn table {loaded, converted, ignored, missing, unexpected, warnings}
function M.load(slots, absent, sd, opts, where, target)
  opts = args.options("load_state_dict", opts, M.OPTIONS)
  if type(sd) ~= "table" or is_tensor(sd) then
    raise(("load_state_dict: wanted a table of tensors, got %s"):format(show(sd)))
  end
  local own = {}
  for _, slot in ipairs(slots) do
    if slot.tensor:numel() > 0 then own[slot.tensor:storage_id()] = true end
  end
  local wants = M.wants(slots)
  local options = M.plan_options("load_state_dict", opts, { absent = absent, where = where })
  local plan = planner.make(wants, M.flatten("load_state_dict", sd, own), options)
  local source = execute.memory()
  if plan.ok then execute.compare(plan, source) end
  if not plan.ok then raise(plan.error_text) end
  execute.copy(plan, wants, source, function(message)
    M.set_invalid(target, ("a load failed half-way: %s"):format(message))
  end)
  if plan.complete then M.set_invalid(target, nil) end
  return M.report(plan)
end

return M
