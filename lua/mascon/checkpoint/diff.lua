--- mc.checkpoint.diff: what is different between two files, tensor by tensor and value by value.
--
-- Names are compared first. Where one file has a tensor as one entry and the other one entry per expert, the planner
-- (plan.lua) says which part is which; everything else is compared under its own name. Bytes are then
-- read in pieces, so memory does not grow with the files.
local args = require "mascon.args"
local inspect = require "mascon.checkpoint.inspect"
local load = require "mascon.checkpoint.load"
local names = require "mascon.checkpoint.plan_names"
local pieces = require "mascon.checkpoint.pieces"
local planner = require "mascon.checkpoint.plan"
local values = require "mascon.checkpoint.diff_values"

local M = {}

local function not_negative(v) return type(v) == "number" and v >= 0 end

local SPEC = {
  rtol = { not_negative, 0, want = "a number of 0 or more" },
  atol = { not_negative, 0, want = "a number of 0 or more" },
  layout_aware = { "boolean", true },
  stats = { "boolean", false },
  progress = { "function" },
  decode_limit = { "positive" },
}

-- A single entry of more experts than this for each entry of the other file is no packed layer.
local MAX_SHARE = 64

local Diff = {}
Diff.__index = Diff

-- ---------------------------------------------------------------- names

-- {order = names, by = name -> leaf, file} of everything in a file. Two keys may spell one dotted name; the later
-- one gets a number.
local function contents(file, tree)
  local side = { file = file, order = {}, by = {}, paired = {} }
  inspect.each_leaf(tree, "", function(name, leaf)
    local unique, n = name, 1
    while side.by[unique] do
      n = n + 1
      unique = ("%s (%d)"):format(name, n)
    end
    side.by[unique] = leaf
    side.order[#side.order + 1] = unique
  end)
  names.sort(side.order)
  return side
end

local function is_tensor(leaf) return leaf ~= nil and leaf.value == nil and not leaf.text end

-- ---------------------------------------------------------------- one entry here, one per expert there

-- stem -> {index of a member = its name} for the members in `many` of what `one` has as a single tensor.
local function candidates(one, many)
  local sets, order = {}, {}
  for _, name in ipairs(many.order) do
    local stem, index = names.split(name)
    if index and index ~= math.huge and is_tensor(many.by[name]) and is_tensor(one.by[stem])
      and not many.by[stem] then
      if not sets[stem] then
        sets[stem] = { members = {}, n = 0 }
        order[#order + 1] = stem
      end
      sets[stem].members[index] = name
      sets[stem].n = sets[stem].n + 1
      if one.by[name] then sets[stem].both = true end
    end
  end
  return sets, order
end

-- Whether the entries fit one another so well that no file need say that they are experts.
local function is_evident(entry, set, many)
  local numel = names.numel(entry.shape) / entry.shape[1]
  for index = 0, entry.shape[1] - 1 do
    local name = set.members[index]
    if not name or #many.by[name].entry.shape ~= #entry.shape - 1
      or names.numel(many.by[name].entry.shape) ~= numel then
      return false
    end
  end
  return set.n == entry.shape[1]
end

local ROLES = { [3] = "weight" } -- by the number of axes: how strictly the planner reads shapes

local function new_want(stem, set, one, many)
  local leaf = one.by[stem]
  local shape = leaf.entry.shape
  local count = shape[1]
  if #shape == 0 or set.both or count > MAX_SHARE * (set.n + 1) then return nil end
  local declared = load.packed_role(leaf) ~= nil
  for _, name in pairs(set.members) do declared = declared or load.packed_role(many.by[name]) ~= nil end
  if not declared and not is_evident(leaf.entry, set, many) then return nil end
  return { name = stem, shape = shape, dtype = leaf.entry.dtype, leaf = leaf,
    packed = { count = count, role = ROLES[#shape] or "bias", layout = "single" } }
end

-- The planner's errors, as entries of the report.
function Diff:note_errors(plan, wants, one)
  local report = self.report
  for _, err in ipairs(plan.errors) do
    local want = wants[err.name] or wants[names.split(err.name)]
    local entry, list = { name = want.name, message = err.message }, report.shape
    if err.code == "file" then
      list = report.unreadable
    elseif err.code == "dtype" then
      list, entry[one.key] = report.dtype, want.dtype
    else
      entry[one.key] = names.shape(want.shape)
    end
    list[#list + 1] = entry
  end
  for _, name in ipairs(plan.missing) do
    table.insert(report["only_" .. one.key], name)
    self.partial[names.split(name)] = true
  end
end

--- Finds what `one` has as a single entry and `many` as one entry per expert, and plans which part is which.
function Diff:pair_layouts(one, many)
  local sets, order = candidates(one, many)
  local wants, offers = {}, {}
  for _, stem in ipairs(order) do
    local want = new_want(stem, sets[stem], one, many)
    if want and want.leaf.entry.problem then
      table.insert(self.report.unreadable, { name = stem, message = names.show(want.leaf.entry.problem) })
      one.paired[stem] = true
      for _, name in pairs(sets[stem].members) do many.paired[name] = true end
    elseif want then
      wants[#wants + 1], wants[stem] = want, want
      one.paired[stem] = true
      for _, name in pairs(sets[stem].members) do
        local entry = many.by[name].entry
        many.paired[name] = true
        offers[#offers + 1] = { name = name, entry = entry, shape = entry.shape, dtype = entry.dtype,
          problem = entry.problem }
      end
      table.insert(self.report.layouts, { name = stem, [one.key] = "single", [many.key] = "per_expert" })
    end
  end
  if #wants == 0 then return end
  local plan = planner.make(wants, offers, { strict = false, allow_partial_experts = true, holder = "other file" })
  self:note_errors(plan, wants, one)
  local pairs_of = {}
  for _, copy in ipairs(plan.copies) do
    local want = copy.want
    local pair = pairs_of[want]
    if not pair then
      pair = { name = want.name, shape = want.shape, parts = {} }
      pairs_of[want] = pair
      self.pairs[#self.pairs + 1] = pair
    end
    local here = { file = one.file, entry = want.leaf.entry, first = copy.want_first }
    local there = { file = many.file, entry = copy.offer.entry, first = copy.offer_first }
    table.insert(pair.parts, { [one.key] = here, [many.key] = there, at = copy.want_first, count = copy.count })
    if copy.cast then pair.dtype = { [one.key] = want.dtype, [many.key] = copy.cast.from } end
  end
end

-- ---------------------------------------------------------------- one entry here, one there

local function kind_text(leaf)
  if leaf.value ~= nil then return leaf.value end
  if leaf.text then return ("a text of %.0f bytes"):format(leaf.entry.bytes) end
  return ("a tensor %s %s"):format(names.shape(leaf.entry.shape), tostring(leaf.entry.dtype))
end

local function whole(side, entry) return { file = side.file, entry = entry, first = 0 } end

function Diff:pair_names(name, a, b)
  local report, here, there = self.report, a.by[name], b.by[name]
  local x, y = here.entry, there.entry
  if here.value ~= nil and there.value ~= nil and values.same(here.value, there.value, self.opts) then
    report.equal_values = report.equal_values + 1
  elseif here.value ~= nil or there.value ~= nil or here.text ~= there.text or here.text and x.bytes ~= y.bytes then
    table.insert(report.values, { name = name, a = kind_text(here), b = kind_text(there) })
  elseif x.problem or y.problem then
    table.insert(report.unreadable, { name = name, message = names.show(x.problem or y.problem) })
  elseif not names.same_shape(x.shape, y.shape) then
    table.insert(report.shape, { name = name, a = names.shape(x.shape), b = names.shape(y.shape) })
  else
    self.pairs[#self.pairs + 1] = { name = name, shape = x.shape, is_text = here.text,
      dtype = x.dtype ~= y.dtype and { a = x.dtype, b = y.dtype } or nil,
      parts = { { a = whole(a, x), b = whole(b, y), at = 0, count = names.numel(x.shape) } } }
  end
end

-- ---------------------------------------------------------------- the comparison

function Diff:compare(pair)
  local report, opts = self.report, self.opts
  local found = values.state()
  for _, part in ipairs(pair.parts) do
    for at = 0, part.count - 1, pieces.SIZE do
      local n = math.min(pieces.SIZE, part.count - at)
      local x = self.readers.a:fetch(part.a.file, part.a.entry, part.a.first + at, n)
      local y = self.readers.b:fetch(part.b.file, part.b.entry, part.b.first + at, n)
      values.compare(found, x, y, part.at + at, self.readers, opts)
      self.done = self.done + n * x:element_size()
      if opts.progress then opts.progress(self.done, self.total) end
    end
  end
  if pair.dtype then table.insert(report.dtype, { name = pair.name, a = pair.dtype.a, b = pair.dtype.b }) end
  if found.count > 0 and pair.is_text then
    table.insert(report.values, { name = pair.name, a = "a text", b = ("another of the same length, from byte %.0f on")
      :format(found.first) })
  elseif found.count > 0 then
    table.insert(report.differing, values.result(found, pair, opts))
  elseif not pair.dtype and not self.partial[pair.name] then
    local list = pair.is_text and "equal_values" or "equal"
    report[list] = report[list] + 1
  end
end

--- Fills the report.
function Diff:run(a, b)
  local report = self.report
  if self.opts.layout_aware then
    self:pair_layouts(a, b)
    self:pair_layouts(b, a)
  end
  for _, name in ipairs(a.order) do
    if not a.paired[name] then
      if b.by[name] and not b.paired[name] then
        self:pair_names(name, a, b)
      else
        table.insert(report.only_a, name)
      end
    end
  end
  for _, name in ipairs(b.order) do
    if not b.paired[name] and not (a.by[name] and not a.paired[name]) then table.insert(report.only_b, name) end
  end
  for _, pair in ipairs(self.pairs) do
    for _, part in ipairs(pair.parts) do
      local entry = part.a.entry
      if part.count > 0 then self.total = self.total + part.count * (entry.bytes / names.numel(entry.shape)) end
    end
  end
  for _, pair in ipairs(self.pairs) do self:compare(pair) end
end

--- Compares two files. Raises only where a file cannot be read at all.
-- @tparam string a,b paths; any HDF5 files
-- @tparam table|nil opts rtol, atol: elements with |a - b| <= atol + rtol * |b| are equal, as are two NaNs (default 0
--   and 0: bits decide); layout_aware = true: experts stored one by one equal the same experts stored as one;
--   stats = true: cosines too; progress = fn(bytes done, of all); decode_limit: bytes that the compressed datasets
--   of a file may decode to
-- @treturn table {ok = no difference, only_a, only_b = names, shape, dtype = {{name, a, b, message | nil}, ...},
--   differing = {{name, shape, count, of, max_abs, max_rel (of |b|), cosine | nil, first = {index (0-based), a, b}},
--   ...}, values = {{name, a, b}, ...}, unreadable = {{name, message}, ...}, layouts = {{name, a, b}, ...} of the
--   tensors whose layouts differ, equal = number of equal tensors, equal_values = of equal numbers and texts}
function M.diff(a, b, opts)
  opts = args.options("checkpoint.diff", opts, SPEC)
  local open_options = { decode_limit = opts.decode_limit }
  return load.with_file("checkpoint.diff", a, function(file_a, tree_a)
    return load.with_file("checkpoint.diff", b, function(file_b, tree_b)
      local report = { only_a = {}, only_b = {}, shape = {}, dtype = {}, differing = {}, values = {}, unreadable = {},
        layouts = {}, equal = 0, equal_values = 0, a = a, b = b }
      local diff = setmetatable({ opts = opts, report = report, pairs = {}, partial = {}, done = 0, total = 0,
        readers = { a = pieces.reader(), b = pieces.reader() } }, Diff)
      local side_a, side_b = contents(file_a, tree_a), contents(file_b, tree_b)
      side_a.key, side_b.key = "a", "b"
      diff:run(side_a, side_b)
      report.ok = true
      for _, list in ipairs { "only_a", "only_b", "shape", "dtype", "differing", "values", "unreadable" } do
        report.ok = report.ok and #report[list] == 0
      end
      return report
    end, open_options)
  end, open_options)
end

return M
