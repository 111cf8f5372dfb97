--- Runs a load plan: the comparisons it asks for, then its copies, straight into the targets' memory.
--
-- A source is memory (a caller's tensors) or a file. Nothing is written before every comparison has passed.
-- Copies go through one flat view that is moved over the targets, so that ten thousand experts make no garbage; only
-- a change of dtype needs a temporary, of at most CHUNK elements when it comes from a file.
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local ffi = require "ffi"
local lib = require "mascon.lib"
local memory = require "mascon.memory"
local pieces = require "mascon.checkpoint.pieces"

local C, check = lib.C, lib.check

local M = {}

local CHUNK = 2 ^ 22 -- elements of a temporary

-- Elements [first, first + count) (0-based) of contiguous t as a flat view.
local function flat(t, first, count) return t:view(-1):narrow(1, first + 1, count) end

-- Moves `window`, a tensor of our own, over elements [first, first + count) of 1-D t.
local function move_window(window, t, first, count)
  C.mc_tensor_release(window.h)
  check(C.mc_narrow(window.h, t.h, 0, first, count), t)
end

-- ---------------------------------------------------------------- memory as a source

local Memory = {}
Memory.__index = Memory

-- The source's elements as a flat tensor: a view where it is contiguous.
function Memory:fetch(offer, first, count)
  local dense = self.dense[offer]
  if not dense then
    dense = offer.tensor:detach():contiguous():view(-1)
    self.dense[offer] = dense
  end
  if first == 0 and count == dense:numel() then return dense end
  return dense:narrow(1, first + 1, count)
end

function Memory:into(offer, first, view, on_bytes)
  view:copy_(self:fetch(offer, first, view:numel()))
  if on_bytes then on_bytes(view:numel() * view:element_size()) end
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
        and address(flat(t:detach(), copy.offer_first, copy.count))
          == address(flat(whole:detach(), copy.want_first, copy.count)) then
        copy.skip = true
      elseif not self.dense[copy.offer] then
        self.dense[copy.offer] = t:detach():clone():view(-1)
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

function FileSource:into(offer, first, view, on_bytes)
  if on_bytes then
    pieces.read(self.file, offer.entry, first, view, on_bytes)
  else
    self.file:read(offer.entry, first, view)
  end
end

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

-- Fills `view`, flat, with what a copy says.
local function transfer(source, copy, view, on_bytes)
  if not copy.cast then
    source:into(copy.offer, copy.offer_first, view, on_bytes)
    return
  end
  local chunk = source.chunked and CHUNK or copy.count
  for at = 0, copy.count - 1, chunk do
    local n = math.min(chunk, copy.count - at)
    view:narrow(1, at + 1, n):copy_(source:fetch(copy.offer, copy.offer_first + at, n, view.device))
    if on_bytes then on_bytes(n * view:element_size()) end
  end
end

-- All copies of a plan. Those of one want follow one another, so its flat view is made once; where a target's
-- elements lie in another order, a dense copy of it is filled and then laid out.
local function run(plan, source, on_bytes)
  local window, want, target, dense, whole = memory.new(), nil, nil, nil, nil
  local function leave()
    if dense then target:copy_(dense) end
    dense = nil
  end
  for _, copy in ipairs(plan.copies) do
    if copy.want ~= want then
      leave()
      want, target, whole = copy.want, copy.want.tensor:detach(), nil
    end
    if copy.adopt then
      adopt(copy)
    elseif copy.value ~= nil and not copy.skip then
      target:fill_(copy.value)
      if on_bytes then on_bytes(target:numel() * target:element_size()) end
    elseif copy.count > 0 and not copy.skip then
      if not whole then
        if not target:is_contiguous() then dense = target:contiguous() end
        whole = (dense or target):view(-1)
      end
      move_window(window, whole, copy.want_first, copy.count)
      transfer(source, copy, window, on_bytes)
    end
  end
  leave()
  window:free()
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

--- Copies, and then calls want.after(whether it was written) of every want that has it. The plan must be ok and
-- compared. A failure on the way leaves targets half written: it is raised after on_fault(message).
-- @tparam Plan plan
-- @tparam {table,...} wants those of the plan
-- @tparam table source of M.memory or M.file
-- @tparam function on_fault
-- @tparam function|nil progress fn(bytes done, of all), of the targets; an error in it is a fault
function M.copy(plan, wants, source, on_fault, progress)
  autograd.no_grad(function()
    source:protect(plan)
    local ok, err = pcall(run, plan, source, pieces.meter(progress, progress and plan:bytes()))
    if not ok then
      on_fault(tostring(err))
      error(tostring(err) .. "; what was to be loaded is half written, and invalid until a full load", 0)
    end
    local written = {}
    for _, copy in ipairs(plan.copies) do written[copy.want] = not copy.skip end
    for _, want in ipairs(wants) do
      if want.after then want.after(written[want] == true) end
    end
  end)
end

return M
