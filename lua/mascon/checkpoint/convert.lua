--- mc.checkpoint.convert: one checkpoint file into another, in the layout and under the names that are asked for.
--
-- The plan comes first (convert_plan.lua): complete, or a list of all errors and nothing is written. Then bytes go from
-- the source's extents to the new file's (convert_run.lua), by a bounded amount of memory, and the file gets its
-- name when it is whole. A conversion that was killed goes on where it was; a finished one can be proved to be
-- reversible (convert_check.lua).
local args = require "mascon.args"
local check = require "mascon.checkpoint.convert_check"
local convert_plan = require "mascon.checkpoint.convert_plan"
local convert_run = require "mascon.checkpoint.convert_run"
local disk = require "mascon.checkpoint.disk"
local execute = require "mascon.checkpoint.execute"
local hdf5 = require "mascon.checkpoint.hdf5"
local load = require "mascon.checkpoint.load"

local raise = args.raise

local M = {}

M.LAYOUTS = { "as_is", "single", "per_expert" }

local SPEC = {
  layout = { M.LAYOUTS, "as_is" }, views = { "boolean", false },
  rename = { "function" }, filter = { "function" }, transform = { "function" }, progress = { "function" },
  plan = { "boolean", false }, resume = { "boolean", true }, overwrite = { "boolean", false },
  round_trip = { "boolean", false }, decode_limit = { "positive" },
}

local WRITER_MEMORY = 32 * 2 ^ 20 -- the writer's buffers at most (core/io/bytes.h)
local ENTRY_BYTES, PAGE = 1024, 4096 -- structure of one dataset, and the rounding of its place: estimates

-- Size of the new file, room on its disk, memory.
local function estimate(plan, destination, round_trip)
  local size, largest = ENTRY_BYTES, 0
  for _, target in ipairs(plan.targets) do
    size = size + (target.value == nil and ENTRY_BYTES or 0) + (target.bytes or 0)
    if (target.bytes or 0) > 2 ^ 16 then size = size + PAGE / 2 end
  end
  for _, item in ipairs(plan.transform and plan.items or {}) do
    if item.entry then largest = math.max(largest, item.entry.bytes) end
  end
  plan.size, plan.memory = size, WRITER_MEMORY + 2 * largest
  plan.free = disk.free(disk.folder(destination or plan.source))
  if plan.free and plan.free < size then
    table.insert(plan.warnings, "the disk has less room than the new file needs")
  elseif round_trip and plan.free and plan.free < 2 * size then
    table.insert(plan.warnings, "the disk has less room than the new file and the way back of a round trip need")
  end
end

local function check_paths(source, destination, opts)
  hdf5.check_path("convert", source)
  if destination == nil and opts.plan then return end
  hdf5.check_path("convert", destination)
  if disk.same_file(source, destination) or source == destination then
    raise(("convert: %s and %s are one file; a conversion writes another one"):format(source, destination))
  end
  if not opts.overwrite and not opts.plan and disk.exists(destination) then
    raise(("convert: %s is there already; overwrite = true replaces it"):format(destination))
  end
end

-- The file of the way back.
local function back(source, destination, layouts, progress)
  load.with_file("convert", source, function(file, tree)
    local plan = convert_plan.make(file, tree, { layout = "as_is", views = false, layouts = layouts }, destination)
    plan:raise()
    convert_run.run(plan, file, { resumable = false, progress = progress })
  end)
end

-- Progress of stage n (from 1) of a conversion with round trip: itself, its comparison with the source, and, where no
-- name has changed, the way back and its comparison. Each goes once over all bytes.
local function stage(progress, plan, n)
  if not progress then return nil end
  local bytes, stages = plan.bytes, plan.changed_names and 2 or 4
  return function(done, total) progress((n - 1 + (total > 0 and done / total or 1)) * bytes, stages * bytes) end
end

--- As convert, but what is wrong with the source's content does not raise: it is in the plan that is returned.
function M.attempt(source, destination, opts)
  opts = args.options("convert", opts, SPEC)
  if opts.round_trip and opts.transform then
    raise("convert: round_trip compares bits, and a transform changes them; do one without the other")
  end
  check_paths(source, destination, opts)
  opts.identity = disk.identity(source)
  local progress = opts.progress
  local plan = load.with_file("convert", source, function(file, tree)
    local plan = convert_plan.make(file, tree, opts, destination)
    plan.changed_names = opts.rename ~= nil or opts.filter ~= nil
    plan.decode_limit = opts.decode_limit
    estimate(plan, destination, opts.round_trip)
    if plan.ok then execute.compare(plan, execute.file(file)) end
    if plan.ok and not opts.plan then
      if opts.round_trip then opts.progress = stage(progress, plan, 1) end
      convert_run.run(plan, file, opts)
      plan.done = plan.ok
    end
    return plan
  end, { decode_limit = opts.decode_limit })
  if plan.done and opts.round_trip then
    plan.round_trip = check.round_trip(plan, back, function(n) return stage(progress, plan, 1 + n) end)
  end
  return plan
end

--- Converts a checkpoint, or any plain HDF5 file, into a checkpoint.
--
-- Names given to the functions are dotted, as inspect prints them; info is {shape, dtype, bytes, layer = facts of the
-- grouped layer around it | nil, expert = its number there | nil, value = of a number, boolean or text}.
-- @tparam string source
-- @tparam string|nil destination must not be there; nil with plan = true
-- @tparam table|nil opts
--   layout = "as_is" | "single" | "per_expert": the names of the experts; an optimizer's arrays are stacked in both
--   views = false: the names of the other layout are there too, as virtual datasets
--   rename = fn(name, info) -> new name | list of keys | nil (keep it). A new name lies in as many tables as the old
--     one did, where it has the parts; a list of keys says which: {"model", "layers.0.weight"}
--   filter = fn(name, info) -> true | false (leave it out)
--   transform = fn(name, tensor, info) -> tensor | nil (keep it, as it is now), once for each tensor. Its tensors are
--     freed as the conversion goes on. Such a conversion is not resumable, and its shapes are not known to the plan
--   plan = false: true only plans, and writes nothing
--   resume = true: goes on where an equal conversion was killed; false begins afresh
--   overwrite = false: true replaces a destination that is there; never the source, by whatever links
--   round_trip = false: true compares the new file with the source and, where no name was changed, converts it back
--   and compares that, bit for bit: plan.round_trip = {ok, tensors, bytes, differences, back}
--   progress = fn(bytes done, of all), the comparisons and the way back of a round trip included; decode_limit: bytes
--   that compressed datasets may decode to
-- @treturn Plan {ok, rows = method, errors, warnings, bytes, size, free, memory, ...}; tostring: a table. With
--   plan = true it may have errors; plan:raise() raises them
-- @raise at the user's line: one error with a line per problem, nothing written; or the reason of the system
function M.convert(source, destination, opts)
  local plan = M.attempt(source, destination, opts)
  if not plan.ok and not (opts and opts.plan) then raise(plan.error_text) end
  return plan
end

return M
