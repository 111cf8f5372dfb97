--- Elements of datasets in pieces of bounded size, for whoever looks at every value of a file or tells how far it is.
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

local READ = 2 ^ 26 -- bytes of a read between two notes of progress

--- Fills contiguous t from element `first` of a dataset, calling on_bytes(n) for every n bytes that are there.
function M.read(file, entry, first, t, on_bytes)
  local count, size = t:numel(), t:element_size()
  local step = math.floor(READ / size)
  if count <= step then
    file:read(entry, first, t)
    return on_bytes(count * size)
  end
  local flat = t:view(-1)
  for at = 0, count - 1, step do
    local n = math.min(step, count - at)
    file:read(entry, first + at, flat:narrow(1, at + 1, n))
    on_bytes(n * size)
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
    buffer = create.empty(buffer and M.SIZE or math.max(n, 4096), { dtype = dtype })
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
