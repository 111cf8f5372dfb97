-- mascon convert: a checkpoint, or any HDF5 file, into a checkpoint of another layout; or the plan of that.

local files = require("mascon.cli.files")
local help = require("mascon.cli.help")
local words = require("mascon.checkpoint.words")

local M = {summary = "Convert a checkpoint between layouts; without a destination, show the plan."}

-- What of a plan is shown as JSON, and the keys of its parts.
local SHOWN = {"source", "destination", "ok", "done", "layout", "views", "rows", "bytes", "size", "free", "memory",
  "recognised", "dropped", "unchanged", "redundant", "skipped_views", "warnings", "errors", "round_trip"}
local PARTS = {"sources", "op", "transform", "targets", "shape", "dtype", "value", "code", "name", "message", "tensors",
  "back", "differences"}

function M.options(command)
  command:argument("source", "A checkpoint, or any HDF5 file.")
  command:argument("destination", "The new file; must not be there (see --force)."):args("?")
  command:option("--layout", "Names of the experts: 'single' (one weight), 'per_expert' (weight0, weight1, ...) or "
    .. "'as_is'. An optimizer's arrays are stacked in both."):choices{"single", "per_expert", "as_is"}:default("as_is")
  command:flag("--views", "The names of the other layout too, as virtual datasets.")
  command:option("--match", "Only names with this text in them; * is any text, ? any character."):argname("PAT")
  command:flag("--plan", "Only show what would be done.")
  command:flag("--round-trip", "Afterwards compare with the source, convert back and compare that, bit for bit.")
  command:flag("--restart", "Begin afresh, where an equal conversion was killed before.")
  command:flag("--force", "Replace a destination that is there.")
  command:flag("--json", "The plan, and what came of it, as one JSON object.")
  command:flag("-q --quiet", "No progress, and no answer but the status.")
  help.example(command, "mascon convert te.h5 stacked.h5 --layout single --views --round-trip",
    "A conversion that is killed goes on when it is run again.\n" ..
    "Exit status: 0 done, 1 the plan has errors or the round trip differs, 2 a usage error, 3 not readable, 4 I/O.")
end

-- Why these two files are no source and destination; nil when they are.
local function path_problem(options)
  local disk = require("mascon.checkpoint.disk")
  if not options.destination then return nil end
  if options.source == options.destination or disk.same_file(options.source, options.destination) then
    return ("%s and %s are one file; a conversion writes another one"):format(options.source, options.destination)
  end
  if not options.force and not options.plan and disk.exists(options.destination) then
    return ("%s is there already; --force replaces it"):format(options.destination)
  end
  return nil
end

local function json_of(plan)
  local report, order = {}, {}
  for i, key in ipairs(SHOWN) do report[key], order[i] = plan[key], key end
  for _, key in ipairs(PARTS) do order[#order + 1] = key end
  report.rows = plan:rows()
  return files.json(report, order)
end

local function result_text(plan)
  local lines = {plan:summary()}
  local trip = plan.round_trip
  if trip then
    for _, difference in ipairs(trip.differences) do lines[#lines + 1] = difference end
    lines[#lines + 1] = trip.ok and ("%s%s / %s bytes identical"):format(trip.back and "there and back: " or "",
      words.plural(trip.tensors, "tensor"), words.thousands(trip.bytes)) or "NOT IDENTICAL"
  end
  return table.concat(lines, "\n") .. "\n"
end

-- The exit status that a plan's errors stand for: a damaged file is not readable as what it claims.
local function status_of(plan)
  for _, err in ipairs(plan.errors) do
    if err.code == "file" then return files.UNREADABLE end
  end
  if not plan.ok or plan.round_trip and not plan.round_trip.ok then return files.NO end
  return files.DONE
end

--- @treturn int see the epilog above
function M.run(options)
  local why = path_problem(options)
  if why then
    io.stderr:write("mascon convert: ", why, "\n")
    return files.USAGE
  end
  local only_plan = options.plan or not options.destination
  local update, finish = files.progress()
  local pattern = options.match and files.pattern(options.match)
  local plan, status = files.attempt("convert", function()
    return require("mascon.checkpoint.convert").attempt(options.source, options.destination, {
      layout = options.layout, views = options.views or false, plan = only_plan, resume = not options.restart,
      overwrite = options.force or false, round_trip = options.round_trip and not only_plan or false,
      filter = pattern and function(name) return name:find(pattern) ~= nil end or nil,
      progress = not options.quiet and update or nil})
  end)
  finish()
  if not plan then return status end
  status = status_of(plan)
  if not plan.ok and not only_plan then io.stderr:write("mascon convert: ", plan.error_text, "\n") end
  if options.json then return files.answer("convert", json_of(plan), status) end
  if options.quiet then return status end
  if only_plan then return files.answer("convert", tostring(plan) .. "\n", status) end
  for _, warning in ipairs(plan.warnings) do io.stderr:write("mascon convert: warning: ", warning, "\n") end
  return plan.ok and files.answer("convert", result_text(plan), status) or status
end

return M
