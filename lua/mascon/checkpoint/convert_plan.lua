--- The plan of a conversion: which bytes of a source become which datasets, or the list of all errors.
--
-- Names and shapes only. What goes where inside a grouped layer, and whether its experts are all there, the one
-- planner says (plan.lua), with the sets of convert_sets.lua as its wants and the source as its offers; this file cuts
-- its copies into the datasets of the wanted layout.
--
-- A target is {keys, value} or {keys, dtype, shape, parts = {{item, first, count}, ...}, set, index}: elements
-- [first, first + count) of an item's dataset. Before a transform shapes are not known: then first and count are
-- experts (unit = true) and shape is nil.
local format = require "mascon.checkpoint.format"
local items_of = require "mascon.checkpoint.convert_items"
local lib = require "mascon.lib"
local names = require "mascon.checkpoint.plan_names"
local planner = require "mascon.checkpoint.plan"
local Plan = require "mascon.checkpoint.convert_report"
local sets_of = require "mascon.checkpoint.convert_sets"
local tensor = require "mascon.tensor"
local write = require "mascon.checkpoint.write"

local C = lib.C

local M = {}

local Builder = {}
Builder.__index = Builder

function Builder:fail(code, name, message)
  table.insert(self.plan.errors, { code = code, name = name, message = message })
end

local function id_of(keys) return sets_of.table_id(keys) .. "\0" .. type(keys[#keys]) .. ":" .. keys[#keys] end

-- The keys of another name in the same table.
local function sibling(keys, key)
  local result = { unpack(keys, 1, #keys - 1) }
  result[#keys] = key
  return result
end

-- ---------------------------------------------------------------- two of one name

-- Two items that would have one name, or one that would be the table of another.
function Builder:check_names()
  local by_id, tables = {}, {}
  for _, item in ipairs(self.items.list) do
    local keys, id = item.target, id_of(item.target)
    if by_id[id] then
      self:fail("conflict", item.name, ("%s and %s would both be %s"):format(names.show(by_id[id].name),
        names.show(item.name), names.show(items_of.dotted(keys))))
    end
    by_id[id] = by_id[id] or item
    for n = 1, #keys - 1 do tables[id_of { unpack(keys, 1, n) }] = item end
  end
  for _, item in ipairs(self.items.list) do
    local inside = tables[id_of(item.target)]
    if inside then
      self:fail("conflict", item.name, ("%s would be %s, which is the table around %s"):format(names.show(item.name),
        names.show(items_of.dotted(item.target)), names.show(inside.name)))
    end
  end
end

-- ---------------------------------------------------------------- the planner

-- The layout that a set gets. An optimizer's arrays are stacked in both.
function Builder:layout_of(set)
  local opts = self.opts
  local given = opts.layouts and opts.layouts[set.name]
  if given then return given end
  if set.role == "scalar" then return "single" end
  if opts.layout ~= "as_is" then return set.state and "single" or opts.layout end
  return sets_of.stored_layout(set)
end

local function unique(used, name)
  local result, n = name, 1
  while used[result] do
    n = n + 1
    result = ("%s (%d)"):format(name, n)
  end
  used[result] = true
  return result
end

-- Whether a count that a stranger's file declares, or its names tell of, is one to make a list for.
function Builder:check_count(set)
  if #set.beyond > 0 then
    local list = {}
    for i, item in ipairs(set.beyond) do list[i] = item.name end
    local also = #set.list > 0 and (" beside %s"):format(names.members(set.name, set.list)) or ""
    self:fail("count", set.name, ("%s%s: experts have the numbers 0 to %d"):format(names.folded(names.sort(list)), also,
      sets_of.MAX_EXPERTS - 1))
    return false
  end
  if set.count <= sets_of.MAX_EXPERTS then return true end
  self:fail("count", set.name, ("%s: %.0f experts, at most %d are converted"):format(names.show(set.name), set.count,
    sets_of.MAX_EXPERTS))
  return false
end

function Builder:want_of(set)
  local shape = { set.count, unpack(set.shape) }
  set.unit = self.opts.transform and set.role ~= "scalar" and not (set.single and #set.list > 0)
  if set.unit then shape = { set.count, 1 } end
  if set.role == "scalar" then shape = {} end
  return { name = set.name, shape = shape, dtype = set.unit and "uint8" or set.dtype, set = set,
    packed = { count = set.count, role = set.role, layout = set.layout } }
end

local function offer_of(item, name)
  local entry, set = item.entry, item.set
  local offer = { name = name, item = item }
  if not entry then
    offer.value = item.value
    return offer
  end
  offer.entry, offer.problem = entry, entry.problem
  offer.shape, offer.dtype = entry.shape, entry.dtype
  if set and set.unit then
    offer.shape, offer.dtype = item == set.single and { set.count, 1 } or { 1 }, "uint8"
  end
  return offer
end

-- Asks the planner. Returns its plan and want -> copies, in order.
function Builder:ask(sets)
  local wants, offers, used = {}, {}, {}
  local function named(dotted)
    local name = unique(used, dotted)
    self.plan.ambiguous = self.plan.ambiguous or name ~= dotted
    return name
  end
  for _, set in ipairs(sets) do
    set.name = named(items_of.dotted(sibling(set.target, set.stem)))
    set.layout = self:layout_of(set)
    if not self:check_count(set) then return nil end
    wants[#wants + 1] = self:want_of(set)
  end
  for _, item in ipairs(self.items.list) do
    local set = item.set
    if set then
      local name = set.name .. (item ~= set.single and item.target[#item.target]:match "%d+$" or "")
      used[name] = true
      offers[#offers + 1] = offer_of(item, name)
    end
  end
  for _, item in ipairs(self.items.list) do
    if item.entry and not item.set then
      local name = named(items_of.dotted(item.target))
      wants[#wants + 1] = { name = name, shape = item.entry.shape, dtype = item.entry.dtype or "uint8", item = item }
      offers[#offers + 1] = offer_of(item, name)
    end
  end
  local load = planner.make(wants, offers, { where = self.plan.source, verify_duplicates = true,
    refuse_partial = true, holder = "layer" })
  for _, err in ipairs(load.errors) do table.insert(self.plan.errors, err) end
  for _, warning in ipairs(load.warnings) do table.insert(self.plan.warnings, warning) end
  self.plan.compare, self.plan.redundant = load.compare, load.ignored
  local copies = {}
  for _, copy in ipairs(load.copies) do
    copies[copy.want] = copies[copy.want] or {}
    table.insert(copies[copy.want], copy)
  end
  for _, list in pairs(copies) do table.sort(list, function(a, b) return a.want_first < b.want_first end) end
  return wants, copies
end

-- ---------------------------------------------------------------- copies -> datasets

-- The parts of [first, last) of a want.
local function cut(copies, first, last)
  local parts = {}
  for _, copy in ipairs(copies) do
    local from, to = math.max(first, copy.want_first), math.min(last, copy.want_first + copy.count)
    if from < to or first == last then
      parts[#parts + 1] = { item = copy.offer.item, first = copy.offer_first + from - copy.want_first,
        count = math.max(to - from, 0) }
    end
  end
  return parts
end

function Builder:add(target)
  local plan = self.plan
  plan.targets[#plan.targets + 1] = target
  if target.shape then
    target.bytes = names.numel(target.shape) * C.mc_dtype_size(tensor.parse_dtype("convert", target.dtype))
    plan.bytes = plan.bytes + target.bytes
  end
  return target
end

function Builder:set_targets(set, copies, total)
  local unit = self.opts.transform and set.role ~= "scalar"
  if unit and not set.unit and total > 0 then -- both layouts were there, and were compared element by element
    local per = total / set.count
    for _, copy in ipairs(copies) do
      copy.want_first, copy.offer_first, copy.count = copy.want_first / per, copy.offer_first / per, copy.count / per
    end
    total = set.count
  end
  if set.role == "scalar" then
    local item = copies[1].offer.item
    local target = { keys = sibling(set.target, set.stem), set = set, value = item.value }
    if item.entry then
      target.dtype, target.shape = item.entry.dtype, item.entry.shape
      target.parts = { { item = item, first = 0, count = 1 } }
    end
    self:add(target)
  elseif set.layout == "single" then
    self:add { keys = sibling(set.target, set.stem), set = set, dtype = not unit and set.dtype or nil, unit = unit,
      shape = not unit and { set.count, unpack(set.shape) } or nil, parts = cut(copies, 0, total) }
  else
    local per = total / set.count
    for i = 0, set.count - 1 do
      self:add { keys = sibling(set.target, set.stem .. i), set = set, index = i, dtype = not unit and set.dtype or nil,
        shape = not unit and set.shape or nil, unit = unit, parts = cut(copies, i * per, (i + 1) * per) }
    end
  end
end

function Builder:targets(wants, copies)
  for _, want in ipairs(wants) do
    local list, item = copies[want], want.item
    if not list then -- an error has said why
      self.complete = false
    elseif want.set then
      self:set_targets(want.set, list, names.numel(want.shape))
    elseif self.opts.transform then
      self:add { keys = item.target, unit = true, parts = { { item = item, first = 0, count = 1 } } }
    else
      self:add { keys = item.target, dtype = want.dtype, shape = want.shape, parts = { { item = item, first = 0,
        count = names.numel(want.shape) } } }
    end
  end
  for _, item in ipairs(self.items.list) do
    if not item.entry and not item.set then self:add { keys = item.target, value = item.value, item = item } end
  end
end

-- ---------------------------------------------------------------- the tree of the new file

local function new_table() return { order = {}, by = {} } end

-- The table at all but the last of the keys.
local function table_at(root, keys, n)
  local node = root
  for i = 1, n do
    local below = node.by[keys[i]]
    if not below then
      below = new_table()
      node.by[keys[i]] = below
      node.order[#node.order + 1] = keys[i]
    end
    node = below
  end
  return node
end

function Builder:tree()
  local root, seen = new_table(), {}
  for _, target in ipairs(self.plan.targets) do
    local id, keys = id_of(target.keys), target.keys
    target.name = items_of.dotted(keys)
    if seen[id] then
      self:fail("conflict", target.name, ("%s: two tensors of the new file have this name"):format(names.show(
        target.name)))
    else
      seen[id] = true
      local node = table_at(root, keys, #keys - 1)
      if node.by[keys[#keys]] then
        self:fail("conflict", target.name, ("%s: a table of the new file has this name"):format(
          names.show(target.name)))
      else
        node.by[keys[#keys]] = target
        node.order[#node.order + 1] = keys[#keys]
      end
    end
  end
  for _, keys in ipairs(self.items.empty) do
    if not seen[id_of(keys)] then table_at(root, keys, #keys) end
  end
  return root
end

local function has_views(target)
  local set = target.set
  return set and not set.state and set.role ~= "scalar" and names.numel(set.shape) > 0
end

-- The targets in the order of the new file.
local function in_order(node, list)
  for _, key in ipairs(write.order(node.order)) do
    local found = node.by[key]
    if found.keys then list[#list + 1] = found else in_order(found, list) end
  end
  return list
end

--- The views beside the entries of a table: of stacked tensors first, as a save writes them.
local function views_of(node, order)
  local result, stacks, known = {}, {}, {}
  for _, key in ipairs(order) do
    local target = node.by[key]
    local set = target.keys and has_views(target) and target.set
    if set and not target.index then
      for i = 0, set.count - 1 do
        if not node.by[set.stem .. i] then
          result[#result + 1] = { key = set.stem .. i, select = set.stem, position = i }
        end
      end
    elseif set and not known[set] and not node.by[set.stem] then
      known[set] = true
      local keys = {}
      for i = 0, set.count - 1 do keys[i + 1] = set.stem .. i end
      stacks[#stacks + 1] = { key = set.stem, stack = keys }
    end
  end
  for _, stack in ipairs(stacks) do result[#result + 1] = stack end
  return result
end

--- A table of the tree as write.lua takes it; leaf(target) makes the entry of a tensor.
local function entries_of(node, views, leaf)
  local order, entries = write.order(node.order), {}
  for i, key in ipairs(order) do
    local found = node.by[key]
    if not found.keys then
      entries[i] = { key = key, entries = entries_of(found, views, leaf) }
    elseif found.value ~= nil then
      entries[i] = { key = key, value = found.value }
    else
      entries[i] = leaf(found)
      entries[i].key = key
    end
  end
  for _, view in ipairs(views and views_of(node, order) or {}) do entries[#entries + 1] = view end
  return entries
end

--- The entries of the new file; leaf as above.
function M.entries(plan, leaf) return entries_of(plan.root, plan.views, leaf) end

--- What the group around a target says about its layer, from the shape it has in the end; nil for other tensors and
-- where the last part of its name is not the role's.
function M.facts(target, shape, leaf)
  local set = target.set
  if not set or set.role == "scalar" or leaf ~= set.role .. (target.index or "") then return nil end
  local facts, axis = {}, target.index and 1 or 2
  for _, name in ipairs(format.LAYER_FACTS) do facts[name] = set.layer and set.layer[name] end
  facts.type = facts.type or "GroupedLinear"
  facts.num_gemms, facts.out_features = set.count, shape[axis]
  if set.role == "weight" then facts.in_features = shape[axis + 1] end
  facts[set.role .. "_layout"] = target.index and "per_expert" or "single"
  if set.state then facts.optimizer_state = true end
  return facts
end

-- ---------------------------------------------------------------- the function

--- Plans a conversion.
-- @tparam File file the source
-- @tparam table tree of format.lua
-- @tparam table opts layout, views, rename, filter, transform; layouts: set's name -> layout, before all else
-- @tparam string|nil destination
-- @treturn Plan see convert_report.lua; its comparisons are still to be made (execute.lua)
function M.make(file, tree, opts, destination)
  local plan = setmetatable({ source = file.path, destination = destination, layout = opts.layout, views = opts.views,
    transform = opts.transform ~= nil, errors = {}, warnings = {}, targets = {}, redundant = {}, recognised = {},
    bytes = 0 }, Plan)
  local items = items_of.of(file, tree, opts)
  local builder = setmetatable({ plan = plan, opts = opts, items = items, complete = true }, Builder)
  plan.dropped, plan.unchanged, plan.skipped_views, plan.items = items.dropped, items.unchanged, items.views, items.list
  local sets, notes = sets_of.find(items, { by_name = opts.layout ~= "as_is" or opts.views,
    transformed = opts.transform ~= nil, keep_state = opts.layout == "as_is" })
  for _, note in ipairs(notes) do table.insert(plan.warnings, note) end
  builder:check_names()
  local wants, copies
  if #plan.errors == 0 then wants, copies = builder:ask(sets) end
  if wants then
    builder:targets(wants, copies)
    plan.root = builder:tree()
    plan.targets = in_order(plan.root, {})
  end
  for _, set in ipairs(sets) do
    if not set.declared then table.insert(plan.recognised, set.name) end
  end
  plan.sets = sets
  return plan:refresh()
end

return M
