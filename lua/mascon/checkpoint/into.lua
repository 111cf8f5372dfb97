--- Loading a file straight into modules and optimizers, and the dry run of that.
--
-- One plan over all targets, so that an error in any of them changes none. Names are "<target>.<slot>"; a file's
-- table under a target's key is that target's, everything else comes back as report.rest.
local args = require "mascon.args"
local execute = require "mascon.checkpoint.execute"
local load = require "mascon.checkpoint.load"
local names = require "mascon.checkpoint.plan_names"
local planner = require "mascon.checkpoint.plan"
local random = require "mascon.random"
local state = require "mascon.checkpoint.state"
local tensor = require "mascon.tensor"

local raise, show = args.raise, args.show

local M = {}

local PLAN_SPEC = { decode_limit = { "positive" } }
for name, entry in pairs(state.OPTIONS) do PLAN_SPEC[name] = entry end
local SPEC = { verify = { "boolean", false }, rng = { "boolean", false }, rest = { "boolean", true },
  progress = { "function" } }
for name, entry in pairs(PLAN_SPEC) do SPEC[name] = entry end

local function has_method(target, name)
  return type(target) == "table" and not tensor.is_tensor(target) and type(target[name]) == "function"
end

-- The targets' names in order; raises for what cannot be loaded into.
local function target_names(what, targets)
  if type(targets) ~= "table" or tensor.is_tensor(targets) or has_method(targets, "slots") then
    raise(("%s: wanted a table of targets, as {model = model}, got %s"):format(what, show(targets)))
  end
  local list = {}
  for name, target in pairs(targets) do
    if type(name) ~= "string" then raise(("%s: a target is named %s; wanted a string"):format(what, show(name))) end
    if not has_method(target, "load_state_dict") then
      raise(("%s: %s is %s; wanted an object with load_state_dict"):format(what, name, show(target)))
    end
    list[#list + 1] = name
  end
  return names.sort(list)
end

-- Offers for all leaves below a node; their names begin with `name`.
local function offers_below(node, name, offers)
  if node.is_node then
    for _, key in ipairs(node.keys) do offers_below(node.values[key], name .. "." .. tostring(key), offers) end
    return
  end
  local offer = { name = name }
  if node.value ~= nil then
    if type(node.value) == "number" then
      offer.value = node.value
    else
      offer.problem = ("a %s, not a tensor"):format(type(node.value))
    end
  else
    local entry, layer = node.entry, node.layer
    offer.entry, offer.shape, offer.dtype, offer.id = entry, entry.shape, entry.dtype, entry.object
    offer.problem = entry.problem or node.text and "a text, not a tensor" or nil
    if layer and not offer.problem and layer.weight_layout == "single" and node.leaf == "weight" then
      offer.packed = { count = layer.num_gemms }
    end
  end
  offers[#offers + 1] = offer
end

-- name -> true for the virtual datasets of a file.
local function views_of(file)
  local views = {}
  for _, view in ipairs(file.views or {}) do views[view.name] = true end
  return views
end

-- The plan for all targets with slots, its wants, and the names of the other targets.
local function make_plan(what, file, tree, targets, list, opts)
  local wants, offers, absent, others, gone = {}, {}, {}, {}, {}
  for _, name in ipairs(list) do
    local target, node = targets[name], tree.values[name]
    if not node or not node.is_node then
      gone[#gone + 1] = name
    elseif has_method(target, "slots") then
      for _, want in ipairs(state.wants(target:slots(), name .. ".")) do wants[#wants + 1] = want end
      for slot, reason in pairs(has_method(target, "absent") and target:absent() or {}) do
        absent[name .. "." .. slot] = reason
      end
      offers_below(node, name, offers)
    else
      others[#others + 1] = name
    end
  end
  local plan = planner.make(wants, offers, state.plan_options(what, opts, {
    absent = absent, where = file.path, views = views_of(file),
  }))
  local there = {}
  for i, key in ipairs(tree.keys) do there[i] = names.show(tostring(key)) end
  for _, name in ipairs(gone) do
    table.insert(plan.errors, { code = "missing", name = name, message = ("%s: the file has no such table; it has: %s")
      :format(name, table.concat(there, ", ")) })
  end
  return plan:refresh(), wants, others
end

-- Adds an error for each dataset of the plan whose bytes are not those that were written. A digest is that of a whole
-- dataset, also where only some of its experts are wanted.
local function verify_digests(file, plan)
  local seen, count, bare, first = {}, 0, 0, nil
  for _, copy in ipairs(plan.copies) do
    local entry = copy.offer.entry
    if entry and not seen[entry.object] then
      seen[entry.object] = true
      count = count + 1
      local wanted = entry.attrs.digest
      if not wanted and entry.bytes > 0 then
        bare, first = bare + 1, first or copy.name
      elseif wanted and file:digest(entry) ~= wanted then
        table.insert(plan.errors, { code = "file", name = copy.name,
          message = ("%s: damaged: its bytes do not match their digest"):format(names.show(copy.name)) })
      end
    end
  end
  if bare > 0 then
    table.insert(plan.warnings, ("verify: %d of %d datasets have no digest and were not checked, %s first"):format(bare,
      count, names.show(first)))
  end
  plan:refresh()
end

-- A copy of a file's tree without the keys in `but`, without tensors unless they are asked for, and without what
-- cannot be read, of which it warns: nobody has asked for that.
local function readable(node, but, tensors, warnings)
  local copy = { is_node = true, keys = {}, values = {} }
  for _, key in ipairs(node.keys) do
    local value = node.values[key]
    local problem = value.entry and value.entry.problem
    local wanted = but[key] == nil and (tensors or value.is_node or value.value ~= nil or value.text)
    if wanted and problem then
      warnings[#warnings + 1] = ("%s is left out: %s"):format(names.show(value.entry.path), names.show(problem))
    elseif wanted then
      copy.keys[#copy.keys + 1] = key
      copy.values[key] = value.is_node and readable(value, {}, tensors, warnings) or value
    end
  end
  return copy
end

-- Everything in a file that is no target's, as Lua values; the state of the random numbers always where it is used.
local function read_rest(file, tree, targets, opts, warnings)
  local node = readable(tree, targets, opts.rest, warnings)
  local rng = tree.values.rng
  if opts.rng and rng and rng.entry and not rng.entry.problem and node.values.rng == nil and targets.rng == nil then
    table.insert(node.keys, "rng")
    node.values.rng = rng
  end
  return load.value(file, node, "cpu")
end

-- Gives their tables to the targets without slots. Returns a function that takes that back, for those that can tell
-- their state; when one of them raises, the ones before it are as they were.
local function load_others(file, tree, targets, others)
  local undo = {}
  local function back()
    for i = #undo, 1, -1 do pcall(undo[i]) end
  end
  for _, name in ipairs(others) do
    local target = targets[name]
    local ok, before = pcall(function() return has_method(target, "state_dict") and target:state_dict() end)
    if ok and before then undo[#undo + 1] = function() target:load_state_dict(before) end end
    local loaded, err = pcall(function() target:load_state_dict(load.value(file, tree.values[name])) end)
    if not loaded then
      back()
      error(err, 0)
    end
  end
  return back
end

--- Loads a file into modules and optimizers without a second copy of their tensors.
-- @tparam string path
-- @tparam {[string]=object} targets objects with load_state_dict; those with slots are loaded by one plan, the others
--   get their table after it has proved right and before the first byte is copied
-- @tparam table|nil opts those of load_state_dict, of which experts = {first =, count =, total =} reads only the bytes
--   of those experts; verify = true reads all digests first; rng = true gives the file's `rng` to mc.set_rng_state;
--   rest = false leaves tensors that no target wants unread; progress = fn(bytes done, of all) while it copies, whose
--   error is a fault of the copy; decode_limit: bytes that compressed datasets may decode to
-- @treturn table {loaded, converted, ignored, missing, unexpected, warnings, rest = everything else in the file}
-- @raise one error with the file and a line per problem, nothing changed; or the fault of a copy, its targets invalid
function M.load_into(path, targets, opts)
  opts = args.options("load_into", opts, SPEC)
  local list = target_names("load_into", targets)
  return load.with_file("load_into", path, function(file, tree)
    local plan, wants, others = make_plan("load_into", file, tree, targets, list, opts)
    local source = execute.file(file)
    if plan.ok and opts.verify then verify_digests(file, plan) end
    if plan.ok then execute.compare(plan, source) end
    if not plan.ok then raise(plan.error_text) end
    local rest = read_rest(file, tree, targets, opts, plan.warnings)
    if opts.rng and not tensor.is_tensor(rest.rng) then
      raise(("%s: there is no rng state in it, which rng = true asks for"):format(path))
    end
    if opts.rng then random.check_rng_state(path .. ": rng", rest.rng) end
    local take_back = load_others(file, tree, targets, others)
    execute.copy(plan, wants, source, function(message)
      take_back()
      for _, name in ipairs(list) do
        state.set_invalid(targets[name], ("a load failed half-way: %s"):format(message))
      end
    end, opts.progress)
    if plan.complete then
      for _, name in ipairs(list) do state.set_invalid(targets[name], nil) end
    end
    if opts.rng then random.set_rng_state(rest.rng) end
    local report = state.report(plan)
    report.rest = rest
    return report
  end, { prefetch = opts.rest and not opts.experts, decode_limit = opts.decode_limit })
end

--- What load_into would do, without doing any of it: a plan, to print or to look into.
-- @treturn Plan {ok, errors, copies, loaded, converted, ignored, missing, unexpected, warnings}; tostring: a table.
--   With verify_duplicates the values of duplicates are compared too.
function M.plan(path, targets, opts)
  opts = args.options("checkpoint.plan", opts, PLAN_SPEC)
  local list = target_names("checkpoint.plan", targets)
  return load.with_file("checkpoint.plan", path, function(file, tree)
    local plan = make_plan("checkpoint.plan", file, tree, targets, list, opts)
    if plan.ok then execute.compare(plan, execute.file(file)) end
    return plan
  end, { decode_limit = opts.decode_limit })
end

return M
