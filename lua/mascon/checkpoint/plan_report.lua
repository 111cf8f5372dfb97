--- What a finished load plan looks like to people: its error text, its table, its raise.
--
-- The first line of an error text is the file or module, then one line per problem, each starting
-- with its code in brackets. Pure Lua; plan.lua fills the object.

local experts = require("mascon.checkpoint.plan_experts")
local names = require("mascon.checkpoint.plan_names")
local words = require("mascon.checkpoint.words")

local concat, folded, pad, plural = table.concat, names.folded, names.pad, words.plural

local BYTES = {
  float64 = 8, int64 = 8, float32 = 4, int32 = 4, float16 = 2, bfloat16 = 2, uint8 = 1, bool = 1,
  float8_e4m3fn = 1, float8_e5m2 = 1, float8_e8m0fnu = 1,
}

local Plan = {}
Plan.__index = Plan

--- Bytes that the copies write.
function Plan:bytes()
  local bytes = 0
  for _, copy in ipairs(self.copies) do
    if not copy.adopt and not copy.skip then bytes = bytes + copy.count * (BYTES[copy.want.dtype] or 1) end
  end
  return bytes
end

-- Rebuilds ok and error_text after the list of errors has changed.
function Plan:refresh()
  self.ok = #self.errors == 0
  if self.ok then
    self.error_text = nil
    return self
  end
  local lines = { ("%s: cannot load, %s; nothing was changed"):format(self.where,
    plural(#self.errors, "problem")) }
  for _, e in ipairs(self.errors) do lines[#lines + 1] = ("[%s] %s"):format(e.code, e.message) end
  self.error_text = concat(lines, "\n")
  return self
end

--- Raises error_text when the plan has errors; otherwise returns the plan.
function Plan:raise(level)
  if not self.ok then error(self.error_text, level and level + 1 or 2) end
  return self
end

--- Called by the executor when a requested comparison found a difference.
-- @tparam table compare an entry of self.compare
-- @tparam number element the first differing element of its range, 0-based
function Plan:differs(compare, element)
  local at = compare.count == 1 and "" or (", first at element %.0f (0-based)"):format(element)
  local text = compare.text .. at
  if compare.demote then
    self.warnings[#self.warnings + 1] = text .. "; not loaded"
    compare.copy.skip = true
    return self
  end
  self.errors[#self.errors + 1] = { code = compare.code, name = compare.name, message = text }
  return self:refresh()
end

-- One row per want that is copied to: target, shape, dtype, sources, what happens.
local function rows_of(plan)
  local rows, by_want = {}, {}
  for _, copy in ipairs(plan.copies) do
    local row = by_want[copy.want]
    if not row then
      row = { want = copy.want, sources = {} }
      by_want[copy.want] = row
      rows[#rows + 1] = row
    end
    row.sources[#row.sources + 1] = copy.name
    row.cast = row.cast or copy.cast
    row.reshape = row.reshape or copy.reshape
    row.adopt = row.adopt or copy.adopt
    row.layout = copy.layout
  end
  return rows
end

local function notes_of(row, range)
  local notes = {}
  local packed = row.want.packed
  if packed and range and range.count == packed.count then notes[1] = experts.text(range) end
  if packed and packed.role ~= "scalar" and row.layout ~= packed.layout then
    notes[#notes + 1] = row.layout .. " -> " .. packed.layout
  end
  if row.cast then notes[#notes + 1] = row.cast.from .. " -> " .. row.cast.to end
  if row.reshape then notes[#notes + 1] = "reshape" end
  if row.adopt then notes[#notes + 1] = "adopt" end
  return concat(notes, ", ")
end

function Plan:__tostring()
  local lines, width, shape_width = {}, 0, 0
  local table_rows = {}
  for i, row in ipairs(rows_of(self)) do
    local want = row.want
    local cells = { names.show(want.name), names.shape(want.shape) .. " " .. want.dtype,
      folded(row.sources), notes_of(row, self.experts) }
    table_rows[i] = cells
    width = math.max(width, #cells[1])
    shape_width = math.max(shape_width, #cells[2])
  end
  lines[1] = ("%s: %s, %s to load, %s to copy"):format(self.where,
    self.ok and "fits" or plural(#self.errors, "problem"), plural(#table_rows, "tensor"),
    names.bytes(self:bytes()))
  for _, cells in ipairs(table_rows) do
    local note = cells[4] ~= "" and ("  (%s)"):format(cells[4]) or ""
    lines[#lines + 1] = concat { "  ", pad(cells[1], width), "  ", pad(cells[2], shape_width), "  <- ",
      cells[3], note }
  end
  for _, list in ipairs { "ignored", "missing", "unexpected" } do
    if #self[list] > 0 then lines[#lines + 1] = ("%s: %s"):format(list, folded(self[list])) end
  end
  for _, warning in ipairs(self.warnings) do lines[#lines + 1] = "warning: " .. warning end
  for _, e in ipairs(self.errors) do lines[#lines + 1] = ("[%s] %s"):format(e.code, e.message) end
  return concat(lines, "\n")
end

return Plan
