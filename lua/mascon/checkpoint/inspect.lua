--- Looking into checkpoint files: what is in one, and whether its bytes are those that were written.
local args = require "mascon.args"
local duplicates = require "mascon.checkpoint.duplicates"
local describe = require "mascon.checkpoint.describe"
local facts = require "mascon.checkpoint.inspect_facts"
local format = require "mascon.checkpoint.format"
local load = require "mascon.checkpoint.load"
local names = require "mascon.checkpoint.plan_names"
local pieces = require "mascon.checkpoint.pieces"
local stats = require "mascon.checkpoint.stats"

local M = {}

-- Calls fn(dotted name, leaf) for all leaves of a file's tree, in its order.
local function each_leaf(node, name, fn)
  if not node.is_node then
    fn(name, node)
    return
  end
  for _, key in ipairs(node.keys) do
    each_leaf(node.values[key], name == "" and tostring(key) or name .. "." .. tostring(key), fn)
  end
end
M.each_leaf = each_leaf

local SPEC = { stats = { "boolean", false }, progress = { "function" } }

-- Statistics of all that can be read. done counts bytes.
local function add_stats(file, tensors, total, progress)
  local reader, done, known = pieces.reader(), 0, {}
  for _, item in ipairs(tensors) do
    local entry = item.entry
    if not entry.problem then
      known[entry.object] = known[entry.object] or stats.of(reader, file, entry)
      item.stats = known[entry.object]
    end
    done = math.min(done + (entry.problem and 0 or entry.bytes), total)
    if progress then progress(done, total) end
  end
end

--- What is in a file, from its structure alone: no tensor is read unless statistics are asked for.
-- @tparam string path
-- @tparam table|nil opts stats = true: reads all and adds stats = {min, max, mean, std, zeros, nan, inf} to every
--   tensor; progress = fn(bytes done, of all)
-- @treturn table {ok = true, path, format = "mascon" | "hdf5", format_version, mascon_version, bytes = of all tensors,
--   tensors = list of {name, dtype, shape, bytes, digest, offset, problem, object = equal for two names of one, layer =
--   facts of the grouped layer around it | nil, layout = "single" | "per_expert" where it is a part of that},
--   values = list of {name, value}, views = list of {name, dtype, shape, problem}: virtual datasets, whose bytes are
--   those of tensors}, all in numeric-aware order of their dotted names
function M.inspect(path, opts)
  opts = args.options("checkpoint.inspect", opts, SPEC)
  return load.with_file("checkpoint.inspect", path, function(file, tree)
    local attrs, tensors, values, bytes, counted = file.entries[1].attrs, {}, {}, 0, {}
    local own = format.is_own(file)
    each_leaf(tree, "", function(name, leaf)
      local entry = leaf.entry
      if leaf.value ~= nil then
        values[#values + 1] = { name = name, value = leaf.value }
      elseif leaf.text then
        values[#values + 1] = { name = name, bytes = entry.bytes }
      else
        local role, index = load.packed_role(leaf)
        tensors[#tensors + 1] = { name = name, dtype = entry.dtype, shape = entry.shape, bytes = entry.bytes,
          offset = entry.offset, digest = entry.attrs.digest, problem = entry.problem, layer = leaf.layer,
          entry = entry, object = entry.object, layout = role and (index and "per_expert" or "single") }
        -- what cannot be read may claim any size
        if not counted[entry.object] and not entry.problem then bytes = bytes + entry.bytes end
        counted[entry.object] = true
      end
    end)
    local views = {}
    for i, view in ipairs(file.views) do
      local entry = view.entry
      views[i] = { name = view.name, dtype = entry.dtype, shape = entry.shape, problem = entry.problem }
    end
    for _, entries in ipairs { tensors, values, views } do
      local order, position = {}, {}
      for i, item in ipairs(entries) do order[i] = item.name end
      for i, name in ipairs(names.sort(order)) do position[name] = i end
      table.sort(entries, function(a, b) return position[a.name] < position[b.name] end)
    end
    if opts.stats then add_stats(file, tensors, bytes, opts.progress) end
    for _, item in ipairs(tensors) do item.entry = nil end
    return setmetatable({ ok = true, path = path, format = own and format.FORMAT or "hdf5",
      format_version = own and attrs.format_version or nil, mascon_version = own and attrs.mascon_version or nil,
      bytes = bytes, tensors = tensors, values = values, views = views }, { __tostring = describe.text })
  end)
end

local VERIFY_SPEC = { progress = { "function" } }

--- Reads every byte and compares with the digests that were stored at the save. Views are followed to what they show,
-- by their structure; what groups say of grouped layers is compared with the tensors in them.
-- @tparam string path
-- @tparam table|nil opts progress = fn(bytes done, of all)
-- @treturn table {ok, path, checked = number of datasets, damaged = list of {name, message}, facts = list of {name =
--   path of a group, message}: what a layer is said to have and has not, lost experts among it; unverified = list of
--   names without a digest; duplicates = list of {name, experts = numbers}: experts of one layer with equal values
--   other than one number throughout, which harms no check but is hardly meant}
function M.verify(path, opts)
  opts = args.options("checkpoint.verify", opts, VERIFY_SPEC)
  return load.with_file("checkpoint.verify", path, function(file, tree)
    local report = { path = path, checked = 0, damaged = {}, unverified = {} }
    local seen, done, total = {}, 0, 0
    for _, entry in ipairs(file.entries) do
      if not entry.group and not entry.view and not entry.problem then total = total + entry.bytes end
    end
    for _, entry in ipairs(file.entries) do
      local has_bytes = not entry.group and not entry.view
      if has_bytes and not entry.problem then done = done + entry.bytes end
      if opts.progress then opts.progress(done, total) end
      if entry.view and entry.problem then
        table.insert(report.damaged, { name = names.show(entry.path),
          message = "broken view: " .. names.show(entry.problem) })
      elseif has_bytes and not seen[entry.object] then
        seen[entry.object] = true
        local name = names.show(entry.path)
        if entry.problem and (entry.dtype or entry.attrs.digest) then
          table.insert(report.damaged, { name = name, message = names.show(entry.problem) })
        elseif not entry.attrs.digest then -- of other writers; so is what has no dtype here
          table.insert(report.unverified, name)
        else
          report.checked = report.checked + 1
          local found = file:digest(entry)
          if found ~= entry.attrs.digest then
            table.insert(report.damaged, { name = name, message = ("its bytes have the digest %s, written was %s")
              :format(found, names.show(entry.attrs.digest)) })
          end
        end
      end
    end
    report.duplicates = duplicates.find(file, function(fn) each_leaf(tree, "", fn) end)
    report.facts = facts.check(file)
    report.ok = #report.damaged == 0 and #report.facts == 0
    return setmetatable(report, { __tostring = describe.verified })
  end)
end

return M
