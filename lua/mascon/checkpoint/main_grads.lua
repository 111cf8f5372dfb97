--- The gradients that a model has gathered in main_grad buffers (fuse_wgrad_accumulation), as something to save and to
-- load, for a run that stops between two optimizer steps:
--
--   mc.save(path, {model = model:state_dict(), main_grads = mc.checkpoint.main_grads(model):state_dict()})
--   mc.checkpoint.load_into(path, {model = model, main_grads = mc.checkpoint.main_grads(model)})
--
-- They have their parameters' names and are planned as those are, so either layout loads into either. Only buffers
-- that hold a gradient are saved. A load fills those it finds and zeroes the others, as zero_grad would.
local args = require "mascon.args"
local class = require "mascon.class"
local module = require "mascon.nn.module"
local state = require "mascon.checkpoint.state"

local MainGrads = class.class "MainGrads"

local function has_gradient(p) return rawget(p, "grad_added_to_main_grad") == true end

local function slot_of(slot)
  local p, packed = slot.tensor, slot.packed
  local grad = p.main_grad
  local of = rawget(p, "group") or {}
  grad.group = { count = packed and packed.count, role = of.role, layer = of.layer, state = "main_grad" }
  return { name = slot.name, tensor = grad, kind = "state", packed = packed, optional = true, parameter = p,
    after = function(loaded)
      if not loaded then grad:zero_() end
      p.grad_added_to_main_grad = loaded or nil
    end }
end

--- As Module:slots() lists a module's: one entry per parameter that has a main_grad.
function MainGrads:slots()
  local list = {}
  for _, slot in ipairs(self.module:slots()) do
    if slot.kind == "parameter" and slot.tensor.main_grad then list[#list + 1] = slot_of(slot) end
  end
  return list
end

function MainGrads:absent() return self.module:absent() end

--- name -> tensor of the gradients that there are; shares their memory.
function MainGrads:state_dict()
  local list = {}
  for _, slot in ipairs(self:slots()) do
    if has_gradient(slot.parameter) then list[#list + 1] = slot end
  end
  return state.state_dict(list, self)
end

--- Loads a state dict saved in either layout; opts and the report as in Module:load_state_dict.
function MainGrads:load_state_dict(sd, opts)
  return state.load(self:slots(), self:absent(), sd, opts, "main_grads", self)
end

--- @tparam Module m
-- @treturn MainGrads with state_dict, load_state_dict
local function main_grads(m)
  if not module.is_module(m) then args.raise("main_grads: wanted a module, got " .. args.show(m)) end
  local self = MainGrads()
  self.module = m
  return self
end

return { main_grads = main_grads }
