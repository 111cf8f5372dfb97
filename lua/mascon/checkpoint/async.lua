--- The save in flight: at most one in a process, and what it fails with is never lost.
--
-- A save that was begun with async = true runs on a thread of the core; this file holds it until somebody knows
-- how it ended. That is h:wait(), or the next save, which waits for it and raises its failure without beginning
-- anything, or the end of the process, which waits too, prints the failure and turns the exit status to 1.
local args = require "mascon.args"
local ending = require "mascon.ending"

local M = {}

local Handle = {}
Handle.__index = Handle

-- The newest save that was begun in the background, until it is through and, if it failed, was reported.
local current

-- Ends the thread of a save; the handle then has its result.
local function finish(handle)
  if handle._writer then
    local writer = handle._writer
    handle._writer = nil
    handle._error = writer:finish()
  end
end

-- Somebody knows how this save ended.
local function settled(handle)
  if handle == current then current = nil end
end

-- What a save failed with, without the file's name before it.
local function reason(handle)
  local prefix, text = handle.path .. ": ", handle._error
  return text:sub(1, #prefix) == prefix and text:sub(#prefix + 1) or text
end

--- Begins the commit of a writer in the background, from a copy of its tensors.
-- @tparam Writer writer
-- @tparam string path
-- @treturn Handle path, wait, done
function M.start(writer, path)
  writer:start(true)
  current = setmetatable({ path = path, _writer = writer }, Handle)
  return current
end

--- Waits until the file is complete.
-- @raise at the user's line what the save failed with, every time it is asked
function Handle:wait()
  finish(self)
  settled(self)
  if self._error then args.raise(self._error) end
end

--- Whether the save is through, in whatever way; h:wait() tells which.
-- @treturn bool
-- @treturn int bytes done
-- @treturn int bytes to do
function Handle:done()
  local writer = self._writer
  if writer then
    local finished
    finished, self._done, self._total = writer:poll()
    if finished then
      finish(self)
      if not self._error then settled(self) end
    end
  end
  return self._writer == nil, self._done or 0, self._total or 0
end

--- Before a new save: waits for the one before.
-- @raise what that failed with, unless its h:wait() has raised it already; the new file is not begun
function M.settle(path)
  local handle = current
  if not handle then return end
  finish(handle)
  settled(handle)
  if handle._error then
    args.raise(("save: %s was not begun: the save of %s before it failed: %s"):format(path, handle.path,
      reason(handle)))
  end
end

--- At the end of the process: waits, and prints what failed without anybody's having heard of it.
-- @treturn bool whether something failed
function ending.report()
  local handle = current
  if not handle then return false end
  finish(handle)
  settled(handle)
  if not handle._error then return false end
  io.stderr:write(("mascon: the save of %s failed: %s\n"):format(handle.path, reason(handle)))
  return true
end

return M
