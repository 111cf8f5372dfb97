--- What the specs share: tolerances, gradient checks, errors by their text.
local assert = require "luassert"
local mc = require "mascon"

local M = {}

-- Where the specs run: see on_device.lua.
M.device = mc.get_default_device()

-- Half the distance from 1 to the next number.
local EPSILON = { float64 = 2 ^ -53, float32 = 2 ^ -24, float16 = 2 ^ -11, bfloat16 = 2 ^ -8 }

--- The error that a sum of n products of size 1 may show in a dtype: rounding errors add up like a random walk, with a
-- factor of 8 for the unlucky; bfloat16 and float16 accumulate in float32 and round once.
function M.tolerance(dtype, n)
  local long = (dtype == "float64" or dtype == "float32") and EPSILON[dtype] or EPSILON.float32
  return 8 * (EPSILON[dtype] + long * math.sqrt(n or 1))
end

--- Asserts |a - b| <= tolerance * max(1, max |b|) everywhere; NaN fails.
function M.close(a, b, tolerance, what)
  assert.same(b:shape(), a:shape(), what)
  if a:numel() == 0 then return end
  local x, y = a:detach():to("float64"), b:detach():to("float64")
  local scale = math.max(1, y:abs():max():item())
  local worst = (x - y):abs():max():item()
  assert.is_true(worst <= tolerance * scale, ("%s: differs by %g, at most %g is allowed\n%s\n%s"):format(
    what or "tensor", worst, tolerance * scale, tostring(a:detach()), tostring(b:detach())))
end

--- Asserts that two tensors have the same shape, dtype and bits.
function M.same(a, b, what)
  assert.is_true(mc.equal(a, b), ("%s: the bits differ\n%s\n%s"):format(what or "tensor", tostring(a:detach()),
    tostring(b:detach())))
end

--- Asserts that fn(...) raises, with `text` in the message (plain, not a pattern); what kernels of a device find wrong
-- is raised at the next synchronisation.
function M.raises(text, fn, ...)
  local ok, err = pcall(fn, ...)
  if ok and M.device:match "^cuda" then ok, err = pcall(mc.cuda.synchronize, M.device) end
  assert.is_false(ok, "no error was raised, wanted: " .. text)
  assert.is_true(tostring(err):find(text, 1, true) ~= nil,
    ("the error is\n  %s\nwanted\n  %s"):format(tostring(err), text))
end

local STEP = 1e-5 -- truncation about STEP^2, rounding about 2^-53 / STEP: both near 1e-10
local GRADIENT_TOLERANCE = 1e-7

--- Checks the gradient of fn at float64 `inputs` (leaves that require one) against central differences.
-- fn(input1, ...) returns one or more tensors; the loss is their sum with fixed random weights. Inputs that do not
-- require a gradient stay fixed.
function M.check_gradients(fn, inputs)
  local weights
  local function loss()
    local outs = { fn(unpack(inputs)) }
    weights = weights or {}
    local total = 0
    for i, out in ipairs(outs) do
      if not weights[i] then weights[i] = mc.randn(out:shape(), { dtype = out.dtype }) end
      total = (out * weights[i]):sum() + total
    end
    return total
  end
  for _, x in ipairs(inputs) do x.grad = nil end
  loss():backward()
  for k, x in ipairs(inputs) do
    if x.requires_grad then
      assert.is_not_nil(x.grad, ("input %d has no gradient"):format(k))
      local flat = x:detach():view(-1)
      local numeric = {}
      for i = 1, x:numel() do
        local at = flat:select(1, i)
        local value = at:item()
        mc.no_grad(function()
          at:fill_(value + STEP)
          local above = loss():item()
          at:fill_(value - STEP)
          local below = loss():item()
          at:fill_(value)
          numeric[i] = (above - below) / (2 * STEP)
        end)
      end
      if #numeric > 0 then
        M.close(x.grad:reshape(-1), mc.tensor(numeric, { dtype = "float64" }), GRADIENT_TOLERANCE,
          ("gradient of input %d"):format(k))
      end
    end
  end
end

--- A float64 normal leaf of these sizes that requires a gradient.
function M.leaf(...)
  return mc.randn({ ... }, { dtype = "float64", requires_grad = true })
end

--- Checks the gradient of a module's parameters and of its input x against central differences.
function M.check_module(module, x, ...)
  local rest = { ... }
  local inputs, n = { x }, 1
  for _, slot in ipairs(module:slots()) do
    if slot.kind == "parameter" then
      n = n + 1
      inputs[n] = slot.tensor
    end
  end
  M.check_gradients(function() return module(x, unpack(rest)) end, inputs)
end

--- Whether AddressSanitizer runs in this process: it keeps what is freed, so that peaks of memory say nothing.
function M.sanitized()
  return (os.getenv "ASAN_OPTIONS" or "") ~= "" or (os.getenv "LD_PRELOAD" or ""):find("libasan", 1, true) ~= nil
end

return M
