--- Arguments and errors: every error is raised at the first stack frame outside lua/mascon.
local M = {}

local here = debug.getinfo(1, "S").source:match("^(.*[/\\])") or "@"

-- Set by nn/module.lua: puts the path of the module that is being called before the message.
local context = function(message) return message end
function M.set_context(fn) context = fn end

--- Raises `message` at the user's line: the nearest caller that is not a file of this library.
function M.raise(message)
  message = context(message)
  local level = 2
  while true do
    local info = debug.getinfo(level, "S")
    if not info then
      error(message, 0)
    end
    if info.what ~= "C" and info.source:sub(1, #here) ~= here then
      error(message, level)
    end
    level = level + 1
  end
end
local raise = M.raise

--- The user's line as "file:line", for messages that refer back to it.
function M.user_line()
  local level = 2
  while true do
    local info = debug.getinfo(level, "Sl")
    if not info then
      return "an unknown line"
    end
    if info.what ~= "C" and info.source:sub(1, #here) ~= here then
      return ("%s:%d"):format(info.short_src, info.currentline)
    end
    level = level + 1
  end
end

--- A value as messages show it: strings quoted, tensors and tables by kind.
function M.show(v)
  if type(v) == "string" then
    return ("%q"):format(v)
  elseif type(v) == "table" then
    return rawget(v, "h") ~= nil and "a tensor" or "a table"
  end
  return tostring(v)
end
local show = M.show

local function is_integer(v)
  return type(v) == "number" and v == math.floor(v) and v >= -2 ^ 53 and v <= 2 ^ 53
end
M.is_integer = is_integer

--- Checks an integer in [low, high]; both may be nil.
function M.integer(what, v, low, high)
  if not is_integer(v) then
    raise(("%s: wanted an integer, got %s"):format(what, show(v)))
  end
  if (low and v < low) or (high and v > high) then
    raise(("%s: %d is out of range, wanted %s"):format(what, v,
      high and ("%d to %d"):format(low, high) or ("%d or more"):format(low)))
  end
  return v
end

--- Checks a number (NaN and infinities are numbers).
function M.number(what, v)
  if type(v) ~= "number" then
    raise(("%s: wanted a number, got %s"):format(what, show(v)))
  end
  return v
end

--- Checks that `fn` can be called: a function, or a table such as a module.
function M.callable(what, fn)
  local mt = type(fn) == "table" and getmetatable(fn)
  if type(fn) ~= "function" and not (type(mt) == "table" and mt.__call) then
    raise(("%s: wanted a function, got %s"):format(what, show(fn)))
  end
  return fn
end

--- `fn` as a method `name`: raises, rather than failing inside, when it is called as m.name() and not m:name().
function M.method(name, is_self, wanted, fn)
  return function(self, ...)
    if not is_self(self) then
      raise(("%s: wanted %s before the dot, got %s; call it with a colon, as in x:%s()"):format(name, wanted,
        show(self), name))
    end
    return fn(self, ...)
  end
end

-- What a spec entry may ask for: a type's name, or one of these.
local checks = {
  integer = is_integer,
  positive = function(v) return is_integer(v) and v > 0 end,
  natural = function(v) return is_integer(v) and v >= 0 end,
  any = function() return true end,
}
local wording = { positive = "a positive integer", natural = "an integer of 0 or more", integer = "an integer" }

local function wanted(spec)
  if type(spec) == "table" then
    local quoted = {}
    for i, v in ipairs(spec) do quoted[i] = show(v) end
    return "one of " .. table.concat(quoted, ", ")
  end
  return wording[spec] or ("a " .. spec)
end

local function fits(v, spec)
  if type(spec) == "table" then
    for _, choice in ipairs(spec) do
      if v == choice then return true end
    end
    return false
  end
  local check = checks[spec]
  if check then
    return check(v)
  end
  return type(v) == spec
end

local function known_keys(spec)
  local names = {}
  for k in pairs(spec) do names[#names + 1] = k end
  table.sort(names)
  return table.concat(names, ", ")
end

--- Checks a table of named options against `spec` and fills in the defaults; returns a new table.
-- spec: name -> { kind, default } | { kind, required = true }. `kind` is a Lua type name, "integer",
-- "positive", "natural", "any", a list of choices, or a function(v) -> boolean with `spec.want` as its wording.
-- nil (absent) and false are told apart. Unknown keys, wrong kinds and missing options are errors.
function M.options(what, given, spec)
  if given == nil then given = {} end
  if type(given) ~= "table" then
    raise(("%s: wanted a table of options, got %s"):format(what, show(given)))
  end
  local unknown = {}
  for k in pairs(given) do
    if spec[k] == nil then
      unknown[#unknown + 1] = tostring(k)
    end
  end
  if #unknown > 0 then
    table.sort(unknown)
    raise(("%s: unknown option %s; there are: %s"):format(what, table.concat(unknown, ", "), known_keys(spec)))
  end
  local out = {}
  for name, entry in pairs(spec) do
    local v = given[name]
    if v == nil then
      if entry.required then
        raise(("%s: option %s is missing, wanted %s"):format(what, name, entry.want or wanted(entry[1])))
      end
      out[name] = entry[2]
    else
      local kind = entry[1]
      local good
      if type(kind) == "function" then good = kind(v) else good = fits(v, kind) end
      if not good then
        raise(("%s: option %s is %s, wanted %s"):format(what, name, show(v), entry.want or wanted(kind)))
      end
      out[name] = v
    end
  end
  return out
end

return M
