--- Cross-entropy on a device against the CPU's: losses, logsumexp, gradients, bad targets.
local H = require "device_helper"
local lib = require "mascon.lib"
local mc = require "mascon"
local memory = require "mascon.memory"

local C, check, new = lib.C, lib.check, memory.new
local IGNORE = -100
local NAN, INF = 0 / 0, math.huge

local function numbers(dtype, ...)
  return (mc.randn({ ... }, { dtype = "float64" }) * 3):to(dtype)
end
local function targets(rows, n, dtype)
  return mc.randint(0, n, { rows }, { dtype = dtype or "int64" })
end
local function stat(dtype) return dtype == "float64" and dtype or "float32" end

-- losses, lse and, for dlosses, dlogits
local function cross_entropy(x, target, d)
  local losses, lse, dx = new(), new(), new()
  check(C.mc_cross_entropy(losses.h, lse.h, x.h, target.h, IGNORE))
  check(C.mc_cross_entropy_backward(dx.h, d.h, x.h, target.h, lse.h, IGNORE))
  return losses, lse, dx
end

local function compare(dtype, rows, n, what)
  H.compare(cross_entropy, { numbers(dtype, rows, n), targets(rows, n), numbers(stat(dtype), rows) },
    { n = n, what = ("%s [%d, %d]%s"):format(dtype, rows, n, what or "") })
end

describe("cross_entropy on a device", function()
  before_each(function() mc.manual_seed(31) end)

  it("agrees at every length about a vector, a warp and a block", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 1, 2, 7, 8, 9, 63, 255, 256, 1000, 1023, 1024, 1025, 1040, 2056 } do compare(dtype, 3, n) end
    end
  end)

  it("agrees on long rows, aligned or not, and on many", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      for _, n in ipairs { 8192, 8195, 9001 } do compare(dtype, 3, n) end
      compare(dtype, 300, 19)
      compare(dtype, 70, 1027)
    end
  end)

  it("agrees on logits, targets and gradients that are strided, cut or broadcast", function()
    local function cut(b) return b:narrow(2, 2, b:size(2) - 1) end
    local function turned(b) return b:transpose(1, 2) end
    local function every_second(b) return b:view(-1, 2):select(2, 1) end
    for _, dtype in ipairs(H.floats) do
      for what, x in pairs { cut = H.view(numbers(dtype, 5, 42), cut), turned = H.view(numbers(dtype, 41, 5), turned),
        broadcast = H.view(numbers(dtype, 1, 41), function(b) return b:expand(5, 41) end) } do
        H.compare(cross_entropy, { x, targets(5, 41), numbers(stat(dtype), 5) }, { n = 41, what = what })
      end
      H.compare(cross_entropy, { numbers(dtype, 5, 41), H.view(targets(10, 41, "int32"), every_second),
        H.view(numbers(stat(dtype), 10), every_second) }, { n = 41, what = "targets" })
      H.compare(function(x, target, d)
        local losses, lse = new(), new()
        check(C.mc_cross_entropy(losses.h, lse.h, x.h, target.h, IGNORE))
        local dx = mc.zeros(41, 5, { dtype = dtype, device = x.device }):transpose(1, 2)
        check(C.mc_cross_entropy_backward(dx.h, d.h, x.h, target.h, lse.h, IGNORE))
        local own = x:clone() -- the gradient where the logits are
        check(C.mc_cross_entropy_backward(own.h, d.h, own.h, target.h, lse.h, IGNORE))
        return dx, own
      end, { numbers(dtype, 5, 41), targets(5, 41), numbers(stat(dtype), 5) }, { n = 41, what = "dlogits" })
    end
  end)

  it("gives 0 and no gradient where the target is to be ignored, whatever the logits are", function()
    for _, n in ipairs { 20, 1030 } do
      local x = numbers("bfloat16", 4, n)
      mc.no_grad(function() x:select(1, 2):fill_(NAN) end)
      H.compare(cross_entropy, { x, mc.tensor({ 3, IGNORE, 0, IGNORE }, { dtype = "int32" }), numbers("float32", 4) },
        { n = n })
    end
  end)

  it("agrees on NaN, infinities and rows of nothing else", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 20, 1030 } do
        local x = numbers(dtype, 6, n)
        mc.no_grad(function()
          x:select(1, 1):select(1, 4):fill_(NAN)
          x:select(1, 2):select(1, 5):fill_(INF)
          x:select(1, 3):select(1, 6):fill_(-INF)
          x:select(1, 4):fill_(-INF)
          x:select(1, 5):fill_(-60000)
          x:select(1, 6):fill_(60000)
        end)
        H.compare(cross_entropy, { x, targets(6, n), numbers(stat(dtype), 6) }, { n = n, what = dtype })
      end
    end
  end)

  it("of no rows is nothing", function()
    compare("float32", 0, 5)
    H.compare(cross_entropy, { numbers("bfloat16", 3, 0), mc.full({ 3 }, IGNORE, { dtype = "int64" }),
      numbers("float32", 3) })
  end)

  it("names a target that is no class, forward and backward", function()
    local function forward(x, target)
      local losses, lse = new(), new()
      check(C.mc_cross_entropy(losses.h, lse.h, x.h, target.h, IGNORE))
    end
    local function backward(x, target, d)
      local dx = new()
      check(C.mc_cross_entropy_backward(dx.h, d.h, x.h, target.h, d.h, IGNORE))
    end
    for _, n in ipairs { 5, 1100 } do
      for _, bad in ipairs { n, -1 } do
        local operands = { numbers("bfloat16", 3, n), mc.tensor({ 0, bad, IGNORE }, { dtype = "int64" }),
          numbers("float32", 3) }
        local text = ("target[1] is %d, legal are 0 to %d (0-based)"):format(bad, n - 1)
        H.raises("cross_entropy: " .. text, forward, operands)
        H.raises("cross_entropy_backward: " .. text, backward, operands)
      end
    end
    local none = { numbers("float32", 2, 0), mc.tensor({ IGNORE, 0 }, { dtype = "int32" }), numbers("float32", 2) }
    H.raises("cross_entropy: target[1] is 0, there are no classes", forward, none)
    H.raises("cross_entropy_backward: target[1] is 0, there are no classes", backward, none)
  end)
end)
