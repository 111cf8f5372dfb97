--- The checkpoint format, version 1: how Lua tables lie in a file, in both directions.
--
-- A Lua table is a group with the attribute `table = true`; its tensors are datasets at the path that
-- the dots of their keys give, so groups without the mark are only parts of keys. Its small values
-- are attributes. Text over LONG bytes is a uint8 dataset with `kind = "text"`; more than MANY small
-- values are one, named #values, with `kind = "json"`. A view (views.lua) is no content.
-- A name is the key as it is; "#12" for the number 12; "%" and the key with all but letters, digits, "_"
-- and "-" percent-encoded for every other key (escaped): then the object also has the attribute `key`.
local dkjson = require "dkjson"
local args = require "mascon.args"

local raise = args.raise

local M = {}

M.FORMAT, M.VERSION = "mascon", 1
M.LONG = 1024
M.MANY = 32
M.VALUES = "#values"
M.MAX_JSON = 2 ^ 21 -- bytes in one file: as Lua values they take thirty times as much

-- Attributes of groups that are ours: a small value under such a key is escaped.
local RESERVED = {
  format = true, format_version = true, mascon_version = true, table = true, key = true, type = true,
  num_gemms = true, in_features = true, out_features = true, weight_layout = true, bias_layout = true,
  optimizer_state = true,
}
local LAYER_FACTS = { "type", "num_gemms", "in_features", "out_features" }
M.LAYER_FACTS = LAYER_FACTS

-- Bounds of the writer (core/io/h5.h), with room for the groups around a key.
local MAX_PARTS, MAX_NAME = 20, 1000
M.MAX_DEPTH = 32

-- ---------------------------------------------------------------- names

local function escape(key)
  return "%" .. key:gsub("[^%w_-]", function(c) return ("%%%02X"):format(c:byte()) end)
end
M.escape = escape

local function unescape(name)
  return (name:sub(2):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function is_plain(name)
  return name ~= "" and #name <= MAX_NAME and not name:find("^[#%%]") and not name:find("[%c]")
end

--- The name of a small value's attribute.
function M.attribute_name(key)
  if type(key) == "number" then return ("#%d"):format(key) end
  if is_plain(key) and not RESERVED[key] then return key end
  return escape(key)
end

--- The path of a key below its table's group, as a list of names, or nil when it must be escaped.
function M.parts(key)
  if type(key) == "number" then return { ("#%d"):format(key) } end
  local parts = {}
  for part in (key .. "."):gmatch("(.-)%.") do
    if not is_plain(part) or part:find("/", 1, true) then return nil end
    parts[#parts + 1] = part
  end
  if #parts > MAX_PARTS or #key > MAX_NAME then return nil end
  return parts
end

--- The key behind a name directly below a table's group, or in its list of attributes.
local function decode(name)
  local first = name:byte(1)
  if first == 35 then -- "#"
    return name:match("^#%-?%d+$") and tonumber(name:sub(2)) or nil
  elseif first == 37 then -- "%"
    return unescape(name)
  end
  return name
end

-- ---------------------------------------------------------------- many small values

-- JSON has no word for what is not finite: 1e999 reads as infinity everywhere, NaN is null as in JavaScript.
local function json_value(value)
  if value ~= value then return "null" end
  if value == math.huge then return "1e999" end
  if value == -math.huge then return "-1e999" end
  if type(value) == "number" then return ("%.17g"):format(value) end
  if type(value) == "boolean" then return tostring(value) end
  return dkjson.quotestring(value)
end

--- JSON text of a list of {key, value} in its order; exact for every number.
function M.encode_values(list)
  local lines = {}
  for i, pair in ipairs(list) do
    lines[i] = dkjson.quotestring(M.attribute_name(pair[1])) .. ": " .. json_value(pair[2])
  end
  return "{\n" .. table.concat(lines, ",\n") .. "\n}\n"
end

-- ---------------------------------------------------------------- the tree of a file

local function new_node(path, name)
  return { is_node = true, path = path, name = name, keys = {}, values = {}, layers = {} }
end

-- The dotted name of a key of a table.
local function dotted(node, key)
  return node.name == "" and tostring(key) or ("%s.%s"):format(node.name, tostring(key))
end

local function put(file, node, key, value, entry)
  if key == nil then
    raise(("%s: '%s' has a name that stands for no key"):format(file.path, entry.path))
  end
  if node.values[key] ~= nil then
    raise(("%s: '%s' is the second entry for the key '%s'"):format(file.path, entry.path, tostring(key)))
  end
  node.keys[#node.keys + 1] = key
  node.values[key] = value
end

local IS_LAYOUT = { single = true, per_expert = true }

local function size_or_nil(value) return args.is_integer(value) and value >= 0 and value or nil end

-- The facts of a grouped layer that a group records, or nil. What cannot be true is not believed.
local function layer_of(attrs)
  if type(attrs.type) ~= "string" or not args.is_integer(attrs.num_gemms) or attrs.num_gemms < 1 then return nil end
  return { type = attrs.type, num_gemms = attrs.num_gemms, in_features = size_or_nil(attrs.in_features),
    out_features = size_or_nil(attrs.out_features), optimizer_state = attrs.optimizer_state == true or nil,
    weight_layout = IS_LAYOUT[attrs.weight_layout] and attrs.weight_layout,
    bias_layout = IS_LAYOUT[attrs.bias_layout] and attrs.bias_layout }
end

-- The small values of a table. In other people's files an attribute yields to a child of its name.
local function put_attributes(file, node, entry, own)
  local sorted = {}
  for name in pairs(entry.attrs) do sorted[#sorted + 1] = name end
  table.sort(sorted)
  for _, name in ipairs(sorted) do
    local value = { value = entry.attrs[name], entry = entry }
    if own then
      if not RESERVED[name] then put(file, node, decode(name), value, entry) end
    elseif node.values[name] == nil then
      put(file, node, name, value, entry)
    end
  end
end

local function put_json(file, node, entry)
  file.json = (file.json or 0) + entry.bytes
  if file.json > M.MAX_JSON then
    raise(("%s: '%s': more than %.0f bytes of JSON in one file"):format(file.path, entry.path, M.MAX_JSON))
  end
  -- deep nesting, which no writer makes, overflows the decoder's stack
  local ok, found, _, problem = pcall(dkjson.decode, file:text(entry), 1, 0 / 0)
  if not ok or type(found) ~= "table" then
    raise(("%s: '%s' is damaged: %s"):format(file.path, entry.path,
      not ok and "its JSON is nested too deeply" or tostring(problem or "no JSON object")))
  end
  for name, value in pairs(found) do
    if type(name) ~= "string" or type(value) == "table" then
      raise(("%s: '%s' is damaged: wanted one JSON object of numbers, strings and booleans"):format(file.path,
        entry.path))
    end
    put(file, node, decode(name), { value = value, entry = entry }, entry)
  end
end

--- Whether a file is of our format; raises for a version from the future.
function M.is_own(file)
  local attrs = file.entries[1].attrs
  if attrs.format ~= M.FORMAT then return false end
  local version = attrs.format_version
  if not args.is_integer(version) or version < 1 then
    raise(("%s: damaged: its format_version is %s"):format(file.path, tostring(version)))
  elseif version > M.VERSION then
    raise(("%s: it has format version %d, written by mascon %s; this is mascon %s, which reads up to version %d")
      :format(file.path, version, tostring(attrs.mascon_version), require("mascon.lib").version, M.VERSION))
  end
  return true
end

local function split_path(path)
  local parent, name = path:match("^(.*)/([^/]+)$")
  return parent == "" and "/" or parent, name
end

--- The tables of a file, without any tensor's bytes. Sets file.views: a list of {name = dotted name, entry}, of virtual
-- datasets, and of views in files of ours that another tool has made real.
-- @treturn table node {is_node, path, name, keys = list, values = {key = node | leaf}, layers}; a leaf is {value=}
--   or {entry=, text=|nil, layer = facts|nil, leaf = last name}
function M.tree(file)
  local own = M.is_own(file)
  local root = new_node("/", "")
  file.views = {}
  local places, layers = { ["/"] = { node = root, prefix = "" } }, {}
  for i, entry in ipairs(file.entries) do
    local attrs = entry.attrs
    if i == 1 then
      layers["/"] = own and layer_of(attrs)
    else
      local parent, name = split_path(entry.path)
      local place = places[parent]
      local key
      if not own then
        key = name
      elseif place.prefix == "" then
        key = decode(name)
      else
        key = place.prefix .. name
      end
      if entry.group then
        layers[entry.path] = own and layer_of(attrs)
        if own and not attrs.table then
          places[entry.path] = { node = place.node, prefix = place.prefix .. name .. "." }
        else
          local node = new_node(entry.path, dotted(place.node, key))
          put(file, place.node, key, node, entry)
          places[entry.path] = { node = node, prefix = "" }
        end
      elseif entry.view or own and attrs.kind == "view" then
        table.insert(file.views, { name = dotted(place.node, key), entry = entry })
      elseif own and attrs.kind == "json" then
        put_json(file, place.node, entry)
      else
        -- four fields where there is no more to say: tables grow by doubling, and there may be 100,000
        local leaf = { entry = entry, layer = layers[parent] or nil, group_path = parent, leaf = name }
        if own and attrs.kind == "text" then leaf.text = true end
        put(file, place.node, key, leaf, entry)
      end
    end
  end
  for _, entry in ipairs(file.entries) do
    local place = entry.group and places[entry.path]
    if place and place.prefix == "" then put_attributes(file, place.node, entry, own) end
  end
  return root
end

return M
