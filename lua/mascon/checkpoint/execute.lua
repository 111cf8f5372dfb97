--- Runs a load plan: the comparisons it asks for, then its copies, straight into the targets' memory.
--
-- A source is memory (a caller's tensors) or a file. Nothing is written before every comparison has passed.
-- Copies go through flat views of the target; only a change of dtype needs a temporary, of at most CHUNK
-- elements when it comes from a file.
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local ffi = require "ffi"
local lib = require "mascon.lib"

local C, check = lib.C, lib.check

local M = {}

local CHUNK = 2 ^ 22 -- elements of a temporary

-- Elements [first, first + count) (0-based) of contiguous t as a flat view.
local function flat(t, first, count) return t:view(-1):narrow(1, first + 1, count) end

-- ---------------------------------------------------------------- memory as a source

local Memory = {}
Memory.__index = Memory

-- The source's elements as a flat tensor: a view where it is contiguous.
function Memory:fetch(offer, first, count)
  local dense = self.dense[offer]
  if not dense then
    dense = offer.tensor:detach():contiguous()
    self.dense[offer] = dense
  end
  return flat(dense, first, count)
end

function Memory:into(offer, first, view)
  view:copy_(self:fetch(offer, first, view:numel()))
end

local function address(t) return tostring(C.mc_tensor_storage_offset(t.h)) end

-- A caller may hand in views of the very memory that is written to, in another order. Those are copied first;
-- a source that is its own target is left alone.
function Memory:protect(plan)
  local targets = {}
  for _, copy in ipairs(plan.copies) do
    if copy.want.tensor:numel() > 0 then targets[copy.want.tensor:storage_id()] = true end
  end
  for _, copy in ipairs(plan.copies) do
    local t = copy.offer.tensor
    if t and not copy.adopt and copy.count > 0 and targets[t:storage_id()] then
      local whole = copy.want.tensor
      if t:storage_id() == whole:storage_id() and t:is_contiguous() and whole:is_contiguous() and not copy.cast
        and address(t) == address(flat(whole:detach(), copy.want_first, copy.count)) then
        copy.skip = true
      else
        self.dense[copy.offer] = t:detach():clone()
      end
    end
  end
end

--- The source for offers with a field `tensor`.
function M.memory() return setmetatable({ dense = {} }, Memory) end

-- ---------------------------------------------------------------- a file as a source

local FileSource = {}
FileSource.__index = FileSource

function FileSource:fetch(offer, first, count, device)
  local t = create.empty(count, { dtype = offer.dtype, device = device })
  self.file:read(offer.entry, first, t)
  return t
end

function FileSource:into(offer, first, view) self.file:read(offer.entry, first, view) end

function FileSource.protect() end

--- The source for offers with a field `entry`.
function M.file(file) return setmetatable({ file = file, chunked = true }, FileSource) end

-- ---------------------------------------------------------------- comparisons

local equal_out = ffi.new "int[1]"
local function same_bits(a, b)
  check(C.mc_equal(a.h, b.h, equal_out), a, b)
  return equal_out[0] ~= 0
end

-- The first element in which two flat tensors differ, 0-based; they do differ.
local function first_difference(a, b)
  local low, high = 0, a:numel()
  while high - low > 1 do
    local middle = math.floor((low + high) / 2)
    if same_bits(flat(a, low, middle - low), flat(b, low, middle - low)) then
      low = middle
    else
      high = middle
    end
  end
  return low
end

-- The first differing element of a comparison, or nil.
local function compare(source, entry)
  for at = 0, entry.count - 1, CHUNK do
    local n = math.min(CHUNK, entry.count - at)
    local a = source:fetch(entry.a, entry.a_first + at, n, "cpu")
    local b = source:fetch(entry.b, entry.b_first + at, n, "cpu")
    if a.device ~= b.device then a, b = a:to("cpu"), b:to("cpu") end
    if not same_bits(a, b) then return at + first_difference(a, b) end
  end
  return nil
end

-- ---------------------------------------------------------------- copies

-- The memory of the source as one tensor of the target's shape.
local function adopt(copy)
  local t, shape, stride = copy.offer.tensor:detach(), copy.want.shape, {}
  local step = 1
  for i = #shape, 1, -1 do
    stride[i] = step
    step = step * shape[i]
  end
  copy.want.tensor:_adopt(t:as_strided(shape, stride, 0))
end

local function transfer(source, copy, view)
  if not copy.cast then
    source:into(copy.offer, copy.offer_first, view)
    return
  end
  local chunk = source.chunked and CHUNK or copy.count
  for at = 0, copy.count - 1, chunk do
    local n = math.min(chunk, copy.count - at)
    view:narrow(1, at + 1, n):copy_(source:fetch(copy.offer, copy.offer_first + at, n, view.device))
  end
end

local function run_copy(source, copy)
  if copy.skip or copy.count == 0 then return end
  local target = copy.want.tensor
  if copy.adopt then
    adopt(copy)
    return
  end
  target = target:detach()
  if copy.value ~= nil then
    target:fill_(copy.value)
  elseif target:is_contiguous() then
    transfer(source, copy, flat(target, copy.want_first, copy.count))
  else -- its elements lie in another order
    local whole = target:contiguous()
    transfer(source, copy, flat(whole, copy.want_first, copy.count))
    target:copy_(whole)
  end
end

--- Makes the plan's comparisons; afterwards plan.ok and plan.error_text are final. Writes nothing.
function M.compare(plan, source)
  autograd.no_grad(function()
    for _, entry in ipairs(plan.compare) do
      local element = compare(source, entry)
      if element then plan:differs(entry, element) end
    end
  end)
end

--- Copies. The plan must be ok and compared. A failure on the way leaves targets half written: it is raised after
-- on_fault(message).
function M.copy(plan, source, on_fault)
  autograd.no_grad(function()
    source:protect(plan)
    local ok, err = pcall(function()
      for _, copy in ipairs(plan.copies) do run_copy(source, copy) end
    end)
    if not ok then
      on_fault(tostring(err))
      error(tostring(err) .. "; what was to be loaded is half written, and invalid until a full load", 0)
    end
  end)
end

return M
