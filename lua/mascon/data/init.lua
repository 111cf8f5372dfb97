--- mc.data: texts as tensors, and batches of them.
local args = require "mascon.args"
local create = require "mascon.create"
local lib = require "mascon.lib"
local tensor = require "mascon.tensor"
local windows = require "mascon.data.windows"

local M = {
  bpe = require "mascon.data.bpe",
  DeviceWindows = require "mascon.data.device_windows",
  kjv = require("mascon.data.kjv").kjv,
  text = require "mascon.data.text",
  Windows = windows.Windows,
  windows_in_order = windows.windows_in_order,
}

--- A file's bytes.
-- @tparam string path
-- @treturn Tensor uint8 [bytes], on the cpu
-- @raise when the file cannot be read
function M.bytes(path)
  if type(path) ~= "string" then
    args.raise("data.bytes: wanted a path, got " .. args.show(path))
  end
  local file, why = io.open(path, "rb")
  if not file then args.raise("data.bytes: " .. why) end
  local text, reason = file:read("*a")
  file:close()
  if not text then args.raise(("data.bytes: %s: %s"):format(path, reason)) end
  local t = create.empty(#text, { dtype = "uint8", device = "cpu" })
  lib.check(lib.C.mc_write(t.h, text, #text))
  return t
end

--- Cuts a tensor's first axis in two.
-- @tparam Tensor data of n rows
-- @tparam number fraction of the rows that go to the first part, between 0 and 1
-- @treturn Tensor the first floor(n * fraction) rows, a view
-- @treturn Tensor the rest, a view
function M.split(data, fraction)
  tensor.want_tensor("data.split", data)
  if type(fraction) ~= "number" or not (fraction > 0 and fraction < 1) then
    args.raise("data.split: wanted a fraction between 0 and 1, got " .. args.show(fraction))
  end
  local n = data:size(1)
  local first = math.floor(n * fraction)
  return data:narrow(1, 1, first), data:narrow(1, first + 1, n - first)
end

return M
