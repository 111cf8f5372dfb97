--- Windows of a text as batches for next-token prediction: x [B, L] and y [B, L], int32, y one token
-- further on than x.
local bit = require "bit"
local ffi = require "ffi"
local args = require "mascon.args"
local create = require "mascon.create"
local lib = require "mascon.lib"
local memory = require "mascon.memory"
local tensor = require "mascon.tensor"

local C = lib.C

local M = {}

local POINTERS = {
  uint8 = ffi.typeof("const uint8_t *"),
  int32 = ffi.typeof("const int32_t *"),
  int64 = ffi.typeof("const int64_t *"),
}

-- Keeps the windows' numbers apart from those that mc.manual_seed with the same seed gives.
local STREAM = 0x6461746100000000LL

-- A pointer to the tokens on the host, and their number.
local function tokens_of(what, data)
  tensor.want_tensor(what, data)
  local pointer = POINTERS[data.dtype]
  if not pointer then
    args.raise(("%s: data is %s, wanted uint8, int32 or int64"):format(what, data.dtype))
  end
  if data:dim() ~= 1 or not data:is_contiguous() then
    args.raise(("%s: data is [%s], wanted one contiguous row of tokens"):format(
      what, table.concat(data:shape(), ", ")))
  end
  return ffi.cast(pointer, data:data()), data:numel()
end

-- Two int32 tensors [rows, length] from host memory.
local function to_tensors(x, y, rows, length, device)
  local tx = create.empty(rows, length, { dtype = "int32", device = device })
  local ty = create.empty(rows, length, { dtype = "int32", device = device })
  lib.check(C.mc_write(tx.h, x, 4 * rows * length))
  lib.check(C.mc_write(ty.h, y, 4 * rows * length))
  return tx, ty
end

-- x and y of the windows that begin at (0-based) starts[0 .. rows - 1].
local function gather(tokens, starts, rows, length, device)
  local x = ffi.new("int32_t[?]", rows * length)
  local y = ffi.new("int32_t[?]", rows * length)
  for r = 0, rows - 1 do
    local first, row = tonumber(starts[r]), r * length
    for i = 0, length - 1 do
      x[row + i] = tokens[first + i]
      y[row + i] = tokens[first + i + 1]
    end
  end
  return to_tensors(x, y, rows, length, device)
end

local Windows = {}
Windows.__index = Windows

--- Random windows, without end. Batch k is a pure function of seed and k, so that a resumed run sees
-- what an uninterrupted one sees.
-- @tparam table options `data`, a tensor of tokens (uint8, int32, int64) of more than `length`; `length`
--   (default 128) and `batch_size` (default 16); `seed` (default 0)
-- @usage local loader = mc.data.Windows{data = text, length = 128, batch_size = 16, seed = 1}
function M.Windows(options)
  local o = args.options("Windows", options, {
    data = { "table", required = true, want = "a tensor of tokens" },
    length = { "positive", 128 },
    batch_size = { "positive", 16 },
    seed = { "integer", 0 },
  })
  tensor.want_tensor("Windows", o.data)
  o.data = o.data:cpu() -- windows are gathered by the host
  local _, n = tokens_of("Windows", o.data)
  if n <= o.length then
    args.raise(("Windows: data has %d tokens, wanted more than the length, %d"):format(n, o.length))
  end
  local self = setmetatable({
    data = o.data, length = o.length, batch_size = o.batch_size, seed = o.seed,
    step = 0, -- batches given so far
    _state = create.empty(2, { dtype = "int64", device = "cpu" }),
    _starts = create.empty(o.batch_size, { dtype = "int64", device = "cpu" }),
  }, Windows)
  memory.keep{ self.data, self._state, self._starts }
  return self
end

--- The next batch.
-- @treturn Tensor x int32 [batch_size, length]
-- @treturn Tensor y int32 [batch_size, length], y[b][i] = the token after x[b][i]
function Windows:next()
  local tokens, n = tokens_of("Windows", self.data)
  -- The core's generator: a batch takes ceil(batch_size / 4) blocks of four words.
  local state = ffi.new("int64_t[2]", bit.bxor(ffi.cast("int64_t", self.seed), STREAM),
    self.step * math.ceil(self.batch_size / 4))
  lib.check(C.mc_write(self._state.h, state, 16))
  lib.check(C.mc_random_integers(self._starts.h, self._state.h, 0, n - self.length))
  local starts = ffi.cast(POINTERS.int64, self._starts:data())
  local x, y = gather(tokens, starts, self.batch_size, self.length)
  self.step = self.step + 1
  return x, y
end

--- What decides the batches to come.
-- @treturn {seed=int,step=int}
function Windows:state_dict()
  return { seed = self.seed, step = self.step }
end

--- Goes on where `state` was taken.
-- @tparam table state of state_dict
-- @raise when a value is missing, surplus or no integer; nothing is changed then
function Windows:load_state_dict(state)
  local s = args.options("Windows.load_state_dict", state, {
    seed = { "integer", required = true },
    step = { "natural", required = true },
  })
  self.seed, self.step = s.seed, s.step
end

--- Every token but the first as a target, once, in order: the windows of an evaluation.
-- @tparam Tensor data tokens (uint8, int32, int64)
-- @tparam int length of a window
-- @tparam[opt=1] int batch_size windows a batch; the last full batch may have fewer rows
-- @treturn function an iterator of x, y int32 [rows, length]; what remains comes last, [1, fewer]
-- @usage for x, y in mc.data.windows_in_order(validation, 128, 16) do ... end
function M.windows_in_order(data, length, batch_size)
  args.integer("windows_in_order: length", length, 1)
  batch_size = args.integer("windows_in_order: batch_size", batch_size or 1, 1)
  tensor.want_tensor("windows_in_order", data)
  data = data:cpu()
  local _, n = tokens_of("windows_in_order", data)
  local starts = ffi.new("int64_t[?]", batch_size)
  local position = 0 -- of the next window, 0-based
  return function()
    local left = n - 1 - position -- targets not given yet
    if left <= 0 then return nil end
    local rows = math.min(batch_size, math.floor(left / length))
    local width = length
    if rows == 0 then rows, width = 1, left end
    for r = 0, rows - 1 do starts[r] = position + r * width end
    position = position + rows * width
    local tokens = tokens_of("windows_in_order", data)
    return gather(tokens, starts, rows, width)
  end
end

return M
