--- mascon: tensors, mixture-of-experts layers and checkpoints for LuaJIT.
--
--     local mc = require "mascon"
--     local x = mc.randn(4, 3, {requires_grad = true})
--     (x * x):sum():backward()
--     print(x.grad)
--
-- On a GPU: the same after mc.set_default_device "cuda"; what only a GPU has is in mc.cuda.
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"
require "mascon.ending"

local C = lib.C

local mc = { version = lib.version }

-- Public names of a room, one by one: what is not listed stays private.
local function export(room, names)
  for name in names:gmatch "%S+" do
    mc[name] = room[name] or error("mascon: no " .. name)
  end
end

export(require "mascon.create", [[tensor empty zeros ones full arange empty_like zeros_like ones_like full_like]])
export(require "mascon.ops", [[add sub mul div pow maximum minimum eq ne lt le gt ge neg abs sign exp log sqrt rsqrt
  sin cos tanh sigmoid relu gelu silu swiglu floor ceil round isnan isfinite where matmul cat stack equal allclose]])
export(require "mascon.reduce", [[sum mean max min softmax log_softmax topk argmax]])
export(require "mascon.random", [[rand randn randint manual_seed get_rng_state set_rng_state]])
require "mascon.display"
export(tensor, "is_tensor")
export(memory, "scope keep")
mc.no_grad = autograd.public_no_grad
mc.autograd = { Function = autograd.Function, grad = require("mascon.gradient").grad }

--- mc.memory_stats(): bytes live, at the peak, cached; number of storages and handles. Of the CPU and all devices
-- together: mc.cuda.memory_stats() tells of one GPU.
mc.memory_stats = memory.stats
--- mc.collect_garbage(): a full collection; gives the memory of dead tensors back.
mc.collect_garbage = memory.collect
function mc.reset_peak_memory() C.mc_memory_reset_peak() end

--- Threads of the one pool. MASCON_NUM_THREADS sets the default; else the cores this process may use.
function mc.get_num_threads() return C.mc_get_num_threads() end
function mc.set_num_threads(n)
  args.integer("set_num_threads", n, 1)
  lib.check(C.mc_set_num_threads(n))
end

--- mc.set_default_device("cuda"): tensors and modules that are made, and tensors that are loaded, are on this device
-- from now on unless they name one; nil: "cpu" again.
mc.set_default_device, mc.get_default_device = tensor.set_default_device, tensor.get_default_device
--- mc.allow_tf32(true): GPUs may round float32 operands of matrix products to tf32, which is faster; false is the
-- default. Returns what was set before.
function mc.allow_tf32(allow)
  local before = C.mc_get_allow_tf32() ~= 0
  if type(allow) ~= "boolean" then args.raise("allow_tf32: wanted true or false, got " .. args.show(allow)) end
  C.mc_set_allow_tf32(allow and 1 or 0)
  return before
end

-- Rooms that most scripts do not need at once are opened at first use.
local rooms = {
  GroupedTensor = "grouped_tensor", nn = "nn", optim = "optim", data = "data", train = "train",
  checkpoint = "checkpoint", cuda = "cuda",
}
local functions = { save = "checkpoint", load = "checkpoint" }
setmetatable(mc, {
  __index = function(_, name)
    if rooms[name] then
      local room = require("mascon." .. rooms[name])
      rawset(mc, name, room)
      return room
    elseif functions[name] then
      local fn = mc[functions[name]][name]
      rawset(mc, name, fn)
      return fn
    end
    return nil
  end,
})

return mc
