-- mascon inspect: what is in a checkpoint, as a tree with its experts folded together, or flat, or as JSON.
--
-- Reads the structure alone, so that it is quick for files of any size; --stats reads every value.

local files = require("mascon.cli.files")
local help = require("mascon.cli.help")
local describe = require("mascon.checkpoint.describe")

local M = {summary = "Show what is in a checkpoint or any HDF5 file."}

local ORDER = {"path", "format", "format_version", "mascon_version", "bytes", "parameters", "step", "optimizer", "rng",
  "layers", "tensors", "values", "views", "name", "type", "dtype", "shape", "num_gemms", "in_features", "out_features",
  "weight_layout", "bias_layout", "optimizer_state", "layout", "offset", "digest", "problem", "stats", "count", "min",
  "max", "mean", "std", "zeros", "nan", "inf", "value"}

local function not_less_than_one(text)
  local value = tonumber(text)
  if value and value >= 1 and value == math.floor(value) then return value end
  return nil, ("--depth: wanted an integer of 1 or more, got '%s'"):format(text)
end

function M.options(command)
  command:argument("file", "A checkpoint, or any HDF5 file.")
  command:mutex(
    command:flag("--tree", "A tree, equal experts in one line (default)."),
    command:flag("--flat", "A line per tensor with its full name, for grep and diff."),
    command:flag("--json", "One JSON object."))
  command:flag("--stats", "Read all values: min, max, mean, std of the finite ones; zeros, NaN and Inf counted.")
  command:option("--match", "Only names with this text in them; * is any text, ? any character."):argname("PAT")
  command:option("--depth", "The tree down to this level; deeper parts in a line each."):argname("N")
    :convert(not_less_than_one)
  help.example(command, "mascon inspect ckpt/step_0001000.h5 --stats --match experts",
    "Exit status: 0 shown, 2 a usage error, 3 not readable, 4 I/O.")
end

-- ---------------------------------------------------------------- what is shown

-- Keeps what matches.
local function restrict(report, text)
  local pattern = files.pattern(text)
  for _, key in ipairs{"tensors", "values", "views"} do
    local kept = {}
    for _, item in ipairs(report[key]) do
      if item.name:find(pattern) then kept[#kept + 1] = item end
    end
    report[key] = kept
  end
end

local function json_report(report, facts)
  local result = {path = report.path, format = report.format, format_version = report.format_version,
    mascon_version = report.mascon_version, bytes = report.bytes, tensors = {}, values = report.values,
    views = report.views}
  for key, value in pairs(facts) do result[key] = value end
  for i, item in ipairs(report.tensors) do
    local copy = {}
    for key, value in pairs(item) do copy[key] = value end
    copy.layer, copy.object = nil, nil -- the layers have a list of their own
    result.tensors[i] = copy
  end
  return result
end

--- @treturn int 0, or 3 and 4 as everywhere
function M.run(options)
  local update, finish = files.progress()
  local report, status = files.attempt("inspect", function()
    return require("mascon").checkpoint.inspect(options.file, {stats = options.stats or false, progress = update})
  end)
  finish()
  if not report then return status end
  local facts = describe.facts(report)
  local head = describe.header(report, facts)
  if options.match then restrict(report, options.match) end
  local text
  if options.json then
    text = files.json(json_report(report, facts), ORDER)
  elseif options.flat then
    text = describe.flat(report)
  else
    text = head .. describe.tree(report, options.depth)
  end
  return files.answer("inspect", text, files.DONE)
end

return M
