--- A tree of tables into a file: the one routine behind mc.save and mc.checkpoint.convert.
--
--   write.tree(writer, entries)      writer: of hdf5.create; not committed here
--
-- A table is a list of entries, in the order of the file, each {key = string | integer, and one of
--   value = number | boolean | string | int64 cdata
--   entries = list                      a table in the table
--   dataset = fn(path), id = any | nil  fn makes the dataset at path, or returns the path of an equal one, of which
--                                       this is a second name; equal ids are one dataset, too
--   stack = {key, ...}                  a view over these keys of the same table
--   select = key, position = i          a view of expert i (0-based) of that key
-- }. A dataset may have facts = fn(leaf name) -> table | nil: what its group says about the layer it is a part of.
-- Views are left out where their names are taken. How names and values lie in the file is format.lua's.
local args = require "mascon.args"
local format = require "mascon.checkpoint.format"
local lib = require "mascon.lib"
local names = require "mascon.checkpoint.plan_names"

local M = {}

local Tree = {}
Tree.__index = Tree

-- The path of a key below the group at `base`, the last part of its name (nil: escaped), and the group's path.
-- taken: path -> "leaf" or "part"; a part may be shared by keys of one table, all else stands alone.
local function place(base, taken, key)
  local parts = format.parts(key)
  if parts then
    local path, free = base, true
    for i, part in ipairs(parts) do
      path = path .. "/" .. part
      local use = taken[path]
      if use and (i == #parts or use ~= "part") then free = false end
    end
    if free then
      path = base
      for i, part in ipairs(parts) do
        path = path .. "/" .. part
        if i < #parts then taken[path] = "part" end
      end
      taken[path] = "leaf"
      return path, parts[#parts], path:sub(1, #path - #parts[#parts] - 1)
    end
  end
  return base .. "/" .. format.escape(key), nil, base
end

-- Returns whether a dataset was made, rather than a second name of one.
function Tree:dataset(path, entry)
  local id = entry.id
  local first = id ~= nil and self.written[id]
  if first then
    self.writer:link(path, first)
    return false
  end
  if id ~= nil then self.written[id] = path end
  local equal = entry.dataset(path)
  if equal then self.writer:link(path, equal) end
  return not equal
end

-- What a group says about a layer. Of two parts that do not agree the first is believed.
function Tree:note_layer(group_path, facts)
  local had = self.layers[group_path]
  if not had then
    self.layers[group_path] = facts
    self.layer_paths[#self.layer_paths + 1] = group_path
    return
  end
  for name, value in pairs(facts) do
    if had[name] == nil then had[name] = value end
  end
end

local function is_small(value)
  return type(value) ~= "string" or #value <= format.LONG and not value:find("\0", 1, true)
end

-- More than a few values lie in one dataset; but JSON would round the integers that are no Lua numbers.
function Tree:small_values(path, list)
  local attributes = list
  if #list > format.MANY then
    local plain = {}
    attributes = {}
    for _, pair in ipairs(list) do
      local to = type(pair[2]) == "cdata" and attributes or plain
      to[#to + 1] = pair
    end
    local values_path = (path == "/" and "" or path) .. "/" .. format.VALUES
    local text = format.encode_values(plain)
    self.json = self.json + #text
    if self.json > format.MAX_JSON then
      args.raise(("save: %s has %d small values, with which the file has over %.0f bytes of JSON; keep them in a "
        .. "tensor or in one string"):format(path, #plain, format.MAX_JSON))
    end
    self.writer:bytes(values_path, text)
    self.writer:attr(values_path, "kind", "json")
  end
  for _, pair in ipairs(attributes) do self.writer:attr(path, format.attribute_name(pair[1]), pair[2]) end
end

-- A view stands only beside what it shows, under a plain name.
function Tree:view(base, taken, at, entry)
  local sources = entry.stack or { entry.select }
  local paths = {}
  for i, key in ipairs(sources) do
    paths[i] = at[key]
    if not paths[i] then return end
  end
  local parts = format.parts(entry.key)
  if not parts then return end
  local path, group_path = base, base
  for i, part in ipairs(parts) do
    path, group_path = path .. "/" .. part, path
    local use = taken[path]
    if use and (i == #parts or use ~= "part") then return end
  end
  if paths[1]:match("^(.*)/") ~= group_path then return end
  taken[path] = "leaf"
  if entry.stack then
    self.writer:view_stack(path, paths)
  else
    self.writer:view_select(path, paths[1], entry.position)
  end
end

function Tree:table(path, entries)
  local writer, base = self.writer, path == "/" and "" or path
  writer:group(path)
  writer:attr(path, "table", true)
  local small, taken, at, views = {}, {}, {}, {}
  for _, entry in ipairs(entries) do
    local key, value = entry.key, entry.value
    if entry.stack or entry.select then
      views[#views + 1] = entry
    elseif value ~= nil and is_small(value) then
      small[#small + 1] = { key, value }
    else
      local where, leaf, group_path = place(base, taken, key)
      local is_new = true
      if value ~= nil then
        writer:bytes(where, value)
        writer:attr(where, "kind", "text")
      elseif entry.entries then
        self:table(where, entry.entries)
      else
        is_new = self:dataset(where, entry)
        at[key] = leaf and where
        local facts = leaf and entry.facts and entry.facts(leaf)
        if facts then self:note_layer(group_path == "" and "/" or group_path, facts) end
      end
      if not leaf and is_new then writer:attr(where, "key", (tostring(key):gsub("%z", "?"))) end
    end
  end
  for _, entry in ipairs(views) do self:view(base, taken, at, entry) end
  self:small_values(path, small)
end

--- The keys of a table in the order of the file: integers, then strings, so that `w10` follows `w9`.
function M.order(keys)
  local numbers, strings = {}, {}
  for _, key in ipairs(keys) do
    local list = type(key) == "number" and numbers or strings
    list[#list + 1] = key
  end
  table.sort(numbers)
  for _, key in ipairs(names.sort(strings)) do numbers[#numbers + 1] = key end
  return numbers
end

--- Writes all of a file but the commit.
-- @tparam Writer writer
-- @tparam {table,...} entries the outermost table, see above
function M.tree(writer, entries)
  local tree = setmetatable({ writer = writer, written = {}, layers = {}, layer_paths = {}, json = 0 }, Tree)
  writer:attr("/", "format", format.FORMAT)
  writer:attr("/", "format_version", format.VERSION)
  writer:attr("/", "mascon_version", lib.version)
  tree:table("/", entries)
  for _, path in ipairs(tree.layer_paths) do
    local facts, list = tree.layers[path], {}
    for name in pairs(facts) do list[#list + 1] = name end
    table.sort(list)
    for _, name in ipairs(list) do writer:attr(path, name, facts[name]) end
  end
end

return M
