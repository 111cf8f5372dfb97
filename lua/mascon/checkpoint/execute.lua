--- Runs a load plan: the comparisons it asks for, then its copies, straight into the targets' memory.
--
-- A source is memory (a caller's tensors) or a file. Nothing is written before every comparison has passed. What comes
-- from a file is gathered and read by all threads at once; a change of dtype needs a temporary, of at most CHUNK
-- elements for all of them. Copies in memory, and casts, go through flat views that are moved over the targets, so that
-- ten thousand experts make no garbage.
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

-- Begins the copies of a plan; on_bytes: fn(n) for every n bytes that were written, or nil.
function Memory:begin(_, on_bytes) self.window, self.on_bytes = memory.new(), on_bytes end

-- What a copy says, into `whole`, a contiguous tensor with all of its target's elements.
function Memory:transfer(copy, whole)
  local window, count = self.window, copy.count
  if self.whole ~= whole then self.whole, self.flat = whole, whole:detach():view(-1) end
  move_window(window, self.flat, copy.want_first, count)
  window:copy_(self:fetch(copy.offer, copy.offer_first, count))
  if self.on_bytes then self.on_bytes(count * window:element_size()) end
end

function Memory.flush() end

function Memory:finish() self.window:free() end

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

function FileSource:begin(plan, on_bytes)
  local casts = 0
  for _, copy in ipairs(plan.copies) do
    if copy.cast and copy.offer.entry then casts = casts + copy.count end
  end
  self.on_bytes, self.room = on_bytes, math.min(CHUNK, casts)
  self.batch = pieces.batch(self.file, on_bytes)
  -- reads of another dtype go to `stage` and from there, in `pending`, to their targets
  self.staged, self.stages, self.pending, self.used = pieces.batch(self.file), {}, {}, 0
  self.window, self.other = memory.new(), memory.new()
end

function FileSource:transfer(copy, whole)
  if copy.cast then
    self:cast(copy, whole)
  else
    self.batch:add(copy.offer.entry, copy.offer_first, whole, copy.want_first, copy.count)
  end
end

function FileSource:cast(copy, whole)
  local offer, key = copy.offer, copy.offer.dtype .. " " .. whole.device
  if self.key ~= key then
    self:flush_casts()
    self.stages[key] = self.stages[key] or create.empty(self.room, { dtype = offer.dtype, device = whole.device })
    self.key, self.stage = key, self.stages[key]
  end
  if self.whole ~= whole then self.whole, self.flat = whole, whole:detach():view(-1) end
  local at = 0
  while at < copy.count do
    local n = math.min(copy.count - at, self.room - self.used)
    self.staged:add(offer.entry, copy.offer_first + at, self.stage, self.used, n)
    self.pending[#self.pending + 1] = { flat = self.flat, first = copy.want_first + at, n = n, from = self.used }
    at, self.used = at + n, self.used + n
    if self.used == self.room then self:flush_casts() end
  end
end

function FileSource:flush_casts()
  local pending, window, other = self.pending, self.window, self.other
  self.pending, self.used = {}, 0
  self.staged:flush()
  for _, p in ipairs(pending) do
    move_window(window, p.flat, p.first, p.n)
    move_window(other, self.stage, p.from, p.n)
    window:copy_(other)
    if self.on_bytes then self.on_bytes(p.n * window:element_size()) end
  end
end

function FileSource:flush()
  self.batch:flush()
  self:flush_casts()
end

function FileSource:finish()
  self:flush()
  self.window:free()
  self.other:free()
end

function FileSource.protect() end

--- The source for offers with a field `entry`.
function M.file(file) return setmetatable({ file = file }, FileSource) end

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

-- All copies of a plan. Those of one want follow one another; where a target's elements lie in another order, a dense
-- copy of it is filled and then laid out.
local function run(plan, source, on_bytes)
  local want, target, dense
  local function leave()
    if not dense then return end
    source:flush()
    target:detach():copy_(dense)
    dense = nil
  end
  source:begin(plan, on_bytes)
  for _, copy in ipairs(plan.copies) do
    if copy.want ~= want then
      leave()
      want, target = copy.want, copy.want.tensor
    end
    if copy.adopt then
      adopt(copy)
    elseif copy.value ~= nil and not copy.skip then
      target:detach():fill_(copy.value)
      if on_bytes then on_bytes(target:numel() * target:element_size()) end
    elseif copy.count > 0 and not copy.skip then
      if not dense and not target:is_contiguous() then dense = target:detach():contiguous() end
      source:transfer(copy, dense or target)
    end
  end
  leave()
  source:finish()
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
