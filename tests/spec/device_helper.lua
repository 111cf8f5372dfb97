--- A device against the CPU, which is the definition: the same call on both, results compared.
--
-- The device is MASCON_TEST_DEVICE, else "fake" (the CPU's kernels behind memory that the host may not read).
local assert = require "luassert"
local helper = require "helper"
local mc = require "mascon"

local M = {}

M.device = helper.device == "cpu" and "fake" or helper.device
mc.set_default_device "cpu"
M.floats = { "float64", "float32", "float16", "bfloat16" }
M.integers = { "int64", "int32", "uint8" }

local function is_float(dtype) return dtype:match "float" ~= nil end

--- A tensor for `compare` that is view(base) on both sides: base is made once, view(base) gives the operand. Example:
-- H.view(mc.randn(5, 9), function(b) return b:transpose(1, 2) end)
function M.view(base, view)
  return { base = base, view = view }
end

local function on(operand, device)
  if mc.is_tensor(operand) then
    return device and operand:to(device) or operand
  elseif type(operand) == "table" and operand.view then
    return operand.view(device and operand.base:to(device) or operand.base)
  end
  return operand
end

--- Asserts that fn(operands ...) gives the same on the CPU and on the device. fn returns tensors (nil and false are
-- skipped). opts.exact: bits must be equal (integers and bools always); opts.n: length of the sums in it, for the
-- tolerance; opts.tolerance: instead of the dtype's; opts.what: for the message.
function M.compare(fn, operands, opts)
  opts = opts or {}
  local count = opts.count or #operands
  local here, there = {}, {}
  for i = 1, count do
    here[i], there[i] = on(operands[i]), on(operands[i], M.device)
  end
  local want, got = { fn(unpack(here, 1, count)) }, { fn(unpack(there, 1, count)) }
  local what = opts.what or "result"
  for i = 1, math.max(#want, #got) do
    local w, g = want[i], got[i]
    if mc.is_tensor(w) then
      local name = ("%s %d"):format(what, i)
      assert.is_true(mc.is_tensor(g), name .. " is missing on the device")
      assert.equal(M.device, g.device, name)
      assert.equal(w.dtype, g.dtype, name)
      assert.same(w:shape(), g:shape(), name)
      g = g:detach():to("cpu")
      if opts.exact or not is_float(w.dtype) then
        helper.same(g, w:detach(), name)
      else
        M.near(g, w:detach(), opts.tolerance or helper.tolerance(w.dtype, opts.n), name)
      end
    end
  end
end

--- Asserts |a - b| <= tolerance * max(1, max |b|), NaN and infinities at the same places.
function M.near(a, b, tolerance, what)
  if b:numel() == 0 then return end
  local x, y = a:to("float64"), b:to("float64")
  helper.same(x:isnan(), y:isnan(), what .. ": NaN")
  local finite = y:isfinite()
  local zero = mc.zeros({}, { dtype = "float64" })
  helper.same(mc.where(finite:logical_not(), x, zero):eq(mc.where(finite:logical_not(), y, zero)),
    mc.where(finite:logical_not(), y, zero):eq(mc.where(finite:logical_not(), y, zero)), what .. ": infinities")
  helper.close(mc.where(finite, x, zero), mc.where(finite, y, zero), tolerance, what)
end

--- Asserts that fn raises `text` on the CPU, and on the device at its next synchronisation at the latest.
function M.raises(text, fn, operands)
  for _, device in ipairs { "cpu", M.device } do
    local list = {}
    for i = 1, #operands do list[i] = on(operands[i], device ~= "cpu" and device or nil) end
    helper.raises(text, function()
      fn(unpack(list, 1, #operands))
      if device == "cuda" then mc.cuda.synchronize(device) end
    end)
  end
end

return M
