--- Checkpoints: the files of one run, which of them is the latest, and how many of them stay.
--
--   FOLDER/step_0000900.h5, FOLDER/step_0001800.h5, ..., FOLDER/latest: the name of one of them and a newline
--
-- `latest` is replaced, atomically and durably, once its file is complete under its name; older files go after that,
-- and only where the new one was read back from the disk and found right. Files of other names are never touched.
local lfs = require "lfs"
local path = require "pl.path"
local dir = require "pl.dir"
local args = require "mascon.args"
local hdf5 = require "mascon.checkpoint.hdf5"
local names = require "mascon.checkpoint.plan_names"
local save = require "mascon.checkpoint.save"

local Checkpoints = {}
Checkpoints.__index = Checkpoints

local SPEC = {
  folder = { "string", required = true },
  keep = { "positive" },
  keep_every = { "positive" },
  async = { "boolean", false },
  verify = { "boolean" },
}

local function name_of(step) return ("step_%07.0f.h5"):format(step) end

-- The step that a file of our naming is of; nil for all other names.
local function step_of(name)
  local step = tonumber(name:match("^step_(%d+)%.h5$"))
  return step and name_of(step) == name and step or nil
end

-- The names in a folder.
local function list(folder)
  local ok, next_name, state = pcall(lfs.dir, folder)
  if not ok then args.raise("Checkpoints: " .. next_name) end
  return next_name, state
end

-- Removes what writers that were killed have left under temporary names of step files and of `latest`. What cannot be
-- removed does no harm.
local function sweep(folder)
  local targets = {}
  for name in list(folder) do
    local target = name:match("^(.+)%.tmp%-%d+%-%d+$")
    if target and (target == "latest" or step_of(target)) then targets[target] = true end
  end
  for target in pairs(targets) do pcall(hdf5.sweep, path.join(folder, target)) end
end

--- Opens the folder of a run's checkpoints; it is made where it is missing, and cleared of what killed writers left.
-- It stays the same folder wherever the process goes. Two runs at a time in one folder would remove each other's files.
-- @tparam table options `folder`; keep = N: after each save only the file just saved and the N - 1 of the steps before
--   it stay, and those whose step is a multiple of keep_every = K; files of later steps (of a run that went back) are
--   left alone until they are passed; async = true: saves go on in the background, as those of mc.save; verify =
--   true: each file is read back from the disk before it counts (always, where keep is given)
-- @raise when the folder cannot be made
-- @usage local checkpoints = mc.train.Checkpoints{folder = "runs/a/ckpt", keep = 3, keep_every = 10000, async = true}
function Checkpoints.new(options)
  local o = args.options("Checkpoints", options, SPEC)
  if o.keep_every and not o.keep then
    args.raise("Checkpoints: keep_every says what keep leaves alone; without keep nothing is removed")
  end
  if o.keep and o.verify == false then
    args.raise("Checkpoints: keep removes older files, and so reads each new one back first; verify = false cannot be")
  end
  hdf5.check_path("Checkpoints: folder", o.folder)
  local made, why = dir.makepath(o.folder)
  if not made then args.raise(("Checkpoints: %s: %s"):format(o.folder, why)) end
  sweep(o.folder)
  local home = lfs.currentdir()
  return setmetatable({ folder = o.folder, _home = home, _root = path.join(home or ".", o.folder), keep = o.keep,
    keep_every = o.keep_every, async = o.async, verify = o.verify or o.keep ~= nil }, Checkpoints)
end

--- The path of a file in the folder: below the folder's name as it was given, or, once the process has gone elsewhere,
-- an absolute one.
function Checkpoints:path(name)
  return path.join(lfs.currentdir() == self._home and self.folder or self._root, name)
end

-- The same for whatever may still be at work when the process goes elsewhere.
function Checkpoints:_at(name) return path.join(self._root, name) end

-- The steps of all files of ours, descending.
function Checkpoints:steps()
  local steps = {}
  for name in list(self._root) do
    local step = step_of(name)
    if step and lfs.symlinkattributes(self:_at(name), "mode") == "file" then
      steps[#steps + 1] = step
    end
  end
  table.sort(steps, function(a, b) return a > b end)
  return steps
end

-- The files that a save of `step` makes superfluous.
function Checkpoints:superfluous(step)
  local files, kept = {}, 1
  for _, other in ipairs(self:steps()) do
    if other < step then
      kept = kept + 1
      if kept > self.keep and not (self.keep_every and other % self.keep_every == 0) then
        files[#files + 1] = self:_at(name_of(other))
      end
    end
  end
  return files
end

--- Saves an object as mc.save does and makes it the latest.
-- @tparam int step names the file: step_0000900.h5; an older file of that step is replaced
-- @tparam table object as of mc.save
-- @tparam table|nil opts as of mc.save
-- @treturn string the file
-- @treturn Handle|nil that of mc.save, where the save is asynchronous
function Checkpoints:save(step, object, opts)
  local name = name_of(args.integer("Checkpoints: step", step, 0, 2 ^ 53))
  if opts ~= nil and type(opts) ~= "table" then
    args.raise(("Checkpoints: save: wanted a table of options, got %s"):format(args.show(opts)))
  end
  local with = {}
  for key, value in pairs(opts or {}) do with[key] = value end
  if with.async == nil then with.async = self.async end
  local handle = save.save_prepared(self:_at(name), object, with, function(writer)
    if self.verify then writer:check_written() end
    writer:then_point(self:_at("latest"), name .. "\n")
    for _, old in ipairs(self.keep and self:superfluous(step) or {}) do writer:then_remove(old) end
  end)
  return self:path(name), handle
end

local function read_pointer(pointer)
  local note = io.open(pointer)
  local name = note and note:read("*l")
  if note then note:close() end
  return name
end

-- nil where the file opens, else why not.
local function fault_of(file)
  local ok, result = pcall(hdf5.open, file)
  if ok then return result:close() end
  local _, last = result:find(file .. ": ", 1, true) -- the caller names it
  return last and result:sub(last + 1) or result
end

--- The checkpoint to go on from: the one that `latest` names. Where that is not there or does not open, the one of the
-- highest step before it that does, else of any step, and a line on standard error says so.
-- @treturn string|nil the file; nil where nothing was saved yet
-- @raise when there are checkpoints, and none of them opens: a run must not begin anew unnoticed
function Checkpoints:latest()
  local pointer = self:path("latest")
  local name = read_pointer(pointer)
  local why = name and fault_of(self:path(name))
  if name and why and read_pointer(pointer) ~= name then -- a save that ended meanwhile has moved it
    name = read_pointer(pointer)
    why = name and fault_of(self:path(name))
  end
  if name and not why then return self:path(name) end
  local steps, aimed = self:steps(), name and step_of(name) or math.huge
  if not name and #steps == 0 then return nil end
  local problem = name and ("%s names %s, which cannot be read (%s)"):format(pointer, names.show(name), why)
    or ("%s is missing"):format(pointer)
  table.sort(steps, function(a, b)
    local x, y = a <= aimed, b <= aimed
    if x ~= y then return x end
    return a > b
  end)
  for _, step in ipairs(steps) do
    local file = self:path(name_of(step))
    if name_of(step) ~= name and not fault_of(file) then
      io.stderr:write(("mascon: %s; going on from %s\n"):format(problem, name_of(step)))
      return file
    end
  end
  args.raise(("Checkpoints: %s; no other checkpoint there can be read either"):format(problem))
end

return Checkpoints
