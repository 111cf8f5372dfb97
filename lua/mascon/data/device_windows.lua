--- Random windows of tokens that stay on a device: the batches of mc.data.Windows, gathered there.
--
-- Nothing goes through the host, so that it never waits for the device. Batch k is a pure function of seed and k, the
-- same as that of mc.data.Windows with the same data, length, batch_size and seed, on every device.
local bit = require "bit"
local ffi = require "ffi"
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local lib = require "mascon.lib"
local memory = require "mascon.memory"
local tensor = require "mascon.tensor"

local C, check = lib.C, lib.check

local DeviceWindows = {}
DeviceWindows.__index = DeviceWindows

local STREAM = 0x6461746100000000LL -- as mc.data.Windows has it

-- The generator's state before batch number `step`, which takes a block of four words for four windows.
local function seek(self)
  local state = ffi.new("int64_t[2]", bit.bxor(ffi.cast("int64_t", self.seed), STREAM),
    self.step * math.ceil(self.batch_size / 4))
  check(C.mc_write(self._state.h, state, 16))
end

--- @tparam table options `data`, int32 [n], more than `length` of them, where the batches shall be; `length` (default
--   128), `batch_size` (default 16), `seed` (default 0)
-- @usage local loader = require("mascon.data.device_windows"){data = tokens:to("cuda"), length = 1024}
local function new(options)
  local o = args.options("DeviceWindows", options, {
    data = { tensor.is_tensor, required = true, want = "a tensor of tokens" },
    length = { "positive", 128 },
    batch_size = { "positive", 16 },
    seed = { "integer", 0 },
  })
  local shape = o.data:shape()
  if #shape ~= 1 or o.data.dtype ~= "int32" or shape[1] <= o.length then
    args.raise(("DeviceWindows: data is %s [%s], wanted int32 [n] of more tokens than the length, %d"):format(
      o.data.dtype, table.concat(shape, ", "), o.length))
  end
  local device = o.data.device
  local self = setmetatable({
    data = o.data, length = o.length, batch_size = o.batch_size, seed = o.seed, step = 0,
    _state = create.empty(2, { dtype = "int64", device = device }),
    _places = create.arange(o.length + 1, { dtype = "int64", device = device }),
  }, DeviceWindows)
  memory.keep { self.data, self._state, self._places }
  seek(self)
  return self
end

--- The next batch: x int32 [batch_size, length] and y, of the same shape, one token further on.
function DeviceWindows:next()
  return autograd.no_grad(function()
    local rows, length = self.batch_size, self.length
    local starts = create.empty(rows, 1, { dtype = "int64", device = self.data.device })
    check(C.mc_random_integers(starts.h, self._state.h, 0, self.data:numel() - length))
    self.step = self.step + 1
    local windows = self.data:index_select(1, (starts + self._places):view(-1)):view(rows, length + 1)
    return windows:narrow(2, 1, length), windows:narrow(2, 2, length)
  end)
end

--- What decides the batches to come.
-- @treturn {seed=int,step=int}
function DeviceWindows:state_dict() return { seed = self.seed, step = self.step } end

--- Goes on where `state` was taken.
function DeviceWindows:load_state_dict(state)
  local s = args.options("DeviceWindows.load_state_dict", state, {
    seed = { "integer", required = true },
    step = { "natural", required = true },
  })
  self.seed, self.step = s.seed, s.step
  seek(self)
end

return new
