--- Checkpoints: the files of one run, and which of them is the latest.
--
--   FOLDER/step_0000900.h5, FOLDER/step_0001800.h5, ..., FOLDER/latest: the name of one of them, replaced atomically
--   after its file is complete, so that it never names half a file
local path = require "pl.path"
local dir = require "pl.dir"
local args = require "mascon.args"
local save = require "mascon.checkpoint.save"

local Checkpoints = {}
Checkpoints.__index = Checkpoints

--- Opens the folder of a run's checkpoints; it is made where it is missing.
-- @tparam table options `folder`
-- @raise when the folder cannot be made
-- @usage local checkpoints = mc.train.Checkpoints{folder = "runs/a/ckpt"}
function Checkpoints.new(options)
  local o = args.options("Checkpoints", options, { folder = { "string", required = true } })
  local made, why = dir.makepath(o.folder)
  if not made then args.raise(("Checkpoints: %s: %s"):format(o.folder, why)) end
  return setmetatable({ folder = o.folder }, Checkpoints)
end

--- Saves an object as mc.save does and makes it the latest.
-- @tparam int step names the file: step_0000900.h5; an older file of that step is replaced
-- @tparam table object, opts as of mc.save
-- @treturn string the file
function Checkpoints:save(step, object, opts)
  local name = ("step_%07d.h5"):format(args.integer("Checkpoints: step", step, 0, 2 ^ 53))
  local file = path.join(self.folder, name)
  save.save(file, object, opts)
  local latest = path.join(self.folder, "latest")
  local note, why = io.open(latest .. ".new", "w")
  local ok = note and note:write(name, "\n")
  if note then
    local closed, reason = note:close()
    ok, why = ok and closed, why or reason
  end
  if ok then ok, why = os.rename(latest .. ".new", latest) end
  if not ok then args.raise(("Checkpoints: %s: %s"):format(latest, why)) end
  return file
end

--- The latest checkpoint.
-- @treturn string|nil the file; nil where nothing was saved yet
function Checkpoints:latest()
  local note = io.open(path.join(self.folder, "latest"))
  local name = note and note:read("*l")
  if note then note:close() end
  return name and path.join(self.folder, name)
end

return Checkpoints
