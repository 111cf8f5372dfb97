--- Sequential and ModuleList: modules by number. Positions are 1-based in Lua; names in state dicts are
-- 0-based ("0.weight"), as in every existing checkpoint.
local args = require "mascon.args"
local module = require "mascon.nn.module"

local raise, show = args.raise, args.show

local function add(self, what, m)
  if not module.is_module(m) then
    raise(("%s: entry %d is %s, wanted a module"):format(what, self.count + 1, show(m)))
  end
  self[tostring(self.count)] = m
  self.count = self.count + 1
  return self
end

-- list[i], 1-based.
local function at(self, key)
  if type(key) ~= "number" then return nil end
  return self._fields[tostring(key - 1)]
end

-- list[i] = m replaces a module; the other keys are fields.
local function place(self, key, m)
  if type(key) ~= "number" then return key end
  local what = getmetatable(self).name
  args.integer(what .. "[i] = m: i", key, 1, self.count)
  if not module.is_module(m) then
    raise(("%s: entry %d is %s, wanted a module"):format(what, key, show(m)))
  end
  return tostring(key - 1)
end

-- for i, m in list:each() do
local function each(self)
  local i = 0
  return function()
    if i < self.count then
      i = i + 1
      return i, self[i]
    end
  end
end

local Sequential = module.Module:extend "Sequential"

--- mc.nn.Sequential(m1, m2, ...): each gets what the one before returned. seq[1] is the first; seq:add(m) appends.
function Sequential:init(...)
  self.count = 0
  for i = 1, select("#", ...) do add(self, "Sequential", (select(i, ...))) end
end

local function run(self, i, ...)
  if i > self.count then return ... end
  return run(self, i + 1, self[i](...))
end

function Sequential:forward(...) return run(self, 1, ...) end

--- Appends a module. Returns the container.
function Sequential:add(m) return add(self, "Sequential", m) end
function Sequential:size() return self.count end
Sequential.each, Sequential.__field, Sequential.__place = each, at, place

local ModuleList = module.Module:extend "ModuleList"

--- mc.nn.ModuleList{m1, m2, ...}: holds modules; calling them is up to you. list[1] is the first; list:append(m),
-- list:size(), and `for i, m in list:each() do`.
function ModuleList:init(list)
  if list ~= nil and (type(list) ~= "table" or module.is_module(list)) then
    raise("ModuleList: wanted a table of modules, got " .. show(list))
  end
  self.count = 0
  for i = 1, #(list or {}) do add(self, "ModuleList", list[i]) end
end

--- Appends a module. Returns the list.
function ModuleList:append(m) return add(self, "ModuleList", m) end
function ModuleList:size() return self.count end
ModuleList.each, ModuleList.__field, ModuleList.__place = each, at, place

return { Sequential = Sequential, ModuleList = ModuleList }
