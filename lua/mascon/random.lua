--- Random tensors: counter-based Philox 4x32-10, one generator per device.
--
-- A generator is an int64 tensor {seed, offset} on its device, so that a captured graph replays right.
-- The same seed and the same calls give the same integers and uniforms on every device.
local ffi = require "ffi"
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local tensor = require "mascon.tensor"
local create = require "mascon.create"

local C, check = lib.C, lib.check
local raise = args.raise
local T = tensor.methods

local M = {} -- functions of mc

local default_seed = 0
local generators = {} -- device code -> state tensor
local devices = {} -- device codes in the order of first use

local pair = ffi.new "int64_t[2]"

local function set_state(t, seed, offset)
  pair[0], pair[1] = seed, offset
  check(C.mc_write(t.h, pair, 16))
end

--- The generator state of a device code: an int64 tensor [2].
local function generator(device)
  local g = generators[device]
  if not g then
    g = memory.keep(create.empty(2, { dtype = "int64", device = tensor.device_name_of(device) }))
    set_state(g, default_seed, 0)
    generators[device] = g
    devices[#devices + 1] = device
    table.sort(devices)
  end
  return g
end
M.generator = generator

--- Seeds the generators of all devices. n: an integer of 0 or more.
function M.manual_seed(n)
  args.integer("manual_seed", n, 0)
  if C.mc_graph_recording() ~= 0 then
    raise("manual_seed: a graph is being recorded, and its replays would not do this; seed before it")
  end
  default_seed = n
  for _, device in ipairs(devices) do
    set_state(generators[device], n, 0)
  end
end

--- The state of all generators as a uint8 tensor, for mc.set_rng_state and checkpoints.
function M.get_rng_state()
  generator(0)
  local n = #devices
  local words = ffi.new("int64_t[?]", 1 + 3 * n)
  words[0] = default_seed
  for i, device in ipairs(devices) do
    check(C.mc_read(generators[device].h, pair, 16))
    words[3 * i - 2], words[3 * i - 1], words[3 * i] = device, pair[0], pair[1]
  end
  local out = create.empty(8 * (1 + 3 * n), { dtype = "uint8", device = "cpu" })
  check(C.mc_write(out.h, words, 8 * (1 + 3 * n)))
  return out
end

--- Raises, with `what` before the message, unless `state` has the form of mc.get_rng_state().
function M.check_rng_state(what, state)
  tensor.want_tensor(what, state)
  local bytes = state:numel()
  if state.dtype ~= "uint8" or state:dim() ~= 1 or bytes < 8 or (bytes - 8) % 24 ~= 0 then
    raise(("%s: wanted the uint8 tensor of mc.get_rng_state(), got %s [%s]"):format(what, state.dtype,
      table.concat(state:shape(), ", ")))
  end
end

--- Takes back a state of mc.get_rng_state. Generators of devices that it does not name keep theirs.
function M.set_rng_state(state)
  M.check_rng_state("set_rng_state", state)
  local bytes = state:numel()
  local words = ffi.new("int64_t[?]", bytes / 8)
  check(C.mc_read(state:to("cpu"):contiguous().h, words, bytes))
  default_seed = tonumber(words[0])
  for i = 0, (bytes - 8) / 24 - 1 do
    local device = tonumber(words[1 + 3 * i])
    if device == 0 or generators[device] then
      set_state(generator(device), words[2 + 3 * i], words[3 + 3 * i])
    end
  end
end

local function draw(what, fill, t, a, b)
  args.number(what, a)
  args.number(what, b)
  tensor.want_tensor(what, t)
  return tensor.overwrite(what, t, fill, generator(C.mc_tensor_device(t.h)).h, a, b)
end

local function random(what, fill, ...)
  local n, opts = tensor.parse_shape(what, 0, ...)
  local dtype, device, rg = create.creation(what, opts)
  return create.ready(draw(what, fill, tensor.empty_dims(dtype, device, n), 0, 1), rg)
end

--- mc.rand(n1, ..., opts): uniform in [0, 1).
function M.rand(...) return random("rand", C.mc_random_uniform, ...) end
--- mc.randn(n1, ..., opts): normal, mean 0, standard deviation 1.
function M.randn(...) return random("randn", C.mc_random_normal, ...) end

--- mc.randint(low, high, {n1, ...}, opts): integers in [low, high), dtype int64.
function M.randint(low, high, shape, opts)
  args.integer("randint: low", low)
  args.integer("randint: high", high, low + 1)
  if type(shape) ~= "table" then raise("randint: wanted randint(low, high, {n1, n2, ...}, options)") end
  local n = tensor.parse_shape("randint", 0, shape)
  local dtype, device = create.creation("randint", opts, "int64")
  local t = tensor.empty_dims(dtype, device, n)
  check(C.mc_random_integers(t.h, generator(device).h, low, high))
  return t
end

--- t:uniform_(low, high), t:normal_(mean, std): refills t. Returns t.
function T.uniform_(t, low, high)
  return draw("uniform_", C.mc_random_uniform, t, low or 0, high or 1)
end
function T.normal_(t, mean, std)
  return draw("normal_", C.mc_random_normal, t, mean or 0, std or 1)
end

return M
