--- What a conversion takes from its source: every tensor, text and value of a file, under the names that the
-- user's functions give them. A part of mc.checkpoint.convert; no payload but that of texts is read.
local args = require "mascon.args"
local names = require "mascon.checkpoint.plan_names"

local raise, show = args.raise, args.show

local M = {}

-- Calls fn(keys, leaf) for all leaves, and fn(keys, nil) for tables that are empty.
local function walk(node, keys, fn)
  if not node.is_node then
    fn(keys, node)
  elseif #node.keys == 0 and #keys > 0 then
    fn(keys, nil)
  end
  for _, key in ipairs(node.is_node and node.keys or {}) do
    local below = { unpack(keys) }
    below[#below + 1] = key
    walk(node.values[key], below, fn)
  end
end

local function dotted(keys)
  local parts = {}
  for i, key in ipairs(keys) do parts[i] = tostring(key) end
  return table.concat(parts, ".")
end
M.dotted = dotted

local function split(name)
  local parts = {}
  for part in (name .. "."):gmatch "(.-)%." do parts[#parts + 1] = part end
  return parts
end

-- A key that replaces `old`: the number again where that was one.
local function like(old, text)
  if type(old) == "number" and tostring(tonumber(text)) == text and args.is_integer(tonumber(text)) then
    return tonumber(text)
  end
  return text
end

--- The keys of a new name: as many tables as the old one had, or all that the name has parts for.
local function keys_of(name, old)
  local parts, keys, at = split(name), {}, 1
  for i = 1, #old - 1 do
    local n = #split(tostring(old[i]))
    if at + n > #parts then break end
    keys[i] = like(old[i], table.concat(parts, ".", at, at + n - 1))
    at = at + n
  end
  keys[#keys + 1] = like(old[#old], table.concat(parts, ".", at))
  return keys
end

-- What rename gave, as keys; nil where it left the name alone.
local function renamed(result, item)
  if result == nil or result == item.name then return nil end
  if type(result) == "string" and result ~= "" then return keys_of(result, item.keys) end
  if type(result) == "table" and #result > 0 then
    for _, key in ipairs(result) do
      if type(key) ~= "string" and not args.is_integer(key) then
        raise(("convert: rename(%q) returned a list with %s; wanted strings and integers"):format(item.name, show(key)))
      end
    end
    return { unpack(result) }
  end
  raise(("convert: rename(%q) returned %s; wanted a name, a list of keys, or nil to keep it"):format(item.name,
    show(result)))
end

-- Whether filter lets an item through.
local function kept(filter, item)
  if not filter then return true end
  local result = filter(item.name, item.info)
  if type(result) ~= "boolean" then
    raise(("convert: filter(%q) returned %s; wanted true or false"):format(item.name, show(result)))
  end
  return result
end

-- The expert of a tensor in a group that says it is a grouped layer: role, number (nil: all of them); else nil.
local function declared(leaf)
  local layer = leaf.layer
  if not layer then return nil end
  local stem, index = names.split(leaf.leaf)
  for _, role in ipairs { "weight", "bias" } do
    if layer[role .. "_layout"] then
      if leaf.leaf == role then return role end
      if stem == role and index then return role, index end
    end
  end
  return nil
end

local function new_item(file, keys, leaf)
  local entry, item = leaf.entry, { keys = keys, name = dotted(keys), leaf = leaf }
  item.info = { layer = leaf.layer }
  if leaf.value ~= nil or leaf.text then
    item.value = leaf.value
    if leaf.text then item.value = file:text(entry) end
    item.info.value = item.value
    return item
  end
  item.entry = entry
  item.role, item.expert = declared(leaf)
  item.info.shape, item.info.dtype, item.info.bytes = { unpack(entry.shape or {}) }, entry.dtype, entry.bytes
  item.info.expert = item.expert
  return item
end

--- Everything of a source.
-- @tparam File file
-- @tparam table tree of format.lua
-- @tparam table opts rename, filter
-- @treturn table {list = items {name, keys, leaf, info, target = keys; entry | value; role, expert of a declared
--   layer}, empty = list of the keys of empty tables, dropped, unchanged, views = names, declares = whether any group
--   says that it is a grouped layer}
function M.of(file, tree, opts)
  local items = { list = {}, empty = {}, dropped = {}, unchanged = {}, views = {}, declares = false }
  for i, view in ipairs(file.views) do items.views[i] = view.name end
  walk(tree, {}, function(keys, leaf)
    if not leaf then
      items.empty[#items.empty + 1] = keys
      return
    end
    local item = new_item(file, keys, leaf)
    items.declares = items.declares or leaf.layer ~= nil
    if not kept(opts.filter, item) then
      items.dropped[#items.dropped + 1] = item.name
      return
    end
    local new
    if opts.rename then
      new = renamed(opts.rename(item.name, item.info), item)
      if not new then items.unchanged[#items.unchanged + 1] = item.name end
    end
    item.target = new or keys
    items.list[#items.list + 1] = item
  end)
  return items
end

return M
