--- Logger: one JSON object a line (JSON Lines), the record of a training run.
--
-- Keys of a line: `t` (unix seconds), `kind`, `step`, `tokens`, then the metrics by name in sorted order.
-- The first line has kind "start" and carries the configuration and the environment; a resumed run
-- appends to the file, with a "start" of its own. JSON has no non-finite numbers: they are the strings
-- "nan", "inf" and "-inf". Every line is flushed, so that a killed run loses none.
local json = require "dkjson"
local system = require "system"
local args = require "mascon.args"
local environment = require "mascon.train.environment"
local tensor = require "mascon.tensor"

local Logger = {}
Logger.__index = Logger

local KINDS = { "start", "step", "eval", "moe", "ckpt", "warn", "end" }
local FIRST_KEYS = { "t", "kind", "step", "tokens" }

local is_kind = {}
for _, kind in ipairs(KINDS) do is_kind[kind] = true end

local function json_number(v)
  if v ~= v then return "nan" end
  if v == math.huge then return "inf" end
  if v == -math.huge then return "-inf" end
  return v
end

-- A value as it can be written: numbers made finite, one-element tensors read, tables copied.
local function plain(name, v)
  local kind = type(v)
  if kind == "number" then return json_number(v) end
  if kind == "string" or kind == "boolean" then return v end
  if kind == "table" then
    if tensor.is_tensor(v) then
      local value = v:item()
      return type(value) == "number" and json_number(value) or value
    end
    local copy = {}
    for key, x in pairs(v) do copy[key] = plain(name .. "." .. tostring(key), x) end
    return copy
  end
  return args.raise(("logger: %s is a %s, wanted a number, string, boolean, table or "
    .. "one-element tensor"):format(name, kind))
end

-- Every key of a nested table in a fixed order: equal content gives equal lines.
local function sorted_keys(v, order, seen)
  local names = {}
  for key, x in pairs(v) do
    if type(key) == "string" and not seen[key] then
      seen[key] = true
      names[#names + 1] = key
    end
    if type(x) == "table" then sorted_keys(x, order, seen) end
  end
  for _, name in ipairs(names) do order[#order + 1] = name end
end

local function encode(line)
  local order, seen = {}, {}
  for _, key in ipairs(FIRST_KEYS) do seen[key] = true end
  sorted_keys(line, order, seen)
  table.sort(order)
  for i = #FIRST_KEYS, 1, -1 do table.insert(order, 1, FIRST_KEYS[i]) end
  return json.encode(line, { keyorder = order })
end

-- A run that was killed inside a write left a line without its end: the next one starts afresh.
local function ends_within_a_line(path)
  local file = io.open(path, "rb")
  if not file then return false end
  local size = file:seek("end")
  local torn = size > 0 and file:seek("set", size - 1) and file:read(1) ~= "\n"
  file:close()
  return torn
end

-- Writes and flushes; returns nil and the reason when the system refuses. Never compiled: a compiled flush
-- that fails is run again by LuaJIT's interpreter, finds the C buffer empty and reports success.
local function write_line(file, text)
  local ok, why = file:write(text, "\n")
  if not ok then return nil, why end
  return file:flush()
end
jit.off(write_line)

--- Opens a log and writes its "start" line.
-- @tparam table options `path`; `resume` (default false: an older file is replaced) appends; `config`, a
--   table of plain values; `clock`, a function that returns unix seconds
-- @raise when the file cannot be written
-- @usage local log = mc.train.Logger{path = "runs/a/log.jsonl", config = {lr = 1e-3}}
function Logger.new(options)
  local o = args.options("Logger", options, {
    path = { "string", required = true },
    resume = { "boolean", false },
    config = { "table", {} },
    clock = { "function", system.gettime },
  })
  local torn = o.resume and ends_within_a_line(o.path)
  local file, why = io.open(o.path, o.resume and "ab" or "wb")
  if not file then args.raise("Logger: " .. why) end
  local self = setmetatable({ path = o.path, _file = file, _clock = o.clock }, Logger)
  if torn then file:write("\n") end
  self:log("start", {
    resume = o.resume,
    config = next(o.config) and o.config or nil,
    environment = environment.facts(),
  })
  return self
end

--- Writes a line.
-- @tparam string kind start, step, eval, moe, ckpt, warn or end
-- @tparam table fields `step`, `tokens` and metrics: numbers, strings, booleans, one-element tensors,
--   or tables of them
-- @raise for another kind, a reserved key, a value that JSON cannot hold, and when the disk refuses
function Logger:log(kind, fields)
  if not is_kind[kind] then
    args.raise(("logger: kind is %s, wanted one of: %s"):format(
      args.show(kind), table.concat(KINDS, ", ")))
  end
  local line = {}
  for name, value in pairs(fields or {}) do
    if type(name) ~= "string" or name == "t" or name == "kind" then
      args.raise(("logger: a metric cannot be named %s"):format(args.show(name)))
    end
    line[name] = plain(name, value)
  end
  line.t, line.kind = self._clock(), kind
  if not self._file then args.raise("logger: " .. self.path .. " is closed") end
  local ok, why = write_line(self._file, encode(line))
  if not ok then args.raise(("logger: %s: %s"):format(self.path, why)) end
end

--- Closes the file; a second time is fine.
function Logger:close()
  if self._file then
    self._file:close()
    self._file = nil
  end
end

return Logger
