--- Reading a text whole, packed or not.
local utils = require "pl.utils"
local args = require "mascon.args"

local UNPACK = { gz = "gzip -dc", dz = "gzip -dc", xz = "xz -dc" } -- .dz: dictzip, which is gzip
local WHOLE = "whole" -- follows the bytes of an unpacker that found nothing wrong: a pipe's status is not told

local function unpacked(path, command)
  local pipe = io.popen(("%s <%s && printf %s"):format(command, utils.quote_arg(path), WHOLE), "r")
  local text = pipe:read "*a"
  pipe:close()
  if text:sub(-#WHOLE) ~= WHOLE then args.raise(("data.text: `%s` failed on %s"):format(command, path)) end
  return text:sub(1, -#WHOLE - 1)
end

--- The bytes of a file; those of .gz, .dz and .xz files unpacked by gzip and xz.
-- @tparam string path
-- @treturn string
-- @raise when the file cannot be read, or is not whole
return function(path)
  if type(path) ~= "string" then args.raise("data.text: wanted a path, got " .. args.show(path)) end
  local file, why = io.open(path, "rb")
  if not file then args.raise("data.text: " .. why) end
  local command = UNPACK[path:match "%.(%w+)$"]
  local text, reason
  if not command then text, reason = file:read "*a" end
  file:close()
  if command then return unpacked(path, command) end
  return text or args.raise(("data.text: %s: %s"):format(path, reason))
end
