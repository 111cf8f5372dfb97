--- Looking into checkpoint files: what is in one, and whether its bytes are those that were written.
local format = require "mascon.checkpoint.format"
local load = require "mascon.checkpoint.load"
local names = require "mascon.checkpoint.plan_names"

local M = {}

local function flat_leaves(node, name, fn)
  if not node.is_node then
    fn(name, node)
    return
  end
  for _, key in ipairs(node.keys) do
    flat_leaves(node.values[key], name == "" and tostring(key) or name .. "." .. tostring(key), fn)
  end
end

--- What is in a file, from its structure alone: no tensor is read.
-- @treturn table {ok = true, path, format = "mascon" | "hdf5", format_version, mascon_version, bytes = of all tensors,
--   tensors = list of {name, dtype, shape, bytes, digest, offset, problem, layer = facts of its grouped layer | nil},
--   values = list of {name, value}}, both in numeric-aware order of their dotted names
function M.inspect(path)
  return load.with_file("checkpoint.inspect", path, function(file, tree)
    local attrs, tensors, values, bytes, counted = file.entries[1].attrs, {}, {}, 0, {}
    local own = format.is_own(file)
    flat_leaves(tree, "", function(name, leaf)
      local entry = leaf.entry
      if leaf.value ~= nil then
        values[#values + 1] = { name = name, value = leaf.value }
      elseif leaf.text then
        values[#values + 1] = { name = name, bytes = entry.bytes }
      else
        tensors[#tensors + 1] = { name = name, dtype = entry.dtype, shape = entry.shape, bytes = entry.bytes,
          offset = entry.offset, digest = entry.attrs.digest, problem = entry.problem, layer = leaf.layer }
        if not counted[entry.object] then bytes = bytes + entry.bytes end
        counted[entry.object] = true
      end
    end)
    for _, entries in ipairs { tensors, values } do
      local order, position = {}, {}
      for i, item in ipairs(entries) do order[i] = item.name end
      for i, name in ipairs(names.sort(order)) do position[name] = i end
      table.sort(entries, function(a, b) return position[a.name] < position[b.name] end)
    end
    return { ok = true, path = path, format = own and format.FORMAT or "hdf5",
      format_version = own and attrs.format_version or nil, mascon_version = own and attrs.mascon_version or nil,
      bytes = bytes, tensors = tensors, values = values }
  end)
end

--- Reads every byte and compares with the digests that were stored at the save.
-- @treturn table {ok, path, checked = number of datasets, damaged = list of {name, message}, unverified = list of
--   names without a digest}
function M.verify(path)
  return load.with_file("checkpoint.verify", path, function(file)
    local report = { path = path, checked = 0, damaged = {}, unverified = {} }
    local seen = {}
    for _, entry in ipairs(file.entries) do
      if not entry.group and not seen[entry.object] then
        seen[entry.object] = true
        local name = names.show(entry.path)
        if entry.problem then
          table.insert(report.damaged, { name = name, message = names.show(entry.problem) })
        elseif not entry.attrs.digest then
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
    report.ok = #report.damaged == 0
    return report
  end)
end

return M
