--- Checks of shapes that the functional ops share.
local args = require "mascon.args"
local tensor = require "mascon.tensor"

local M = {}

--- The product of all sizes but the last.
function M.rows(shape)
  local rows = 1
  for i = 1, #shape - 1 do rows = rows * shape[i] end
  return rows
end

--- Raises unless `t` holds indices: int32 or int64.
function M.want_index(what, t)
  tensor.want_tensor(what, t)
  local dtype = t.dtype
  if dtype ~= "int32" and dtype ~= "int64" then
    args.raise(("%s: a tensor of %s, wanted int32 or int64; make it with dtype = \"int32\""):format(what, dtype))
  end
  return t
end

--- "sum" of all, their "mean", or "none": the losses as they are.
function M.want_reduction(what, reduction)
  if reduction ~= "mean" and reduction ~= "sum" and reduction ~= "none" then
    args.raise(("%s: reduction is %s, wanted \"mean\", \"sum\" or \"none\""):format(what, args.show(reduction)))
  end
  return reduction
end

return M
