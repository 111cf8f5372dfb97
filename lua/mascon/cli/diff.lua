-- mascon diff: what is different between two checkpoints, whatever layouts they have.

local files = require("mascon.cli.files")
local words = require("mascon.checkpoint.words")
local names = require("mascon.checkpoint.plan_names")
local help = require("mascon.cli.help")

local M = {summary = "Compare two checkpoints; one per-expert and one stacked layout of equal experts are equal."}

local ORDER = {"a", "b", "ok", "equal", "equal_values", "only_a", "only_b", "shape", "dtype", "differing", "values",
  "unreadable", "layouts", "name", "count", "of", "max_abs", "max_rel", "cosine", "first", "index", "message"}

local function not_negative(option)
  return function(text)
    local value = tonumber(text)
    if value and value >= 0 then return value end
    return nil, ("%s: wanted a number of 0 or more, got '%s'"):format(option, text)
  end
end

function M.options(command)
  command:argument("a", "A checkpoint, or any HDF5 file.")
  command:argument("b", "Another one.")
  command:option("--rtol", "Elements with |a - b| <= atol + rtol * |b| are equal.", 0):convert(not_negative "--rtol")
  command:option("--atol", "See --rtol. Without either, bits decide.", 0):convert(not_negative "--atol")
  command:flag("--stats", "Add the cosine of tensors that differ.")
  command:flag("--exact-layout", "Compare names as they are: another layout is a difference.")
  command:flag("--json", "The report as one JSON object.")
  help.example(command, "mascon diff step_100.h5 converted.h5 --rtol 1e-6",
    "Exit status: 0 equal, 1 different, 2 a usage error, 3 not readable, 4 I/O.")
end

local function put(lines, text, ...) lines[#lines + 1] = text:format(...) end

local function both(item)
  local parts = {}
  if item.a ~= nil then parts[#parts + 1] = ("%s in A"):format(words.show_value(item.a)) end
  if item.b ~= nil then parts[#parts + 1] = ("%s in B"):format(words.show_value(item.b)) end
  return item.message or table.concat(parts, ", ")
end

local function short(value, format)
  if type(value) ~= "number" or value - value ~= 0 then return words.show_number(value) end
  return (format or "%.6g"):format(value)
end

local function difference(item)
  local index = {}
  for axis, i in ipairs(item.first.index) do index[axis] = ("%.0f"):format(i) end
  local cosine = item.cosine and ", cosine " .. short(item.cosine) or ""
  return ("%s of %s elements, max abs %s, max rel %s%s, first at [%s]: %s in A, %s in B"):format(
    words.thousands(item.count), words.thousands(item.of), short(item.max_abs), short(item.max_rel), cosine,
    table.concat(index, ", "), short(item.first.a, "%.9g"), short(item.first.b, "%.9g"))
end

-- One line a finding, its kind first.
local function text_of(report)
  local lines, show = {}, names.show
  for _, side in ipairs{"a", "b"} do
    for _, group in ipairs(names.fold(report["only_" .. side])) do
      put(lines, "only in %s: %s", side:upper(), group.text)
    end
  end
  for _, kind in ipairs{"shape", "dtype"} do
    for _, item in ipairs(report[kind]) do
      put(lines, "%s: %s%s", kind, item.message and "" or show(item.name) .. ": ", (both(item):gsub('"', "")))
    end
  end
  for _, item in ipairs(report.differing) do put(lines, "differs: %s: %s", show(item.name), difference(item)) end
  for _, item in ipairs(report.values) do put(lines, "value: %s: %s", show(item.name), both(item)) end
  for _, item in ipairs(report.unreadable) do put(lines, "unreadable: %s: %s", show(item.name), item.message) end
  for _, item in ipairs(report.layouts) do
    put(lines, "layout: %s: %s in A, %s in B", show(item.name), item.a, item.b)
  end
  put(lines, "%s: %s and %s equal", report.ok and "equal" or "DIFFERENT", words.plural(report.equal, "tensor"),
    words.plural(report.equal_values, "value"))
  return table.concat(lines, "\n") .. "\n"
end

--- @treturn int 0 equal, 1 different, 3 and 4 as everywhere
function M.run(options)
  local update, finish = files.progress()
  local report, status = files.attempt("diff", function()
    return require("mascon").checkpoint.diff(options.a, options.b, {rtol = options.rtol, atol = options.atol,
      stats = options.stats or false, layout_aware = not options.exact_layout, progress = update})
  end)
  finish()
  if not report then return status end
  local text = options.json and files.json(report, ORDER) or text_of(report)
  return files.answer("diff", text, report.ok and files.DONE or files.NO)
end

return M
