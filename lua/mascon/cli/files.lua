-- What the commands that read checkpoint files share: exit statuses, JSON, sizes as people read them, progress.

local words = require("mascon.checkpoint.words")

local M = {}

--- Exit statuses, the same for every command.
M.DONE, M.NO, M.USAGE, M.UNREADABLE, M.IO, M.DEVICE = 0, 1, 2, 3, 4, 5

--- Calls fn(...), which reads files; a failure is printed on standard error.
-- @return what fn returns, or nil and the exit status
function M.attempt(command, fn, ...)
  local lib = require("mascon.lib")
  lib.last_status = nil
  local ok, result = pcall(fn, ...)
  if ok then return result end
  local kind = lib.last_status
  -- a fault of this program, as its place tells, is none of the file
  if type(result) ~= "string" or not kind and result:find("^%S+%.lua:%d+: ") then error(result, 0) end
  io.stderr:write("mascon ", command, ": ", result, "\n")
  if kind == lib.C.MC_EIO then return nil, M.IO end
  if kind == lib.C.MC_ENOMEM then return nil, M.DEVICE end
  return nil, M.UNREADABLE
end

--- Writes the answer to standard output, all of it or not: a full disk is no success.
-- @treturn int status, or M.IO where the writing failed
function M.answer(command, text, status)
  local ok, why = io.stdout:write(text)
  if ok then ok, why = io.stdout:flush() end
  if ok then return status end
  io.stderr:write("mascon ", command, ": cannot write the answer: ", tostring(why), "\n")
  return M.IO
end

--- A Lua pattern that finds a text in which * is any text and ? any character.
function M.pattern(text)
  return (text:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", "."))
end

-- ---------------------------------------------------------------- JSON

local as_is = {__tojson = function(self) return self[1] end}

-- Bytes that are no UTF-8 have no place in JSON; each becomes the character of its number, as in Latin-1.
local function utf8_text(text)
  local at, n = 1, #text
  while at <= n do
    local size = text:match("^[%z\1-\127]()", at) or text:match("^[\194-\223][\128-\191]()", at)
      or text:match("^[\224-\239][\128-\191][\128-\191]()", at)
      or text:match("^[\240-\244][\128-\191][\128-\191][\128-\191]()", at)
    if not size then
      return (text:gsub("[\128-\255]", function(c)
        local code = c:byte()
        return string.char(192 + math.floor(code / 64), 128 + code % 64)
      end))
    end
    at = size
  end
  return text
end

local function prepare(value)
  local kind = type(value)
  if kind == "number" then
    if value - value ~= 0 then return words.show_number(value) end -- JSON has no word for them
    return setmetatable({words.number_text(value)}, as_is)
  elseif kind == "cdata" then
    return words.show_number(value) -- beyond 2^53: readers would round a number
  elseif kind == "string" then
    return utf8_text(value)
  elseif kind == "table" then
    local copy = {}
    for key, entry in pairs(value) do copy[key] = prepare(entry) end
    return copy
  end
  return value
end

--- JSON text of a report, its keys in the given order.
-- @tparam table report lists and objects; non-finite numbers become "nan", "inf", "-inf"
-- @tparam {string,...} order every key that may occur
function M.json(report, order)
  return require("dkjson").encode(prepare(report), {indent = true, keyorder = order}) .. "\n"
end

-- ---------------------------------------------------------------- progress

local PATIENCE = 2 -- seconds before anything is shown

--- A function(bytes done, of all) that draws a progress line on standard error once the job has lasted, and one that
-- ends the line.
-- @tparam table|nil options clock, stream, terminal and width of mc.train.Progress, for tests
function M.progress(options)
  options = options or {}
  local clock = options.clock or require("system").monotime
  local began, bar, unit = clock(), nil, nil
  local function update(done, total)
    if not bar then
      if clock() - began < PATIENCE or done >= total then return end
      unit = total >= 1e7 and 1e6 or 1e3
      bar = require("mascon.train.progress").new{total = math.floor(total / unit), start = math.floor(done / unit),
        unit = unit == 1e6 and "MB" or "KB", clock = clock, stream = options.stream,
        terminal = options.terminal, width = options.width}
    end
    bar:update(math.floor(done / unit))
  end
  return update, function()
    if bar then bar:finish() end
  end
end

return M
