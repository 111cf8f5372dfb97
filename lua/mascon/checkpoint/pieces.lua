--- Elements of datasets, many tensors at a time for whoever fills memory, or in pieces of bounded size for whoever
-- looks at every value of a file.
--
-- A reader owns one buffer of SIZE elements per dtype, so that its memory does not grow with the tensors. What
-- it returns stands until its next fetch.
local create = require "mascon.create"
local ffi = require "ffi"
local lib = require "mascon.lib"
local names = require "mascon.checkpoint.plan_names"
local tensor = require "mascon.tensor"

local C, check = lib.C, lib.check

local M = {}

M.SIZE = 2 ^ 19 -- elements of a piece

local MOST = 2 ^ 30 -- bytes of a batch: a second on a slow disk, after which an interrupt is seen
local NOTED = 2 ^ 26 -- and of one whose progress somebody wants to know
local STRETCH = ffi.sizeof "mc_h5_stretch"

local Batch = {}
Batch.__index = Batch

--- Reads of one file that are gathered and then made together, by all threads.
-- @tparam File file
-- @tparam function|nil on_bytes fn(n), after a flush, for the n bytes of each of its reads
function M.batch(file, on_bytes)
  return setmetatable({ file = file, on_bytes = on_bytes, most = on_bytes and NOTED or MOST, n = 0, bytes = 0,
    room = 16, list = ffi.new("mc_h5_stretch[?]", 16), held = {} }, Batch)
end

-- One more read, whose bytes there is room for.
function Batch:push(entry, first, t, at, count, bytes)
  local n = self.n
  if n == self.room then
    local more = ffi.new("mc_h5_stretch[?]", 2 * n)
    ffi.copy(more, self.list, n * STRETCH)
    self.list, self.room = more, 2 * n
  end
  local s = self.list[n]
  s.entry, s.first, s.count, s.target, s.target_first = entry.index, first, count, t.h, at
  self.held[n + 1] = t -- for the collector, which does not look into C arrays
  self.n, self.bytes = n + 1, self.bytes + bytes
end

--- Elements [first, first + count) of a dataset are to come into elements [at, at + count) (0-based) of contiguous t,
-- of the same dtype, by the next flush.
function Batch:add(entry, first, t, at, count)
  local size = t:element_size()
  while self.bytes + count * size > self.most do
    local n = math.floor((self.most - self.bytes) / size)
    self:push(entry, first, t, at, n, n * size)
    self:flush()
    first, at, count = first + n, at + n, count - n
  end
  self:push(entry, first, t, at, count, count * size)
end

--- Makes the reads that were added.
function Batch:flush()
  local list, n, held, on_bytes = self.list, self.n, self.held, self.on_bytes
  if n == 0 then return end
  self.n, self.bytes, self.held = 0, 0, {}
  self.file:read_many(list, n)
  for i = 1, on_bytes and n or 0 do
    local count = tonumber(list[i - 1].count)
    if count > 0 then on_bytes(count * held[i]:element_size()) end
  end
end

--- fn(n) that adds up bytes and calls progress(done, total); nil where there is no progress to tell.
function M.meter(progress, total)
  if not progress then return nil end
  local done = 0
  return function(n)
    done = done + n
    progress(done, total)
  end
end

local Reader = {}
Reader.__index = Reader

function M.reader() return setmetatable({ buffers = {} }, Reader) end

--- Elements [first, first + n) of a dataset, n at most SIZE, as a flat tensor of its dtype.
function Reader:fetch(file, entry, first, n)
  local dtype = entry.dtype
  local buffer = self.buffers[dtype]
  if not buffer or buffer:numel() < n then
    -- most tensors are small; the second size is the last
    buffer = create.empty(buffer and M.SIZE or math.max(n, 4096), { dtype = dtype, device = "cpu" })
    self.buffers[dtype] = buffer
  end
  local view = buffer:narrow(1, 1, n)
  file:read(entry, first, view)
  return view
end

--- The values of a fetched piece as float64 (integers beyond 2^53 are rounded): a pointer to its numbers.
function Reader:numbers(t)
  local n = t:numel()
  if not self.values or self.room < n then
    self.room = self.values and M.SIZE or math.max(n, 4096)
    self.values = ffi.new("double[?]", self.room)
  end
  check(C.mc_to_numbers(self.values, C.mc_tensor_data(t.h), tensor.dtype_code[t.dtype], n))
  return self.values
end

--- Calls fn(values, n) for all elements of a dataset, in order, a piece at a time.
function Reader:each(file, entry, fn)
  local count = names.numel(entry.shape)
  for first = 0, count - 1, M.SIZE do
    local n = math.min(M.SIZE, count - first)
    fn(self:numbers(self:fetch(file, entry, first, n)), n)
  end
end

return M
