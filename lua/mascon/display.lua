--- tostring(t): a header, then the numbers, cut down to what fits a screen whatever t's size.
local tensor = require "mascon.tensor"
local autograd = require "mascon.autograd"

local EDGE = 3 -- entries shown at either end of a long axis
local MANY = 1000 -- elements above which axes are cut
local short = {
  float64 = "f64", float32 = "f32", float16 = "f16", bfloat16 = "bf16", int64 = "i64", int32 = "i32",
  uint8 = "u8", bool = "bool", float8_e4m3fn = "f8e4m3fn", float8_e5m2 = "f8e5m2", float8_e8m0fnu = "f8e8m0fnu",
}

local function text(v)
  if type(v) == "boolean" then return tostring(v) end
  if type(v) == "cdata" then return (tostring(v):gsub("LL$", "")) end
  if v == math.floor(v) and math.abs(v) < 1e6 then return ("%d"):format(v) end
  return ("%.5g"):format(v)
end

-- The lines of a (sub)tensor; `cut` leaves out the middle of long axes.
local function lines(t, cut, indent, whole)
  local n = t:dim()
  if n == 0 then return text((t:item { int64 = true })) end
  local size = t:size(1)
  local picks = {}
  if cut and size > 2 * EDGE then
    for i = 1, EDGE do picks[#picks + 1] = i end
    picks[#picks + 1] = 0
    for i = size - EDGE + 1, size do picks[#picks + 1] = i end
  else
    for i = 1, size do picks[i] = i end
  end
  local parts = {}
  for _, i in ipairs(picks) do
    parts[#parts + 1] = i == 0 and "..." or lines(t:select(1, i), cut, indent .. " ", whole)
  end
  if n == 1 then return "[" .. table.concat(parts, ", ") .. "]" end
  return "[" .. table.concat(parts, ",\n" .. indent .. " ") .. "]"
end

tensor.metatable.__tostring = function(t)
  if not tensor.is_tensor(t) then return tostring(t) end
  if t.freed then return "tensor (freed by " .. t.freed .. ")" end
  local header = ("%s[%s] %s"):format(short[t.dtype], table.concat(t:shape(), ", "), t.device)
  if t.rg then header = header .. (t.node and (" grad_fn=" .. t.node.op.name) or " requires_grad") end
  if t:numel() == 0 then return header .. " (empty)" end
  return header .. "\n" .. autograd.no_grad(lines, t:detach(), t:numel() > MANY, "")
end
