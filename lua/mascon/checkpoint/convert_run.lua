--- Carries a conversion's plan out: extents of the source become datasets, by the writer's own threads.
--
-- Without a transform no tensor is made here: the writer is told which stretch of which entry goes where. With one,
-- a tensor of the source is in memory at a time; what its function returns is written at once and freed.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local create = require "mascon.create"
local hdf5 = require "mascon.checkpoint.hdf5"
local lib = require "mascon.lib"
local memory = require "mascon.memory"
local names = require "mascon.checkpoint.plan_names"
local planner = require "mascon.checkpoint.convert_plan"
local system = require "system"
local tensor = require "mascon.tensor"
local write = require "mascon.checkpoint.write"

local raise, show = args.raise, args.show

local M = {}

local POLL = 0.02 -- seconds between two looks at how far the writer is

-- ---------------------------------------------------------------- what makes a conversion the same one again

-- A text of all that decides the bytes of the new file; the journal keeps its digest. Quoted, since it may hold no NUL.
local function resume_key(plan, file, identity)
  local lines = { "mascon convert 1", lib.version, identity, tostring(plan.views) }
  local function add(...)
    for _, part in ipairs { ... } do lines[#lines + 1] = ("%q"):format(part) end
  end
  for _, e in ipairs(file.entries) do
    if not e.group then
      add(e.path, tostring(e.dtype), names.shape(e.shape), ("%.0f %.0f"):format(e.offset, e.bytes),
        tostring(e.attrs.digest))
    end
  end
  for _, target in ipairs(plan.targets) do
    for _, key in ipairs(target.keys) do add(type(key), tostring(key)) end
    if target.value ~= nil then
      add("=", type(target.value), type(target.value) == "number" and ("%.17g"):format(target.value)
        or tostring(target.value))
    end
    if target.shape then add(target.dtype, names.shape(target.shape)) end
    for _, part in ipairs(target.parts or {}) do
      add(("%d %.0f %.0f"):format(part.item.entry.index, part.first, part.count))
    end
  end
  return table.concat(lines, "\n")
end

-- ---------------------------------------------------------------- digests of what is cut

-- The writer checks the digests of entries that it copies whole. Those that are cut, or that a transform reads, are
-- checked here, so that a damaged expert does not get a fresh digest. note(bytes) is called for each.
local function check_digests(plan, file, entries, note)
  for _, entry in ipairs(entries) do
    if file:digest(entry) ~= entry.attrs.digest then
      table.insert(plan.errors, { code = "file", name = entry.path,
        message = ("%s: damaged: its bytes do not match their digest"):format(names.show(entry.path)) })
    end
    note(entry.bytes)
  end
  return plan:refresh()
end

-- The entries with a digest of parts for which which(target, part) holds, each once, and their bytes.
local function with_digest(plan, which)
  local list, seen, bytes = {}, {}, 0
  for _, target in ipairs(plan.targets) do
    for _, part in ipairs(target.parts or {}) do
      local entry = part.item.entry
      if entry.attrs.digest and not seen[entry.object] and which(target, part) then
        seen[entry.object] = true
        list[#list + 1] = entry
        bytes = bytes + entry.bytes
      end
    end
  end
  return list, bytes
end

local function is_cut(target, part) return target.unit or part.count ~= names.numel(part.item.entry.shape) end

-- ---------------------------------------------------------------- extents

-- Equal for two targets that are the same stretches of the same datasets.
local function identity(target)
  if names.numel(target.shape) == 0 then return nil end
  local parts = { target.dtype, names.shape(target.shape) }
  for _, part in ipairs(target.parts) do
    parts[#parts + 1] = ("%.0f:%.0f:%.0f"):format(part.item.entry.object, part.first, part.count)
  end
  return table.concat(parts, " ")
end

local function copied(writer, file, target)
  return { id = identity(target), facts = function(leaf) return planner.facts(target, target.shape, leaf) end,
    dataset = function(path)
      local index = writer:dataset(path, target.dtype, target.shape)
      for _, part in ipairs(target.parts) do
        if part.count > 0 then writer:part_file(index, file, part.item.entry, part.first, part.count) end
      end
    end }
end

-- ---------------------------------------------------------------- transforms

local Run = {}
Run.__index = Run

-- A tensor of the source after the transform, contiguous, and whether the function changed it. One at a time: the
-- tensor before is freed.
function Run:produce(item)
  if self.item == item then return self.tensor, self.changed end
  if self.tensor then self.tensor:free() end
  self.item, self.tensor = nil, nil
  local entry = item.entry
  self.tensor, self.changed = memory.scope(function()
    local t = create.empty(entry.shape, { dtype = entry.dtype, device = "cpu" })
    self.file:read(entry, 0, t)
    local before = t:version()
    local result = self.transform(item.name, t, item.info)
    if result == nil then return t, t:version() ~= before end
    if not tensor.is_tensor(result) then
      raise(("convert: transform(%q) returned %s; wanted a tensor, or nil to keep it"):format(item.name, show(result)))
    end
    return tensor.want_tensor("convert", result):detach():contiguous(), true
  end)
  self.item = item
  if not self.counted[item] then
    self.counted[item] = true
    self.note(entry.bytes)
  end
  return self.tensor, self.changed
end

-- The experts of a set agree, or the conversion fails with the names of two that do not.
local function agree(first, item, t)
  if first.dtype == t.dtype and names.same_shape(first.shape, t:shape()) then return end
  raise(("convert: the experts of one layer must agree after the transform: %s became %s %s, %s became %s %s"):format(
    names.show(first.item.name), first.dtype, names.shape(first.shape), names.show(item.name), t.dtype,
    names.shape(t:shape())))
end

-- Expert `first` (0-based) of a transformed stack of `count`.
local function expert_of(t, item, count, first)
  if t:dim() == 0 or t:size(1) ~= count then
    raise(("convert: %s became %s by the transform; wanted its %d experts along the first axis"):format(
      names.show(item.name), names.shape(t:shape()), count))
  end
  return t:select(1, first + 1)
end

-- The dataset of a target whose shape its transform decides.
function Run:dataset(path, target)
  local parts, set, writer = target.parts, target.set, self.writer
  local item = parts[1].item
  local t, changed = self:produce(item)
  local whole = #parts == 1 and target.index == nil
  if whole and not changed then
    local known = self.plain[item.entry.object]
    target.final = t:shape()
    if known then return known end
    self.plain[item.entry.object] = path
  end
  if set and item == set.single then
    if target.index then t = expert_of(t, item, set.count, parts[1].first) else expert_of(t, item, set.count, 0) end
  end
  if whole and not (set and item ~= set.single) then
    target.final = t:shape()
    local index = writer:dataset(path, t.dtype, target.final)
    if t:numel() > 0 then writer:part(index, t) end
    return nil
  end
  local shape = t:shape()
  local known = set.first
  if known then agree(known, item, t) else set.first = { item = item, dtype = t.dtype, shape = shape } end
  target.final = target.index and shape or { set.count, unpack(shape) }
  local index = writer:dataset(path, t.dtype, target.final)
  for _, part in ipairs(parts) do
    if part.item ~= item then
      t = self:produce(part.item)
      agree(set.first, part.item, t)
    end
    if t:numel() > 0 then writer:part(index, t) end
  end
  if t ~= self.tensor then t:free() end -- a view of one expert would hold the memory of all
  return nil
end

function Run:leaf(target)
  if not target.unit then return copied(self.writer, self.file, target) end
  return { facts = function(leaf) return planner.facts(target, target.final, leaf) end,
    dataset = function(path) return self:dataset(path, target) end }
end

-- ---------------------------------------------------------------- the whole

-- What the writer failed with. Damage of the source, which it finds by digests, is an error of the plan as any other,
-- and all damaged datasets are named; nobody can go on from there.
local function failed(plan, file, why)
  if type(why) ~= "string" or not why:find(": the source is damaged: ", 1, true) then error(why, 0) end
  os.remove(plan.destination .. ".partial")
  os.remove(plan.destination .. ".journal")
  local all = with_digest(plan, function() return true end)
  if not check_digests(plan, file, all, function() end).ok then return plan end
  error(why, 0)
end

--- Writes the new file. The plan must be ok and compared; it has errors afterwards where the source is damaged, and
-- then nothing was written.
-- @tparam Plan plan
-- @tparam File file the source, open
-- @tparam table opts transform, resume, progress; resumable = false leaves nothing to go on from; identity of the
--   source file, for the resume key
function M.run(plan, file, opts)
  local entries, checked = with_digest(plan, is_cut)
  local before, total = 0, checked
  for _, item in ipairs(plan.transform and plan.items or {}) do
    if item.entry then total = total + item.entry.bytes end
  end
  if not plan.transform then total = total + plan.bytes end
  local function note(bytes)
    before = before + bytes
    if opts.progress then opts.progress(before, math.max(total, before)) end
  end
  if not check_digests(plan, file, entries, note).ok then return plan end

  local resumable = not opts.transform and opts.resumable ~= false
  local key = resumable and resume_key(plan, file, opts.identity) or nil
  if key and not opts.resume then key = key .. (":%.9f"):format(system.gettime()) end -- nobody's: begins afresh
  local writer = hdf5.create(plan.destination, key and { resume_key = key } or nil)
  local run = setmetatable({ writer = writer, file = file, transform = opts.transform, note = note, plain = {},
    counted = {} }, Run)
  local ok, err = pcall(autograd.no_grad, function()
    write.tree(writer, planner.entries(plan, function(target) return run:leaf(target) end))
    if run.tensor then run.tensor:free() end
    writer:start(false)
  end)
  if not ok then
    writer:discard()
    error(err, 0)
  end
  -- the thread reads from the file: whatever progress does, it is waited for
  ok, err = pcall(function()
    local finished, done, all
    repeat
      finished, done, all = writer:poll()
      if opts.progress and all > 0 and not plan.transform then
        opts.progress(before + done / all * plan.bytes, total)
      end
      if not finished then system.sleep(POLL) end
    until finished
  end)
  local written, why = pcall(writer.wait, writer)
  if not written then return failed(plan, file, why) end
  if not ok then error(err, 0) end
  return plan
end

return M
