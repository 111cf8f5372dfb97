--- Products on a device against the CPU: matmul and linear, every dtype, layout and class of size.
local mc = require "mascon"
local lib, memory = require "mascon.lib", require "mascon.memory"
local helper = require "helper"
local H = require "device_helper"

local F = mc.nn.functional

-- Either side of a tile of 64, of a step of 16, and of the 8 elements that lie in 16 bytes.
local SIZES = { { 1, 1, 1 }, { 1, 65, 7 }, { 63, 1, 16 }, { 64, 64, 64 }, { 65, 63, 17 }, { 17, 8, 33 }, { 3, 130, 15 },
  { 128, 24, 8 } }

local function randn(dtype, ...) return mc.randn { ... }:to(dtype) end
local function matmul(a, b) return mc.matmul(a, b) end
local function swapped(t) return t:transpose(-2, -1) end

-- n elements from the second of a longer tensor on: aligned to its own size only.
local function off_by_one(dtype, ...)
  local shape, n = { ... }, 1
  for _, size in ipairs(shape) do n = n * size end
  return H.view(randn(dtype, n + 1), function(base) return base:narrow(1, 2, n):view(shape) end)
end

-- [rows, columns] out of a wider matrix: rows lie further apart than they are long.
local function wide(dtype, rows, columns)
  return H.view(randn(dtype, rows, columns + 3), function(base) return base:narrow(2, 2, columns) end)
end

-- every second element of each row: no leading dimension describes it
local function spread(dtype, rows, columns)
  return H.view(randn(dtype, rows, columns, 2), function(base) return base:select(3, 2) end)
end

local function turned(dtype, rows, columns)
  return H.view(randn(dtype, columns, rows), swapped)
end

describe("matmul on the device", function()
  before_each(function() mc.manual_seed(5) end)

  it("agrees with the CPU in every dtype, either side of each tile", function()
    for _, dtype in ipairs(H.floats) do
      for _, s in ipairs(SIZES) do
        H.compare(matmul, { randn(dtype, s[1], s[3]), randn(dtype, s[3], s[2]) },
          { n = s[3], what = ("%s %d x %d x %d"):format(dtype, s[1], s[2], s[3]) })
      end
    end
  end)

  it("takes operands that lie in any way", function()
    local makers = { randn, turned, wide, spread, off_by_one }
    for _, dtype in ipairs(H.floats) do
      for i, make_a in ipairs(makers) do
        for j, make_b in ipairs(makers) do
          H.compare(matmul, { make_a(dtype, 19, 24), make_b(dtype, 24, 21) },
            { n = 24, what = ("%s, layouts %d and %d"):format(dtype, i, j) })
        end
      end
    end
  end)

  it("multiplies batches: side by side, in strides, broadcast, in axes that do not merge", function()
    local shapes = {
      { { 3, 5, 7 }, { 3, 7, 4 } }, { { 3, 5, 7 }, { 7, 4 } }, { { 5, 7 }, { 3, 7, 4 } }, { { 3, 5, 7 }, { 1, 7, 4 } },
      { { 2, 1, 5, 7 }, { 3, 7, 4 } }, { { 2, 3, 1, 7 }, { 2, 1, 7, 4 } }, { { 2, 3, 5, 7 }, { 2, 3, 7, 4 } },
      { { 2, 3, 1, 7 }, { 7, 4 } },
    }
    for _, dtype in ipairs(H.floats) do
      for i, s in ipairs(shapes) do
        H.compare(matmul, { randn(dtype, unpack(s[1])), randn(dtype, unpack(s[2])) },
          { n = 7, what = ("%s, shapes %d"):format(dtype, i) })
      end
      local function heads(base) return base:transpose(2, 3) end -- [B, S, H, D] as [B, H, S, D]
      local q = H.view(randn(dtype, 2, 9, 3, 8), heads)
      local k = H.view(randn(dtype, 2, 9, 3, 8), function(base) return swapped(heads(base)) end)
      H.compare(matmul, { q, k }, { n = 8, what = dtype .. ", heads" })
      H.compare(matmul, { H.view(randn(dtype, 6, 5, 7), function(base) return base:narrow(1, 2, 3) end),
        H.view(randn(dtype, 3, 4, 7), swapped) }, { n = 7, what = dtype .. ", transposed batch" })
    end
  end)

  it("takes the plain way for more products than it would call the library for", function()
    local a = H.view(mc.randn(18, 2, 17, 3), function(base) return base:transpose(2, 3) end)
    local b = H.view(mc.randn(17, 3, 18, 2), function(base) return base:permute(3, 1, 2, 4) end)
    local c = H.view(mc.randn(20, 18, 2, 17, 3), function(base) return base:transpose(3, 4) end)
    H.compare(matmul, { a, b }, { n = 3 })
    H.compare(matmul, { c, b }, { n = 3 })
  end)

  it("gives vectors their place, as on the CPU", function()
    for _, dtype in ipairs(H.floats) do
      H.compare(matmul, { randn(dtype, 33), randn(dtype, 33) }, { n = 33 })
      H.compare(matmul, { randn(dtype, 33), randn(dtype, 33, 5) }, { n = 33 })
      H.compare(matmul, { randn(dtype, 5, 33), randn(dtype, 33) }, { n = 33 })
      H.compare(matmul, { randn(dtype, 2, 5, 33), randn(dtype, 33) }, { n = 33 })
      H.compare(matmul, { randn(dtype, 33), randn(dtype, 2, 33, 5) }, { n = 33 })
    end
  end)

  it("gives nothing for size 0 and zeros for an empty sum", function()
    for _, dtype in ipairs(H.floats) do
      H.compare(matmul, { randn(dtype, 0, 3), randn(dtype, 3, 2) }, { exact = true })
      H.compare(matmul, { randn(dtype, 2, 3), randn(dtype, 3, 0) }, { exact = true })
      H.compare(matmul, { randn(dtype, 0, 2, 3), randn(dtype, 3, 2) }, { exact = true })
      H.compare(matmul, { randn(dtype, 70, 0), randn(dtype, 0, 5) }, { exact = true })
      H.compare(matmul, { randn(dtype, 2, 3, 0), randn(dtype, 2, 0, 5) }, { exact = true })
    end
  end)

  it("keeps NaN and infinities where the CPU has them", function()
    for _, dtype in ipairs(H.floats) do
      local a, b = randn(dtype, 20, 24), randn(dtype, 24, 18)
      mc.no_grad(function()
        a[3][8]:fill_(0 / 0)
        a[6][2]:fill_(math.huge)
        b[2][5]:fill_(0)
      end)
      H.compare(matmul, { a, b }, { n = 24 })
    end
  end)

  it("cuts long sums with few results in parts, adds them in order and rounds once", function()
    for _, dtype in ipairs(H.floats) do
      for _, k in ipairs { 1023, 1024, 1031, 4099 } do
        -- small integers: every order of exact sums gives the same bits
        local a = mc.randint(-2, 3, { k, 40 }):to(dtype)
        local b = mc.randint(-2, 3, { k, 24 }):to(dtype)
        H.compare(function(x, y) return mc.matmul(swapped(x), y) end, { a, b }, { exact = true })
        H.compare(function(x, y) return mc.matmul(swapped(y), x) end, { a, b }, { exact = true })
        local x, w = mc.randint(-2, 3, { 9, k }):to(dtype), mc.randint(-2, 3, { 17, k }):to(dtype)
        H.compare(F.linear, { x, w, mc.randint(-3, 4, { 17 }):to(dtype) }, { exact = true })
      end
    end
  end)

  it("repeats to the bit", function()
    for _, dtype in ipairs(H.floats) do
      local a, b = randn(dtype, 130, 257):to(H.device), randn(dtype, 257, 70):to(H.device)
      local first = mc.matmul(a, b):to("cpu")
      for _ = 1, 3 do helper.same(mc.matmul(a, b):to("cpu"), first) end
    end
  end)

  it("is float32 to the last bits until tf32 is allowed, and nearly so then", function()
    local a, b = randn("float32", 70, 90), randn("float32", 90, 50)
    H.compare(matmul, { a, b }, { n = 90 })
    local full = mc.matmul(a:to(H.device), b:to(H.device)):to("cpu")
    lib.C.mc_set_allow_tf32(1)
    local ok, err = pcall(function()
      H.compare(matmul, { a, b }, { tolerance = 2 ^ -8 }) -- 10 bits of mantissa in each factor
      H.compare(F.linear, { a, randn("float32", 50, 90) }, { tolerance = 2 ^ -8 })
      local short = mc.matmul(a:to(H.device), b:to(H.device)):to("cpu")
      if H.device == "cuda" and os.getenv "MCU_EMULATOR_GEMM" ~= "none" then
        assert.is_false(mc.equal(short, full), "tf32 was allowed, and nothing changed")
      end
    end)
    lib.C.mc_set_allow_tf32(0)
    assert(ok, err)
    H.compare(matmul, { a, b }, { n = 90 })
  end)

  it("rounds 16-bit results once, ties to even", function()
    for dtype, spacing in pairs { bfloat16 = 2 ^ -7, float16 = 2 ^ -10 } do
      local a = mc.tensor({ { 1, spacing / 2, 0 }, { 1 + spacing, spacing / 2, 0 }, { 1, spacing / 2, spacing ^ 2 } })
      H.compare(matmul, { a:to(dtype), mc.ones(3, 1):to(dtype) }, { exact = true })
    end
  end)
end)

describe("linear on the device", function()
  before_each(function() mc.manual_seed(6) end)

  it("agrees with the CPU in every dtype, with and without a bias", function()
    for _, dtype in ipairs(H.floats) do
      for _, s in ipairs(SIZES) do
        local x, w = randn(dtype, s[1], s[3]), randn(dtype, s[2], s[3])
        local what = ("%s %d x %d x %d"):format(dtype, s[1], s[2], s[3])
        H.compare(F.linear, { x, w }, { n = s[3], what = what })
        H.compare(F.linear, { x, w, randn(dtype, s[2]) }, { n = s[3] + 1, what = what .. " with bias" })
      end
    end
  end)

  it("takes operands that lie in any way, and a bias in steps", function()
    local makers = { randn, turned, wide, spread, off_by_one }
    for _, dtype in ipairs(H.floats) do
      for i, make_x in ipairs(makers) do
        for j, make_w in ipairs(makers) do
          local bias = H.view(randn(dtype, 21, 2), function(base) return base:select(2, i % 2 + 1) end)
          if j % 2 == 0 then bias = off_by_one(dtype, 21) end
          H.compare(F.linear, { make_x(dtype, 19, 24), make_w(dtype, 21, 24), bias },
            { n = 25, what = ("%s, layouts %d and %d"):format(dtype, i, j) })
        end
      end
    end
  end)

  it("gives the bias for an empty sum and nothing for no rows", function()
    for _, dtype in ipairs(H.floats) do
      H.compare(F.linear, { randn(dtype, 3, 0), randn(dtype, 5, 0), randn(dtype, 5) }, { exact = true })
      H.compare(F.linear, { randn(dtype, 3, 0), randn(dtype, 5, 0) }, { exact = true })
      H.compare(F.linear, { randn(dtype, 0, 4), randn(dtype, 5, 4), randn(dtype, 5) }, { exact = true })
      H.compare(F.linear, { randn(dtype, 2, 4), randn(dtype, 0, 4), randn(dtype, 0) }, { exact = true })
    end
  end)

  it("adds the bias before it rounds", function()
    for dtype, spacing in pairs { bfloat16 = 2 ^ -7, float16 = 2 ^ -10 } do
      local x, w = mc.tensor { { 1, spacing / 2 } }:to(dtype), mc.ones(9, 2):to(dtype)
      H.compare(F.linear, { x, w, mc.full({ 9 }, spacing / 4):to(dtype) }, { exact = true })
    end
  end)

  it("has the CPU's gradients", function()
    for _, dtype in ipairs(H.floats) do
      H.compare(function(x, w, b, dy)
        x, w, b = x:detach(), w:detach(), b:detach()
        for _, t in ipairs { x, w, b } do t:requires_grad_(true) end
        F.linear(x, w, b):backward(dy)
        return x.grad, w.grad, b.grad
      end, { randn(dtype, 4, 9, 24), randn(dtype, 21, 24), randn(dtype, 21), randn(dtype, 4, 9, 21) }, { n = 36 })
    end
  end)
end)

-- gelu has no name in Lua of its own here: the C call takes it.
describe("linear with gelu on the device", function()
  local function linear_gelu(x, w, bias)
    local y = memory.new()
    lib.check(lib.C.mc_linear(y.h, x.h, w.h, bias and bias.h or nil, 1), y, x)
    return y
  end

  it("agrees with the CPU", function()
    mc.manual_seed(7)
    for _, dtype in ipairs(H.floats) do
      for _, s in ipairs(SIZES) do
        local x, w = randn(dtype, s[1], s[3]), randn(dtype, s[2], s[3])
        local what = ("%s %d x %d x %d"):format(dtype, s[1], s[2], s[3])
        H.compare(linear_gelu, { x, w }, { n = s[3], what = what })
        H.compare(linear_gelu, { x, w, randn(dtype, s[2]) }, { n = s[3] + 1, what = what .. " with bias" })
      end
      H.compare(linear_gelu, { spread(dtype, 19, 24), turned(dtype, 21, 24), randn(dtype, 21) }, { n = 25 })
      H.compare(linear_gelu, { randn(dtype, 3, 0), randn(dtype, 5, 0), randn(dtype, 5) }, { n = 1 })
      local nan = randn(dtype, 20, 24)
      mc.no_grad(function() nan[3][8]:fill_(0 / 0) end)
      H.compare(linear_gelu, { nan, randn(dtype, 30, 24), randn(dtype, 30) }, { n = 25 })
    end
  end)
end)
