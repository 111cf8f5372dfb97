--- Single-inheritance classes: `local Net = class("Net", Base)`; `Net(...)` makes an object and calls init.
local M = {}

local function construct(cls, ...)
  local object = cls.__new and cls.__new(cls) or setmetatable({}, cls)
  object:init(...)
  return object
end

--- A class with `name`; methods are looked up in the class, then in `base`. Metamethods are inherited.
function M.class(name, base)
  local cls = {}
  for k, v in pairs(base or {}) do
    if type(k) == "string" and k:sub(1, 2) == "__" and k ~= "__name" then cls[k] = v end
  end
  cls.__name = name
  cls.__index = cls
  if base and base.__index ~= base then
    cls.__index = base.__index -- a base with computed fields keeps its rule
  end
  cls.base = base
  cls.init = cls.init or (base and base.init) or function() end
  return setmetatable(cls, { __index = base, __call = construct, __tostring = function() return name end })
end

--- true when `object` was made by `cls` or a class derived from it.
function M.is_a(object, cls)
  local c = type(object) == "table" and getmetatable(object)
  while type(c) == "table" do
    if c == cls then return true end
    c = rawget(c, "base")
  end
  return false
end

return M
