--- Numbers and values as people read them in reports.
local names = require "mascon.checkpoint.plan_names"

local M = {}

-- The shortest text that reads back as the number.
local function number_text(value)
  if value == math.floor(value) and math.abs(value) < 2 ^ 53 then return ("%.0f"):format(value) end
  for digits = 15, 17 do
    local text = ("%." .. digits .. "g"):format(value)
    if tonumber(text) == value then return text end
  end
end
M.number_text = number_text

--- A number (or int64) as text; "nan", "inf" and "-inf" on every system.
function M.show_number(value)
  if type(value) ~= "number" then return (tostring(value):gsub("[UL]+$", "")) end
  if value ~= value then return "nan" end
  if value == math.huge or value == -math.huge then return value > 0 and "inf" or "-inf" end
  return number_text(value)
end

--- 1234567 as 1,234,567
function M.thousands(n)
  local text = ("%.0f"):format(n)
  local more
  repeat text, more = text:gsub("^(%d+)(%d%d%d)", "%1,%2") until more == 0
  return text
end

--- "1 tensor", "2 tensors"
function M.plural(n, word) return ("%s %s%s"):format(M.thousands(n), word, n == 1 and "" or "s") end

--- Text of a value as it stands in a table: strings quoted, one line.
function M.show_value(value)
  if type(value) == "string" then return '"' .. names.show(value) .. '"' end
  if type(value) == "boolean" then return tostring(value) end
  return M.show_number(value)
end

return M
