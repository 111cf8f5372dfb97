--- mc.save: nested tables of tensors, numbers, strings and booleans into one HDF5 file, whole or not at all.
--
-- How tables lie in the file is format.lua's; this walks the object. Keys go out in numeric-aware order, so
-- equal content gives equal files. Tensors that are the very same memory become one dataset with two names.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local format = require "mascon.checkpoint.format"
local hdf5 = require "mascon.checkpoint.hdf5"
local layout = require "mascon.checkpoint.layout"
local lib = require "mascon.lib"
local names = require "mascon.checkpoint.plan_names"
local tensor = require "mascon.tensor"

local C = lib.C
local raise, show = args.raise, args.show
local is_tensor = tensor.is_tensor

local LAYOUTS = { "as_is", "single", "per_expert" }
local SPEC = { layout = { LAYOUTS, "as_is" } }

local function where_text(where, key)
  return where == "" and tostring(key) or where .. "." .. tostring(key)
end

-- ---------------------------------------------------------------- checks before anything is written

local check_table

local function check_value(what, value, open, depth)
  local kind = type(value)
  if kind == "number" or kind == "boolean" or kind == "string" then return end
  if kind ~= "table" then
    raise(("save: %s is a %s; wanted tensors, numbers, strings, booleans and tables of them"):format(what, kind))
  end
  if is_tensor(value) then
    tensor.want_tensor("save: " .. what, value)
    return
  end
  if type(value.state_dict) == "function" then
    raise(("save: %s is a module or optimizer; save its :state_dict()"):format(what))
  end
  check_table(what, value, open, depth + 1)
end

check_table = function(where, value, open, depth)
  if open[value] then raise(("save: %s contains itself"):format(where == "" and "the object" or where)) end
  if depth > format.MAX_DEPTH then
    raise(("save: %s lies more than %d tables deep"):format(names.show(where), format.MAX_DEPTH))
  end
  open[value] = true
  for key, entry in pairs(value) do
    if type(key) ~= "string" and not args.is_integer(key) then
      raise(("save: %s has the key %s; wanted strings and integers"):format(where == "" and "the object" or where,
        show(key)))
    end
    check_value(where_text(where, key), entry, open, depth)
  end
  open[value] = nil
end

-- ---------------------------------------------------------------- one table

-- Entries {key, value} of a table: numbers first, then strings, each in numeric-aware order.
local function sorted(entries)
  local numbers, strings, by_key = {}, {}, {}
  for _, entry in ipairs(entries) do
    local list = type(entry[1]) == "number" and numbers or strings
    list[#list + 1] = entry[1]
    by_key[entry[1]] = entry
  end
  table.sort(numbers)
  names.sort(strings)
  local result = {}
  for _, list in ipairs { numbers, strings } do
    for _, key in ipairs(list) do result[#result + 1] = by_key[key] end
  end
  return result
end

local Saver = {}
Saver.__index = Saver

-- A number that two tensors share when they are the same elements in the same order.
local function identity(t)
  return table.concat({ t:storage_id(), tostring(C.mc_tensor_storage_offset(t.h)), t.dtype,
    names.shape(t:shape()), names.shape(t:stride()) }, ":")
end

-- The path of a key below the group at `base`, and whether it is an escaped one. taken: path -> "leaf", "table" or
-- "part"; a part may be shared by keys of one table, all else stands alone.
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

function Saver:tensor(path, t)
  local id = t:numel() > 0 and identity(t)
  local first = id and self.written[id]
  if first then
    self.writer:link(path, first)
    return false
  end
  if id then self.written[id] = path end
  self.writer:tensor(path, t:contiguous())
  return true
end

-- What a group says about a layer; its parts must agree, else the group says nothing of that part.
function Saver:note_layer(group_path, facts)
  local had = self.layers[group_path]
  if not had then
    self.layers[group_path] = facts
    self.layer_paths[#self.layer_paths + 1] = group_path
    return
  end
  for name, value in pairs(facts) do had[name] = had[name] == nil and value or had[name] end
end

local function is_small(value)
  local kind = type(value)
  return kind == "number" or kind == "boolean"
    or kind == "string" and #value <= format.LONG and not value:find("\0", 1, true)
end

function Saver:small_values(path, list)
  if #list > format.MANY then
    local values_path = (path == "/" and "" or path) .. "/" .. format.VALUES
    self.writer:bytes(values_path, format.encode_values(list))
    self.writer:attr(values_path, "kind", "json")
    return
  end
  for _, pair in ipairs(list) do self.writer:attr(path, format.attribute_name(pair[1]), pair[2]) end
end

function Saver:table(path, value)
  local writer = self.writer
  local base = path == "/" and "" or path
  writer:group(path)
  writer:attr(path, "table", true)
  local entries, small = {}, {}
  for key, entry in pairs(value) do entries[#entries + 1] = { key, entry } end
  entries = sorted(layout.arrange(sorted(entries), self.layout))
  local taken = {}
  for _, pair in ipairs(entries) do
    local key, entry = pair[1], pair[2]
    if is_small(entry) then
      small[#small + 1] = pair
    else
      local at, leaf, group_path = place(base, taken, key)
      local is_new = true
      if is_tensor(entry) then
        is_new = self:tensor(at, entry)
        local facts = leaf and layout.facts(entry, leaf)
        if facts then self:note_layer(group_path == "" and "/" or group_path, facts) end
      elseif type(entry) == "string" then
        writer:bytes(at, entry)
        writer:attr(at, "kind", "text")
      else
        self:table(at, entry)
      end
      if not leaf and is_new then writer:attr(at, "key", (tostring(key):gsub("%z", "?"))) end
    end
  end
  self:small_values(path, small)
end

local function write(self, object)
  self.writer:attr("/", "format", format.FORMAT)
  self.writer:attr("/", "format_version", format.VERSION)
  self.writer:attr("/", "mascon_version", lib.version)
  self:table("/", object)
  for _, path in ipairs(self.layer_paths) do
    local facts, list = self.layers[path], {}
    for name in pairs(facts) do list[#list + 1] = name end
    table.sort(list)
    for _, name in ipairs(list) do self.writer:attr(path, name, facts[name]) end
  end
  self.writer:commit()
end

--- Saves an object into one file: complete at `path`, or an error and no change there.
-- @tparam string path
-- @tparam table object nested tables (keys: strings or integers) of tensors of any dtype and device, numbers,
--   strings and booleans. Integral numbers up to 2^53 are stored as int64, others as float64.
-- @tparam table|nil opts layout = "as_is" | "single" | "per_expert": the names of packed parameters in the file;
--   an optimizer's arrays are stacked in each of them
-- @raise at the user's line: what cannot be saved, by its key; the system's reason when writing fails
local function save(path, object, opts)
  opts = args.options("save", opts, SPEC)
  hdf5.check_path("save", path)
  if type(object) ~= "table" or is_tensor(object) then
    raise(("save: wanted a table of what to save, got %s"):format(show(object)))
  end
  if type(object.state_dict) == "function" then
    raise("save: the object is a module or optimizer; save a table with its :state_dict(), as {model = m:state_dict()}")
  end
  check_table("", object, {}, 0)
  local saver = setmetatable({ writer = hdf5.create(path), layout = opts.layout, written = {}, layers = {},
    layer_paths = {} }, Saver)
  local ok, err = pcall(autograd.no_grad, write, saver, object)
  if not ok then
    saver.writer:discard()
    error(err, 0)
  end
end

return { save = save }
