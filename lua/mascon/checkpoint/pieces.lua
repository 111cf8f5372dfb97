--- Elements of datasets in pieces of bounded size, for whoever looks at every value of a file.
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
