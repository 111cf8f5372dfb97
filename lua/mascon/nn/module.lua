--- Module: what holds parameters, buffers and other modules, in the order of assignment.
--
--     local Net = mc.nn.Module:extend("Net")
--     function Net:init(opts) self.fc = mc.nn.Linear{in_features = 4, out_features = 2} end
--     function Net:forward(x) return self.fc(x) end
--
-- Assigning an mc.nn.Parameter or a module registers it under that key. Fields live in a private table,
-- so that no assignment, first or later, can slip past the registration.
local args = require "mascon.args"
local tensor = require "mascon.tensor"
local packed = require "mascon.packed"
local autograd = require "mascon.autograd"

local raise = args.raise
local is_tensor = tensor.is_tensor

local Module = { __name = "Module" }
local methods = {}

-- -- classes -------------------------------------------------------------------------------------

local function is_module(v)
  return type(v) == "table" and not is_tensor(v) and rawget(v, "_fields") ~= nil
end

local function read_field(self, key)
  local v = rawget(self, "_fields")[key]
  if v ~= nil then return v end
  local cls = getmetatable(self)
  v = cls.methods[key]
  if v ~= nil then return v end
  local computed = cls.methods.__field
  return computed and computed(self, key)
end

local function is_parameter(v)
  return is_tensor(v) and rawget(v, "is_parameter") == true
end

-- Whether `target` is `m` or lies below it.
local function contains(m, target)
  if m == target then return true end
  for _, child in m:named_children() do
    if contains(child, target) then return true end
  end
  return false
end

-- Raises unless `key` can name a part of the state: a name in files, and no method's.
local function check_name(self, key)
  local name = getmetatable(self).name
  if type(key) == "string" and (key == "" or key:find(".", 1, true)) then
    raise(("%s: a field that holds parameters cannot be empty or have a dot in its name: %q"):format(name, key))
  elseif getmetatable(self).methods[key] ~= nil then
    raise(("%s: the field %s would hide the method of that name"):format(name, tostring(key)))
  end
end

local function register(self, key)
  if not rawget(self, "_known")[key] then
    check_name(self, key)
    rawget(self, "_known")[key] = true
    table.insert(rawget(self, "_order"), key)
  end
end

-- Parameters and modules are registered; tensors, in a plain table too, outlive any mc.scope.
local function own(self, key, v)
  if is_tensor(v) then
    v.kept = true
    if is_parameter(v) then register(self, key) end
  elseif is_module(v) then
    if contains(v, self) then
      raise(("%s: the module assigned to %s contains it"):format(getmetatable(self).name, tostring(key)))
    end
    register(self, key)
    rawset(v, "_label", tostring(key))
  elseif getmetatable(v) == nil then
    for _, x in pairs(v) do
      if is_module(x) or is_parameter(x) then
        raise(("%s: the table assigned to %s holds modules or parameters, which would not be registered; use "
          .. "mc.nn.ModuleList"):format(getmetatable(self).name, tostring(key)))
      elseif is_tensor(x) then
        x.kept = true
      end
    end
  end
end

local function write_field(self, key, v)
  local place = getmetatable(self).methods.__place
  if place then key = place(self, key, v) end
  if v ~= nil and rawget(self, "_known")[key] then -- what was saved under this name stays something to save
    local fits, wanted = is_parameter(v) or is_module(v), "mc.nn.Parameter(t), a module"
    if rawget(self, "_buffers")[key] then fits, wanted = is_tensor(v), "a tensor" end
    if not fits then
      raise(("%s: %s was registered, it cannot become %s; wanted %s or nil"):format(getmetatable(self).name,
        tostring(key), args.show(v), wanted))
    end
  end
  if type(v) == "table" then own(self, key, v) end
  rawget(self, "_fields")[key] = v
end

-- Keeps the frame of `call` on the stack, where an error finds it; a tail call would not.
local function pass(...) return ... end

local function call(self, ...)
  local invalid = rawget(self, "_fields")._invalid
  if invalid then
    raise(("%s: the module is invalid: %s; load it fully before use"):format(tostring(self), invalid))
  end
  return pass(self:forward(...))
end

--- Puts the way to the module that is running before an error message. It is read off the stack, so that neither a
-- foreign error nor a coroutine can leave a wrong one behind.
args.set_context(function(message)
  local labels, name, level = {}, nil, 2
  local info = debug.getinfo(level, "f")
  while info do
    if info.func == call then
      local _, self = debug.getlocal(level, 1)
      name = name or getmetatable(self).name
      labels[#labels + 1] = rawget(self, "_label")
    end
    level = level + 1
    info = debug.getinfo(level, "f")
  end
  if not name then return message end
  if message:sub(1, #name + 2) == name .. ": " then message = message:sub(#name + 3) end
  if #labels == 0 then return ("%s: %s"):format(name, message) end
  local way = labels[1]
  for i = 2, #labels do way = labels[i] .. "." .. way end
  return ("%s (%s): %s"):format(way, name, message)
end)

local function describe(self, indent)
  local cls = getmetatable(self)
  local extra = self.extra_repr and self:extra_repr() or ""
  local lines = {}
  for name, child in self:named_children() do
    lines[#lines + 1] = ("%s  (%s): %s"):format(indent, name, describe(child, indent .. "  "))
  end
  if #lines == 0 then return ("%s(%s)"):format(cls.name, extra) end
  return ("%s(%s\n%s\n%s)"):format(cls.name, extra, table.concat(lines, "\n"), indent)
end

local function make_class(name, base_methods)
  local cls = { name = name, methods = setmetatable({}, { __index = base_methods }) }
  cls.__index, cls.__newindex, cls.__call = read_field, write_field, call
  cls.__tostring = function(self) return describe(self, "") end
  return cls
end

-- A class as users see it: fields are methods, calling it makes an object.
local function face(cls)
  local proxy = {
    __index = function(_, k)
      if k == "extend" then
        return function(_, name)
          if type(name) ~= "string" then raise("Module:extend: wanted a class name") end
          return face(make_class(name, cls.methods))
        end
      end
      return cls.methods[k]
    end,
    __newindex = function(_, k, v) cls.methods[k] = v end,
    __call = function(_, ...)
      local self = setmetatable({ _fields = { training = true }, _order = {}, _known = {}, _buffers = {} }, cls)
      self:init(...)
      return self
    end,
    __tostring = function() return cls.name end,
  }
  return setmetatable({}, proxy)
end

function methods.init() end

function methods.forward(self)
  raise(("%s: the class has no forward"):format(getmetatable(self).name))
end

-- -- what it holds --------------------------------------------------------------------------------

--- mc.nn.Parameter(t, role): marks a tensor as a parameter; it requires a gradient. role: "weight", "bias", "norm" or
-- "embedding", by which optimizers group (default "weight").
function Module.Parameter(t, role)
  tensor.want_tensor("Parameter", t)
  if t.node then t = t:detach() end
  t.is_parameter, t.kept = true, true
  if not rawget(t, "group") then t.group = { role = role or "weight" } end
  return t:requires_grad_(true)
end

--- A tensor that belongs to the module's state but is not trained. persistent = false keeps it out of state dicts.
function methods.register_buffer(self, name, t, persistent)
  if type(name) ~= "string" then
    raise(("register_buffer: wanted a name, got %s"):format(args.show(name)))
  end
  if t ~= nil then
    tensor.want_tensor("register_buffer", t)
    t.kept = true
  end
  register(self, name)
  self._buffers[name] = { persistent = persistent ~= false }
  self._fields[name] = t
end

--- for name, child in m:named_children()
function methods.named_children(self)
  local order, fields, i = self._order, self._fields, 0
  return function()
    while true do
      i = i + 1
      local key = order[i]
      if key == nil then return nil end
      if is_module(fields[key]) then return tostring(key), fields[key] end
    end
  end
end

local function walk(self, prefix, list)
  list[#list + 1] = { prefix, self }
  for name, child in self:named_children() do
    walk(child, prefix == "" and name or prefix .. "." .. name, list)
  end
  return list
end

-- Iterates over a list of {a, b} pairs.
local function each(list)
  local i = 0
  return function()
    i = i + 1
    if list[i] then return list[i][1], list[i][2] end
  end
end

--- for name, module in m:named_modules(): m itself first, with the name "".
function methods.named_modules(self)
  return each(walk(self, "", {}))
end

--- All state, one entry per memory and name: {name, tensor, kind = "parameter" | "buffer", packed = {count, role,
-- layout} for packed parameters, whose name is the single layout's}. What checkpoints and optimizers work on.
function methods.slots(self)
  local list = {}
  for path, m in self:named_modules() do
    local prefix = path == "" and "" or path .. "."
    for _, key in ipairs(m._order) do
      local v = m._fields[key]
      local buffer = m._buffers[key]
      if is_tensor(v) and (is_parameter(v) or (buffer and buffer.persistent)) then
        list[#list + 1] = {
          name = prefix .. tostring(key), tensor = v, kind = is_parameter(v) and "parameter" or "buffer",
          packed = rawget(v, "_packed"),
        }
      end
    end
  end
  return list
end

--- Names this module could have but does not, with the reason: "experts.bias" -> "bias = false".
function methods.absent(self)
  local map = {}
  for path, m in self:named_modules() do
    if m.absent_names then
      for name, reason in pairs(m:absent_names()) do
        map[path == "" and name or path .. "." .. name] = reason
      end
    end
  end
  return map
end

--- for name, p in m:named_parameters(): in registration order, by the present layout; shared ones once.
function methods.named_parameters(self)
  local list, seen = {}, {}
  for _, slot in ipairs(self:slots()) do
    local p = slot.tensor
    if slot.kind == "parameter" and not seen[p] then
      seen[p] = true
      if slot.packed then
        for _, pair in ipairs(packed.named(slot.name, p)) do list[#list + 1] = pair end
      else
        list[#list + 1] = { slot.name, p }
      end
    end
  end
  return each(list)
end

--- The parameters as a list, in the order of named_parameters.
function methods.parameters(self)
  local list = {}
  for _, p in self:named_parameters() do list[#list + 1] = p end
  return list
end

--- fn(module) for this module and all below, children first. Returns self.
function methods.apply(self, fn)
  if type(fn) ~= "function" then raise("apply: wanted a function, got " .. args.show(fn)) end
  for _, child in self:named_children() do child:apply(fn) end
  fn(self)
  return self
end

function methods.train(self, on)
  for _, m in self:named_modules() do m._fields.training = on ~= false end
  return self
end
function methods.eval(self) return self:train(false) end

--- Forgets gradients: packed parameters as a whole; main_grad buffers are filled with zeros.
function methods.zero_grad(self)
  for _, slot in ipairs(self:slots()) do
    local p = slot.tensor
    if slot.kind == "parameter" then
      p.grad = nil
      if p.main_grad then
        p.main_grad:zero_()
        p.grad_added_to_main_grad = nil
      end
    end
  end
end

local function move(t, target)
  local moved = autograd.no_grad(function() return t:detach():to(target) end)
  if moved.h ~= t.h and moved:storage_id() ~= t:storage_id() then t:_adopt(moved) end
end

local TRAINABLE = { float64 = true, float32 = true, float16 = true, bfloat16 = true }

--- m:to("cuda"), m:to("bfloat16"), m:to{dtype =, device =}: in place, on the same parameter objects; integer buffers
-- keep their dtype. Returns m.
function methods.to(self, target)
  local o = { device = target }
  if type(target) == "table" then
    o = args.options("to", target, { dtype = { "string" }, device = { "string" } })
  elseif tensor.dtype_code[target] then
    o = { dtype = target }
  end
  if o.dtype and not TRAINABLE[o.dtype] then
    raise(("to: a module cannot be %s; wanted float64, float32, float16 or bfloat16"):format(args.show(o.dtype)))
  elseif o.device ~= nil or not o.dtype then
    tensor.parse_device("to", o.device)
  end
  local only_device = { device = o.device }
  for _, m in self:named_modules() do
    for _, key in ipairs(m._order) do
      local v = m._fields[key]
      if is_tensor(v) then
        local grad = rawget(v, "_grad")
        move(v, v:is_floating_point() and o or only_device)
        if grad then
          rawset(v, "_grad", nil)
          v.grad = grad:to { dtype = v.dtype, device = v.device }
        end
        if v.main_grad then
          move(v.main_grad, { dtype = v.dtype == "float64" and "float64" or "float32", device = v.device })
        end
      end
    end
  end
  return self
end

-- -- state dicts --------------------------------------------------------------------------------------

--- name -> tensor for all parameters and persistent buffers, in order, sharing memory with the module.
function methods.state_dict(self)
  return require("mascon.checkpoint.state").state_dict(self:slots(), self)
end

--- Loads a nested or dotted table of tensors in either layout; returns a report or raises one error that lists every
-- problem and has changed nothing. opts: strict = true, assign = false | true | "strict", verify_duplicates = false,
-- allow_partial_experts = false.
function methods.load_state_dict(self, sd, opts)
  local state = require "mascon.checkpoint.state"
  return state.load(self:slots(), self:absent(), sd, opts, getmetatable(self).name, self)
end

for name, fn in pairs(methods) do
  methods[name] = args.method(name, is_module, "a module", fn)
end

Module.Module = face { name = "Module", methods = methods }
Module.is_module = is_module
Module.is_parameter = is_parameter

return Module
