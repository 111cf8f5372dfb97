--- Optimizer: what SGD, Adam and AdamW share: groups, state on packed bases, steps, and their state dicts.
--
-- State belongs to a base, never to a member, so a layout changes no bit of training and can change at any time; only
-- where experts differ in group or are frozen are member slices stepped on their own. All that share a device and a
-- group are stepped in one call. The step count and learning rates are device tensors. Hyper-parameters lie in
-- one-element tensors of the CPU, so that a load can write them like any other state.
--
-- A step may be recorded in a graph (mc.cuda.graph), after one that was not: the first makes the state. Each replay
-- then adds 1 to the step count on the device and reads the learning rate from there, and a schedule goes on by
-- opt:set_lr(schedule(i)) before replay i, which writes that tensor. The other numbers of a group (betas, eps, weight
-- decay) are recorded as they are; when they change, by a load for one, record again.
--
-- A class gives: what (its name), spec (constructor options), hyper_options (those that a group may have too), hyper
-- (names of a group's numbers, in order), flatten (options -> those numbers), buffers(self) (names of the state
-- arrays), moment_dtype(self, param) (their dtype), and update(self, batch, values, lr, count, scale): batch.n
-- parameters, lists batch.param, .grad, .master (false for none) and one for each buffer.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local class = require "mascon.class"
local create = require "mascon.create"
local groups = require "mascon.optim.groups"
local lib = require "mascon.lib"
local packed = require "mascon.packed"
local tensor = require "mascon.tensor"

local C, check = lib.C, lib.check
local raise = args.raise

local Optimizer = class.class "Optimizer"

-- -- options ---------------------------------------------------------------------------------------

local function number_tensor(value)
  return autograd.no_grad(function()
    local t = create.full({ 1 }, value, { dtype = "float64", device = "cpu" })
    t.kept = true
    return t
  end)
end

local GROUP_KEYS = { params = { "any", required = true }, match = { "string" }, roles = { "table" } }

-- A group's own options over the optimizer's, as numbers by name.
local function group_values(self, given, defaults)
  local spec = {}
  for name, entry in pairs(GROUP_KEYS) do spec[name] = entry end
  for name in pairs(self.hyper_options) do spec[name] = { self.spec[name][1], want = self.spec[name].want } end
  local own = args.options(self.what .. ": group", given, spec)
  local merged = {}
  for name in pairs(self.hyper_options) do
    if own[name] ~= nil then merged[name] = own[name] else merged[name] = defaults[name] end
  end
  return self:flatten(merged)
end

function Optimizer:init(opts)
  local spec = { params = { "any", required = true, want = "a module, a list of parameters, or a list of groups" },
    master_weights = { "boolean", false } }
  for name, entry in pairs(self.spec) do spec[name] = entry end
  local o = args.options(self.what, opts, spec)
  self.options, self.master_weights = o, o.master_weights
  local given = groups.list(o.params)
  self.groups = {}
  for g, group in ipairs(given) do
    local values = group_values(self, group, o)
    local holders = {}
    for _, name in ipairs(self.hyper) do holders[name] = number_tensor(values[name]) end
    -- set_lr keeps the ratio of a group's learning rate to the optimizer's
    local ratio = o.lr ~= 0 and values.lr / o.lr or 1
    self.groups[g] = { holders = holders, values = values, versions = {}, lr_ratio = ratio }
  end
  self.entries = groups.sort(self.what, given)
  self.device = self.entries[1].param.device
  self.step_count = create.zeros(1, { dtype = "float32", device = self.device })
  self.step_count.kept = true
  self.lr_tensors = {} -- device -> group -> float32 [1]
end

-- Raises while a graph is recorded: its replays would all do `what` again.
local function once(self, what, instead)
  if C.mc_graph_recording() == 0 then return end
  raise(("%s: a graph is being recorded, and each of its replays would %s again; %s"):format(self.what, what, instead))
end

-- -- numbers -----------------------------------------------------------------------------------------

-- The numbers of a group; read again where a load or set_lr wrote them.
local function values_of(group, names)
  for _, name in ipairs(names) do
    local t = group.holders[name]
    local version = t:version()
    if group.versions[name] ~= version then
      group.versions[name] = version
      group.values[name] = t:item()
    end
  end
  return group.values
end

local function lr_tensor(self, g, device, lr)
  local of_device = self.lr_tensors[device]
  if not of_device then
    of_device = {}
    self.lr_tensors[device] = of_device
  end
  local entry = of_device[g]
  if not entry or entry.value ~= lr then
    once(self, "set the learning rate", "step once before, and set the rate before a replay")
  end
  if not entry then
    entry = { tensor = create.zeros(1, { dtype = "float32", device = device }) }
    entry.tensor.kept = true
    of_device[g] = entry
  end
  if entry.value ~= lr then
    check(C.mc_fill(entry.tensor.h, lr))
    entry.value = lr
  end
  return entry.tensor
end

-- Brings the learning rate of a group to the devices that have used it.
local function upload_lr(self, g)
  for device, of_device in pairs(self.lr_tensors) do
    if of_device[g] then lr_tensor(self, g, device, values_of(self.groups[g], self.hyper).lr) end
  end
end

--- Sets the learning rate from the next step on; groups with one of their own keep its ratio to the optimizer's. A
-- graph that has recorded a step takes it from the next replay on; it cannot be set while one is recorded.
-- @tparam number lr 0 or more
function Optimizer:set_lr(lr)
  local good = type(lr) == "number" and lr >= 0 and lr < math.huge
  if not good then
    raise(("%s: set_lr: wanted a number of 0 or more, got %s"):format(self.what, args.show(lr)))
  end
  once(self, "set the learning rate", "set it before a replay")
  for g, group in ipairs(self.groups) do
    group.holders.lr:fill_(lr * group.lr_ratio)
    upload_lr(self, g)
  end
end

--- The learning rate of a group (default: the first).
function Optimizer:get_lr(group)
  local number = args.integer(self.what .. ": get_lr: group", group or 1, 1, #self.groups)
  return values_of(self.groups[number], self.hyper).lr
end

-- -- state -------------------------------------------------------------------------------------------

--- The dtype of the state arrays of a parameter.
function Optimizer:moment_dtype(param) -- luacheck: ignore 212
  return param.dtype == "float64" and "float64" or "float32"
end

-- Makes `t` state of a base: packed as it is, by the same record, so that the layout follows.
local function like_base(t, base, name)
  t.kept = true
  local group = rawget(base, "group") or {}
  local of = rawget(base, "_packed")
  if of then
    packed.make(t, { count = of.count, role = of.role, layout = of.layout, layer = group.layer })
    t._packed = of
  else
    t.group = { role = group.role }
  end
  t.group.state = name
  return t
end

local function stamp(t) return { t:storage_id(), t:version() } end
local function unchanged(s, t) return s[1] == t:storage_id() and s[2] == t:version() end

local function wants_master(self, param)
  return self.master_weights and param.dtype ~= "float32" and param.dtype ~= "float64"
end

local MAKE, FIRST = "make the optimizer's state", "take a step before it is recorded"

local function copy_master(self, state, param)
  once(self, "copy the parameter to its master", FIRST)
  state.master:copy_(param:detach())
  state.master_seen, state.param_seen = stamp(state.master), stamp(param)
end

-- The state of an entry: made at first use, moved after its parameter.
local function state_of(self, entry)
  local param, state = entry.param, entry.state
  local dtype, device = self:moment_dtype(param), param.device
  if not state then
    once(self, MAKE, FIRST)
    state = {}
    for _, name in ipairs(self:buffers()) do
      state[name] = like_base(create.zeros(param:shape(), { dtype = dtype, device = device }), param, name)
    end
    entry.state = state
  end
  for _, name in ipairs(self:buffers()) do
    local t = state[name]
    if t.dtype ~= dtype or t.device ~= device then
      once(self, MAKE, FIRST)
      t:_adopt(t:to { dtype = dtype, device = device })
    end
  end
  if not wants_master(self, param) then
    state.master = nil
  elseif not state.master or state.master.device ~= device then
    once(self, MAKE, FIRST)
    state.master = like_base(create.empty(param:shape(), { dtype = "float32", device = device }), param, "master")
    copy_master(self, state, param)
  elseif unchanged(state.master_seen, state.master) and not unchanged(state.param_seen, param) then
    copy_master(self, state, param) -- someone else wrote the parameter, and no load wrote the master
  end
  return state
end

--- All state, as Module:slots() lists a module's: what checkpoints save and load. Names follow the parameters':
-- "exp_avg.<name>"; then "step" and each group's numbers ("group0.lr").
function Optimizer:slots()
  local list = {}
  autograd.no_grad(function()
    for _, entry in ipairs(self.entries) do
      if entry.param.requires_grad or entry.state then
        local state = state_of(self, entry)
        for _, name in ipairs(self:buffers()) do
          list[#list + 1] = { name = name .. "." .. entry.name, tensor = state[name], kind = "state",
            packed = rawget(state[name], "_packed") }
        end
        if state.master then
          list[#list + 1] = { name = "master." .. entry.name, tensor = state.master, kind = "state",
            packed = rawget(state.master, "_packed") }
        end
      end
    end
  end)
  list[#list + 1] = { name = "step", tensor = self.step_count, kind = "state" }
  for g, group in ipairs(self.groups) do
    for _, name in ipairs(self.hyper) do
      list[#list + 1] = { name = ("group%d.%s"):format(g - 1, name), tensor = group.holders[name], kind = "state",
        optional = true, after = name == "lr" and function(loaded)
          if loaded then upload_lr(self, g) end
        end or nil }
    end
  end
  return list
end

--- Names that this optimizer could have but does not: none.
function Optimizer:absent() return {} end -- luacheck: ignore 212

--- name -> tensor, and numbers: step, and each group's hyper-parameters. Shares memory with the optimizer.
function Optimizer:state_dict()
  local slots, numbers = self:slots(), {}
  for i = #slots, 1, -1 do
    local slot = slots[i]
    if slot.tensor == self.step_count or slot.optional then
      numbers[slot.name] = slot.tensor:item()
      table.remove(slots, i)
    end
  end
  local sd = require("mascon.checkpoint.state").state_dict(slots, self)
  for name, value in pairs(numbers) do sd[name] = value end
  return sd
end

--- Loads a state dict saved in either layout; opts and the report as in Module:load_state_dict.
function Optimizer:load_state_dict(sd, opts)
  return require("mascon.checkpoint.state").load(self:slots(), self:absent(), sd, opts, self.what, self)
end

-- -- stepping ------------------------------------------------------------------------------------------

-- Members that are not trained, or nil.
local function frozen_members(param)
  local frozen = rawget(param, "_frozen")
  return frozen and next(frozen) and frozen
end

-- The slice of everything that belongs to one expert.
local function member_state(self, state, i)
  local slice = { master = state.master and state.master:member(i) }
  for _, name in ipairs(self:buffers()) do slice[name] = state[name]:member(i) end
  return slice
end

-- Adds to the batch of a device and group, which is made when it is not there.
local function add(batches, device, number, names, param, grad, state)
  local of_device = batches[device]
  if not of_device then
    of_device = {}
    batches[device] = of_device
  end
  local b = of_device[number]
  if not b then
    b = { device = device, group = number, n = 0, param = {}, grad = {}, master = {} }
    for _, name in ipairs(names) do b[name] = {} end
    of_device[number], batches[#batches + 1] = b, b
  end
  local n = b.n + 1
  b.n, b.param[n], b.grad[n], b.master[n] = n, param, grad, state.master or false
  for _, name in ipairs(names) do b[name][n] = state[name] end
end

local function add_entry(self, batches, entry, grad)
  local param, state, names = entry.param, entry.state, self:buffers()
  local device, frozen = param.device, frozen_members(param)
  if entry.group and not frozen then
    add(batches, device, entry.group, names, param, grad, state)
    return
  end
  for i = 0, param._packed.count - 1 do
    local number = entry.group or entry.member_groups[i]
    if number and not (frozen and frozen[i]) then
      add(batches, device, number, names, param:member(i), grad:select(1, i + 1), member_state(self, state, i))
    end
  end
end

local function step(self, scale)
  local work, batches = {}, {} -- batches: a list; and device -> group -> batch
  for _, entry in ipairs(self.entries) do
    local grad = entry.param.requires_grad and groups.gradient(entry.param)
    if grad then
      state_of(self, entry)
      work[#work + 1] = { entry, grad }
      add_entry(self, batches, entry, grad)
    end
  end
  for _, b in ipairs(batches) do
    b.values = values_of(self.groups[b.group], self.hyper)
    b.lr = lr_tensor(self, b.group, b.device, b.values.lr)
  end
  self.step_count:add_(scale and scale:isfinite():to("float32"):view(1):to(self.device) or 1)
  local counts, scales = {}, {}
  for _, b in ipairs(batches) do
    local device = b.device
    if not counts[device] then
      counts[device] = self.step_count:to(device)
      scales[device] = scale and scale:to(device)
    end
    self:update(b, b.values, b.lr, counts[device], scales[device])
  end
  for _, item in ipairs(work) do
    local state = item[1].state
    if state.master then
      state.master_seen, state.param_seen = stamp(state.master), stamp(item[1].param)
    end
  end
end

--- One update of every parameter that has a gradient (main_grad where weight gradients are fused into it).
-- @tparam[opt] table options grad_scale: a float32 tensor of one element that multiplies the gradients; where it is not
--   finite the step is skipped and not counted
function Optimizer:step(options)
  local o = args.options(self.what .. ": step", options, { grad_scale = { tensor.is_tensor, want = "a tensor" } })
  if self._invalid then
    raise(("%s: the optimizer is invalid: %s; load it fully before use"):format(self.what, self._invalid))
  end
  local scale = o.grad_scale
  if scale and (scale.dtype ~= "float32" or scale:numel() ~= 1) then
    raise(("%s: grad_scale is %s [%s], wanted one float32 element"):format(self.what, scale.dtype,
      table.concat(scale:shape(), ", ")))
  end
  autograd.no_grad(step, self, scale)
end

--- Forgets the gradients of its parameters; main_grad buffers are filled with zeros.
function Optimizer:zero_grad()
  autograd.no_grad(function()
    for _, owner in ipairs(groups.owned(self.entries)) do
      local base, index = owner[1], owner[2]
      local p = index and base:member(index) or base
      p.grad = nil
      if p.main_grad then
        p.main_grad:zero_()
        if not index then p.grad_added_to_main_grad = nil end
      end
    end
  end)
end

local function is_optimizer(v) return class.is_a(v, Optimizer) end
for _, name in ipairs { "step", "zero_grad", "set_lr", "get_lr", "state_dict", "load_state_dict" } do
  Optimizer[name] = args.method(name, is_optimizer, "an optimizer", Optimizer[name])
end

return Optimizer
