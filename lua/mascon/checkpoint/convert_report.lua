--- What a conversion's plan looks like to people: its errors, its table, its raise.
--
-- A plan has ok, errors = {{code, name, message}, ...}, warnings, source, destination, layout, bytes (of all tensors; 0
-- before a transform), size (of the new file), memory (at most, beside this process's own), free (bytes on the disk;
-- nil: unknown), dropped, unchanged (names rename left alone), redundant (of the second of two layouts), recognised
-- (sets that names alone made experts), skipped_views; rows() lists what becomes what.
local args = require "mascon.args"
local names = require "mascon.checkpoint.plan_names"
local words = require "mascon.checkpoint.words"

local concat, pad = table.concat, names.pad

local Plan = {}
Plan.__index = Plan

--- Rebuilds ok and error_text after the list of errors has changed.
function Plan:refresh()
  self.ok = #self.errors == 0
  self.error_text = nil
  if self.ok then return self end
  local lines = { ("%s: cannot convert, %s; nothing was written"):format(names.show(self.source),
    words.plural(#self.errors, "problem")) }
  for _, e in ipairs(self.errors) do lines[#lines + 1] = ("[%s] %s"):format(e.code, e.message) end
  self.error_text = concat(lines, "\n")
  return self
end

--- Raises error_text when the plan has errors; otherwise returns the plan.
function Plan:raise()
  if not self.ok then args.raise(self.error_text) end
  return self
end

--- Called by the executor when two layouts of the source differ.
function Plan:differs(compare, element)
  local at = compare.count == 1 and "" or (", first at element %.0f (0-based)"):format(element)
  table.insert(self.errors, { code = compare.code, name = compare.name, message = compare.text .. at })
  return self:refresh()
end

-- "stack", "split", "join" (equal numbers into one), "copy", "value"; and whether a transform comes before.
local function op_of(target)
  local set = target.set
  if set and set.role == "scalar" then return "join" end
  if target.value ~= nil then return "value" end
  if not set or set.layout == "single" and #target.parts == 1 and target.parts[1].item == set.single then
    return "copy"
  end
  if set.layout == "single" then return "stack" end
  return target.parts[1].item == set.single and "split" or "copy"
end

local function sources_of(target, into)
  if target.value ~= nil and not target.set then into[1] = target.item.name end
  if target.set and target.set.role == "scalar" then
    for _, index in ipairs(target.set.list) do into[#into + 1] = target.set.members[index].name end
    if #into == 0 then into[1] = target.set.single.name end
    return
  end
  for _, part in ipairs(target.parts or {}) do
    local name = part.item.name
    if into[#into] ~= name then into[#into + 1] = name end
  end
end

--- What becomes what: one row per tensor or text, the experts of a layer in one.
-- @treturn {table,...} {sources, op, targets, shape, dtype (nil before a transform), bytes, value = for small values}
function Plan:rows()
  local rows, by_set = {}, {}
  for _, target in ipairs(self.targets) do
    local set = target.index and target.set
    local row = set and by_set[set]
    if not row then
      row = { sources = {}, op = op_of(target), targets = {}, shape = target.shape, dtype = target.dtype, bytes = 0,
        value = target.value, transform = self.transform and target.unit or nil }
      rows[#rows + 1] = row
      if set then by_set[set] = row end
    end
    sources_of(target, row.sources)
    row.targets[#row.targets + 1] = target.name
    row.bytes = row.bytes + (target.bytes or 0)
  end
  return rows
end

-- "a.{0-7}.w" for names that differ in one number wherever it stands; nil for others.
local function fold_middle(list)
  local first, last = list[1], list[#list]
  local from, to = 1, 0
  while from <= #first and first:byte(from) == last:byte(from) do from = from + 1 end
  while to < #first and first:byte(#first - to) == last:byte(#last - to) do to = to + 1 end
  local head = first:sub(1, from - 1):gsub("%d+$", "")
  local tail = first:sub(math.max(#first - to + 1, from)):gsub("^%d+", "")
  local numbers = {}
  for i, name in ipairs(list) do
    local digits = name:sub(1, #head) == head and name:sub(-#tail) == tail and name:sub(#head + 1, #name - #tail)
    if not digits or not digits:find "^%d+$" then return nil end
    numbers[i] = tonumber(digits)
  end
  table.sort(numbers)
  return ("%s{%s}%s"):format(names.show(head), names.ranges(numbers), names.show(tail))
end

local function folded(list)
  return #names.fold(list) > 1 and fold_middle(list) or names.folded(list)
end

-- Tensors of one stem that are copied one by one, in one row too.
local function fold_copies(rows)
  local result, by_kind = {}, {}
  for _, row in ipairs(rows) do
    local from, index = names.split(row.sources[1] or "")
    local to, other = names.split(row.targets[1])
    local kind = row.op == "copy" and #row.targets == 1 and index and index == other and row.shape
      and concat({ from, to, row.dtype, names.shape(row.shape) }, "\0")
    local first = kind and by_kind[kind]
    if first then
      table.insert(first.sources, row.sources[1])
      table.insert(first.targets, row.targets[1])
      first.bytes = first.bytes + row.bytes
    else
      if kind then by_kind[kind] = row end
      result[#result + 1] = row
    end
  end
  return result
end

local function shape_text(row)
  if not row.shape then return "as its transform gives it" end
  return (#row.targets > 1 and ("%d x "):format(#row.targets) or "") .. row.dtype .. names.shape(row.shape)
end

local function table_lines(rows, lines)
  local cells, widths = {}, { 0, 0, 0, 0 }
  for i, row in ipairs(rows) do
    cells[i] = { folded(row.sources), row.op .. (row.transform and ", transform" or ""), folded(row.targets),
      shape_text(row), row.shape and names.bytes(row.bytes) or "" }
    for k = 1, 4 do
      if #cells[i][k] <= 60 then widths[k] = math.max(widths[k], #cells[i][k]) end
    end
  end
  for _, cell in ipairs(cells) do
    lines[#lines + 1] = (("  %s  %s -> %s  %s  %10s"):format(pad(cell[1], widths[1]), pad(cell[2], widths[2]),
      pad(cell[3], widths[3]), pad(cell[4], widths[4]), cell[5]):gsub("%s+$", ""))
  end
end

--- "1.2 GB, 3 tensors ...": the first line.
function Plan:summary()
  local tensors, values = 0, 0
  for _, target in ipairs(self.targets) do
    if target.value ~= nil then values = values + 1 else tensors = tensors + 1 end
  end
  local to = self.destination and " -> " .. names.show(self.destination) or ""
  local what = self.ok and "" or words.plural(#self.errors, "problem") .. ", "
  return ("%s%s: %s%s%s, %s"):format(names.show(self.source), to, what, words.plural(tensors, "tensor"),
    self.transform and "" or ", " .. names.bytes(self.bytes), words.plural(values, "value"))
end

function Plan:__tostring()
  local lines, tensors, values = { self:summary() }, {}, 0
  for _, row in ipairs(self:rows()) do
    if row.op ~= "value" or row.sources[1] ~= row.targets[1] then
      tensors[#tensors + 1] = row
      if row.op == "value" then row.shape, row.dtype = {}, type(row.value) end
    else
      values = values + 1
    end
  end
  table_lines(fold_copies(tensors), lines)
  if values > 0 then lines[#lines + 1] = ("  %s as they are"):format(words.plural(values, "value")) end
  for _, list in ipairs { { "experts by their names", self.recognised }, { "dropped", self.dropped },
    { "not renamed", self.unchanged }, { "left out, there in both layouts", self.redundant },
    { "views, not copied", self.skipped_views } } do
    if #list[2] > 0 then lines[#lines + 1] = ("%s: %s"):format(list[1], folded(list[2])) end
  end
  if self.size then
    lines[#lines + 1] = ("size: %s%s   free: %s   memory: up to %s"):format(self.transform and "at least " or "about ",
      names.bytes(self.size), self.free and names.bytes(self.free) or "unknown", names.bytes(self.memory))
  end
  for _, warning in ipairs(self.warnings) do lines[#lines + 1] = "warning: " .. warning end
  for _, e in ipairs(self.errors) do lines[#lines + 1] = ("[%s] %s"):format(e.code, e.message) end
  return concat(lines, "\n")
end

return Plan
