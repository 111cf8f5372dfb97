--- mc.save: nested tables of tensors, numbers, strings and booleans into one HDF5 file, whole or not at all.
--
-- How tables lie in the file is format.lua's; this walks the object. Keys go out in numeric-aware order, so
-- equal content gives equal files. Tensors that are the very same memory become one dataset with two names.
local args = require "mascon.args"
local async = require "mascon.checkpoint.async"
local autograd = require "mascon.autograd"
local ffi = require "ffi"
local format = require "mascon.checkpoint.format"
local hdf5 = require "mascon.checkpoint.hdf5"
local layout = require "mascon.checkpoint.layout"
local lazy = require "mascon.checkpoint.lazy"
local names = require "mascon.checkpoint.plan_names"
local state = require "mascon.checkpoint.state"
local system = require "system"
local tensor = require "mascon.tensor"
local tree = require "mascon.checkpoint.write"
local views = require "mascon.checkpoint.views"

local raise, show = args.raise, args.show
local is_tensor = tensor.is_tensor

local LAYOUTS = { "as_is", "single", "per_expert" }
local SPEC = { layout = { LAYOUTS, "as_is" }, views = { "boolean", false }, async = { "boolean", false },
  progress = { "function" } }

local POLL = 0.05 -- seconds between two looks at how far a save is

local function where_text(where, key)
  return where == "" and tostring(key) or where .. "." .. tostring(key)
end

-- ---------------------------------------------------------------- checks before anything is written

local check_table

local function check_value(what, value, open, depth)
  local kind = type(value)
  if kind == "number" or kind == "boolean" or kind == "string" then return end
  if ffi.istype("int64_t", value) then return end -- what mc.load gives for integers beyond 2^53
  if kind ~= "table" then
    raise(("save: %s is a %s; wanted tensors, numbers, strings, booleans and tables of them"):format(what, kind))
  end
  if is_tensor(value) then
    tensor.want_tensor("save: " .. what, value)
    return
  end
  if lazy.is_lazy(value) then raise(("save: %s is a lazy tensor; wanted its values, :read()"):format(what)) end
  if type(value.state_dict) == "function" then
    raise(("save: %s is a module or optimizer; save its :state_dict()"):format(what))
  end
  check_table(what, value, open, depth + 1)
end

check_table = function(where, value, open, depth)
  if open[value] then raise(("save: %s contains itself"):format(where == "" and "the object" or where)) end
  if depth > format.MAX_DEPTH then
    raise(("save: %s lies more than %d tables deep"):format(names.show(where), format.MAX_DEPTH))
  end
  open[value] = true
  for key, entry in pairs(value) do
    if type(key) ~= "string" and not args.is_integer(key) then
      raise(("save: %s has the key %s; wanted strings and integers"):format(where == "" and "the object" or where,
        show(key)))
    end
    check_value(where_text(where, key), entry, open, depth)
  end
  open[value] = nil
end

-- ---------------------------------------------------------------- one table

-- Entries {key, value} of a table in the order of the file.
local function sorted(entries)
  local keys, by_key, result = {}, {}, {}
  for i, entry in ipairs(entries) do
    keys[i], by_key[entry[1]] = entry[1], entry
  end
  for i, key in ipairs(tree.order(keys)) do result[i] = by_key[key] end
  return result
end

-- A table as write.lua takes it.
local function entries_of(object, writer, opts)
  local entries, result = {}, {}
  for key, value in pairs(object) do entries[#entries + 1] = { key, value } end
  local arranged = sorted(layout.arrange(sorted(entries), opts.layout))
  for i, pair in ipairs(arranged) do
    local key, value = pair[1], pair[2]
    if is_tensor(value) then
      result[i] = { key = key, id = state.identity(value), facts = function(leaf) return layout.facts(value, leaf) end,
        dataset = function(path) writer:tensor(path, value:contiguous()) end }
    elseif type(value) == "table" then
      result[i] = { key = key, entries = entries_of(value, writer, opts) }
    else
      result[i] = { key = key, value = value }
    end
  end
  for _, view in ipairs(opts.views and views.of(arranged) or {}) do result[#result + 1] = view end
  return result
end

-- The commit by a thread, with progress(bytes done, of all) called on the way. An error of progress is raised once
-- the thread is through: until then it reads the tensors.
local function commit_watched(writer, progress)
  writer:start(false)
  local ok, err = pcall(function()
    local finished, done, total
    repeat
      finished, done, total = writer:poll()
      progress(done, total)
      if not finished then system.sleep(POLL) end
    until finished
  end)
  writer:wait()
  if not ok then error(err, 0) end
end

--- As save below, with prepare(writer) called before the commit, when the file is described.
local function save_prepared(path, object, opts, prepare)
  opts = args.options("save", opts, SPEC)
  hdf5.check_path("save", path)
  if opts.async and opts.progress then
    raise("save: progress is for saves that wait; with async = true, h:done() gives the bytes done and in all")
  end
  if type(object) ~= "table" or is_tensor(object) then
    raise(("save: wanted a table of what to save, got %s"):format(show(object)))
  end
  if type(object.state_dict) == "function" then
    raise("save: the object is a module or optimizer; save a table with its :state_dict(), as {model = m:state_dict()}")
  end
  check_table("", object, {}, 0)
  async.settle(path)
  local writer = hdf5.create(path)
  local ok, result = pcall(autograd.no_grad, function()
    tree.tree(writer, entries_of(object, writer, opts))
    if prepare then prepare(writer) end
    if opts.async then return async.start(writer, path) end
    if opts.progress then return commit_watched(writer, opts.progress) end
    writer:commit()
  end)
  if not ok then
    writer:discard()
    error(result, 0)
  end
  return result
end

--- Saves an object into one file: complete at `path`, or an error and no change there.
-- A save first waits for one that runs in the background. If that failed and nobody was told, its failure is raised
-- here and the new file is not begun; a second call begins it.
-- @tparam string path
-- @tparam table object nested tables (keys: strings or integers) of tensors of any dtype and device, numbers,
--   strings, booleans and int64 cdata. Integral numbers up to 2^53 are stored as int64, others as float64.
-- @tparam table|nil opts layout = "as_is" | "single" | "per_expert": the names of packed parameters in the file;
--   an optimizer's arrays are stacked in each of them. views = true: the names of the other layout are there too, as
--   virtual datasets over the same bytes. async = true: returns once the tensors are copied, the rest is done on a
--   thread. progress = fn(bytes done, of all): called every 50 ms
-- @treturn nil|Handle with async = true: h:wait() raises what the save failed with, h:done() -> whether it is
--   through, bytes done, bytes in all; h.path
-- @raise at the user's line: what cannot be saved, by its key; the system's reason when writing fails
local function save(path, object, opts) return (save_prepared(path, object, opts)) end

return { save = save, save_prepared = save_prepared }
