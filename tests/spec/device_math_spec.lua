--- Elementwise ops on a device against the CPU's.
local H = require "device_helper"
local helper = require "helper"
local mc = require "mascon"
local lib = require "mascon.lib"

local C, check = lib.C, lib.check
local ALL = { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8" }

-- Numbers whose results tell mistakes apart: signed zeros, halves, infinities, NaN, the ends of integer types.
local SPECIAL = { 0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1, -1, 2, -3, math.huge, -math.huge, 0 / 0, 60000, -60000, 1e-7,
  41, -41, 700, 6e-8 }
local EXTREME = {
  int64 = { 0, 1, -1, -2 ^ 53, 2 ^ 53, 3037000500 }, int32 = { 0, 1, -1, -2 ^ 31, 2 ^ 31 - 1, 65536 },
  uint8 = { 0, 1, 2, 254, 255, 16 },
}

local function is_float(dtype) return dtype:match "float" ~= nil end

-- n numbers of a dtype, special ones among them; `turn` shifts these against another tensor's.
local function numbers(dtype, n, turn)
  if dtype == "bool" then return mc.randint(0, 2, { n }, { dtype = "uint8" }):to("bool") end
  local x = is_float(dtype) and mc.randn(n, { dtype = "float64" }) * 3
    or mc.randint(dtype == "uint8" and 0 or -1000, dtype == "uint8" and 256 or 1000, { n }, { dtype = "int64" })
  x = x:to(dtype)
  local special = is_float(dtype) and SPECIAL or EXTREME[dtype]
  for i = 1, math.min(n, #special * 2) do
    x:select(1, i):fill_(special[(i * (turn or 1) + (turn or 1)) % #special + 1])
  end
  return x
end

-- What can be compared bit for bit: devices differ in the bits of NaN alone.
local function clean(y)
  if not is_float(y.dtype) then return y end
  return mc.where(y:isnan(), 0, y), y:isnan()
end

-- fn, made comparable bit for bit.
local function exactly(fn)
  return function(...) return clean(fn(...)) end
end

-- Pairs of operands of every kind of layout, with their names.
local function layouts(dtype)
  local function x(...)
    local n = 1
    for _, size in ipairs { ... } do n = n * size end
    return numbers(dtype, n, 2):view(...)
  end
  local function turned(b) return b:transpose(1, 2) end
  return {
    { "a bias", x(5, 32), x(32) },
    { "a bias of odd length", x(5, 7), x(7) },
    { "a column", x(5, 32), x(5, 1) },
    { "a row first", x(32), x(5, 32) },
    { "both grow", x(3, 1, 16), x(4, 1) },
    { "a number in a tensor", x(9, 31), x(1):view({}) },
    { "transposed", H.view(x(6, 9), turned), x(9, 6) },
    { "both transposed", H.view(x(8, 16), turned), H.view(x(8, 16), turned) },
    { "part of rows", H.view(x(6, 96), function(b) return b:narrow(2, 33, 32) end), x(6, 32) },
    { "unaligned part of rows", H.view(x(6, 96), function(b) return b:narrow(2, 2, 32) end), x(6, 32) },
    { "shifted by one", H.view(x(301), function(b) return b:narrow(1, 2, 300) end), x(300) },
    { "permuted heads", H.view(x(2, 3, 4, 16), function(b) return b:transpose(2, 3) end), x(2, 4, 3, 16) },
  }
end

describe("two operands on a device", function()
  local OPS = {
    add = ALL, sub = ALL, mul = ALL, div = H.floats, pow = H.floats, maximum = ALL, minimum = ALL,
    eq = ALL, ne = ALL, lt = ALL, le = ALL, gt = ALL, ge = ALL,
  }
  for name, dtypes in pairs(OPS) do
    local op = mc[name] or function(a, b) return a[name](a, b) end
    local fn = name == "pow" and op or exactly(op)
    it(name .. " gives the CPU's results", function()
      for _, dtype in ipairs(dtypes) do
        local a, b = numbers(dtype, 61, 1), numbers(dtype, 61, 4)
        if name == "pow" then -- results that a tolerance can judge
          a, b = a:clamp(0.125, 4), b:clamp(-3, 3)
        end
        H.compare(fn, { a, b }, { what = name .. " " .. dtype })
      end
    end)

    it(name .. " takes a number on either side", function()
      for _, dtype in ipairs(dtypes) do
        local a = numbers(dtype, 300, 1)
        if name == "pow" then a = a:clamp(0.125, 4) end
        for _, s in ipairs(is_float(dtype) and { 3, 0.3, -2.5 } or { 3, 0, 200 }) do
          if not (name == "pow" and s < 0) then
            H.compare(function(x) return fn(x, s) end, { a }, { what = name .. " number " .. dtype })
            if mc[name] then
              H.compare(function(x) return fn(s, x) end, { a }, { what = "number " .. name .. " " .. dtype })
            end
          end
        end
      end
    end)
  end

  it("compares and bounds bools", function()
    local a, b = numbers("bool", 77), numbers("bool", 77)
    for _, name in ipairs { "eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum" } do
      H.compare(function(x, y) return x[name](x, y) end, { a, b }, { what = name })
      H.compare(function(x) return x[name](x, 1) end, { a }, { what = name .. " number" })
    end
  end)

  it("take every layout", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16", "int64", "int32", "uint8" } do
      for _, case in ipairs(layouts(dtype)) do
        local what = dtype .. ", " .. case[1]
        H.compare(exactly(mc.sub), { case[2], case[3] }, { what = what })
        H.compare(function(a, b) return a:lt(b) end, { case[2], case[3] }, { what = what })
      end
    end
  end)

  it("take every size around vectors and blocks", function()
    for _, dtype in ipairs(ALL) do
      for _, n in ipairs { 0, 1, 3, 4, 15, 16, 17, 255, 1023, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 8195 } do
        H.compare(exactly(mc.add), { numbers(dtype, n, 1), numbers(dtype, n, 3) }, { what = dtype .. " " .. n })
      end
    end
  end)

  it("work in place", function()
    for _, dtype in ipairs { "float32", "bfloat16", "uint8" } do
      for _, n in ipairs { 5, 4099 } do
        H.compare(exactly(function(a, b)
          local x = a:clone()
          return x:add_(b):mul_(x)
        end), { numbers(dtype, n, 1), numbers(dtype, n, 3) }, { what = dtype })
      end
      H.compare(exactly(function(a, b) -- on views that are written in another order than row by row
        local x = a:clone()
        x:transpose(1, 3):add_(b:transpose(1, 3))
        x:permute(2, 3, 1):mul_(3)
        x:narrow(2, 2, 2):transpose(1, 2):sub_(b:narrow(2, 1, 2):transpose(1, 2))
        return x
      end), { numbers(dtype, 640, 1):view(5, 4, 32), numbers(dtype, 640, 3):view(5, 4, 32) }, { what = dtype })
    end
  end)
end)

describe("one operand on a device", function()
  local EXACT = { neg = ALL, abs = ALL, sign = ALL, sqrt = H.floats, rsqrt = H.floats, relu = H.floats,
    floor = H.floats, ceil = H.floats, round = H.floats, isnan = ALL, isfinite = ALL, logical_not = ALL }
  local CLOSE = { "exp", "log", "sin", "cos", "tanh", "sigmoid", "gelu", "silu" }
  local VIEWS = {
    function(b) return b end,
    function(b) return b:narrow(1, 2, b:size(1) - 1) end,
    function(b) return b:narrow(1, 1, 256):view(4, 64):narrow(2, 33, 32) end,
    function(b) return b:narrow(1, 1, 256):view(4, 64):transpose(1, 2) end,
  }

  local function each_layout(name, dtype, fn)
    local base = numbers(dtype, 261)
    if name == "exp" then base = base:clamp(-20, 20) end
    for i, view in ipairs(VIEWS) do
      H.compare(fn, { H.view(base, view) }, { what = ("%s %s layout %d"):format(name, dtype, i) })
    end
  end

  for name, dtypes in pairs(EXACT) do
    it(name .. " gives the CPU's bits", function()
      for _, dtype in ipairs(dtypes) do
        each_layout(name, dtype, exactly(function(x) return x[name](x) end))
      end
    end)
  end
  for _, name in ipairs(CLOSE) do
    it(name .. " is close to the CPU's", function()
      for _, dtype in ipairs(H.floats) do
        each_layout(name, dtype, function(x) return x[name](x) end)
      end
    end)
  end

  it("takes every size around vectors and blocks", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16" } do
      for _, n in ipairs { 0, 1, 7, 8, 9, 2047, 2049, 4095, 4096, 4097, 8199 } do
        H.compare(exactly(function(x) return x:neg() end), { numbers(dtype, n) }, { what = dtype .. " " .. n })
      end
    end
  end)

  it("keeps sine and cosine right for huge arguments", function()
    local x = mc.tensor({ 1e5, -3e6, 1e9, 1e20, -1e30, 123456.789 })
    H.compare(function(a) return a:sin(), a:cos() end, { x })
    H.compare(function(a) return a:sin(), a:cos() end, { x:to("float64") })
  end)

  it("tests bools", function()
    H.compare(function(x) return x:isnan(), x:isfinite(), x:logical_not() end, { numbers("bool", 45) })
  end)

  it("clamps as the CPU does", function()
    for _, dtype in ipairs(ALL) do
      local x = numbers(dtype, 70)
      for _, bounds in ipairs { { 1, 5 }, { nil, 3 }, { 2, nil }, { nil, nil }, { 5, 1 } } do
        H.compare(exactly(function(t) return t:clamp(bounds[1], bounds[2]) end), { x }, { what = dtype })
      end
    end
  end)

  it("has the derivatives of the activations", function()
    for _, dtype in ipairs(H.floats) do
      for _, name in ipairs { "relu", "gelu", "silu" } do
        local backward = C["mc_" .. name .. "_backward"]
        local fn = function(dy, x)
          local dx = mc.empty(x:shape(), { dtype = x.dtype, device = x.device })
          check(backward(dx.h, dy.h, x.h))
          return dx
        end
        local x, dy = numbers(dtype, 100), mc.randn(100, { dtype = dtype })
        H.compare(fn, { dy, x }, { what = name .. " backward " .. dtype })
        local function turned(b) return b:view(10, 10):transpose(1, 2) end
        H.compare(fn, { H.view(dy, turned), H.view(x, turned) }, { what = name .. " backward " .. dtype })
      end
    end
  end)
end)

describe("where on a device", function()
  it("moves the bits of every dtype", function()
    for _, dtype in ipairs(ALL) do
      for _, n in ipairs { 0, 1, 45, 4100 } do
        H.compare(mc.where, { numbers("bool", n), numbers(dtype, n, 1), numbers(dtype, n, 3) },
          { exact = true, what = dtype .. " " .. n })
      end
    end
    H.compare(mc.where, { numbers("bool", 45), numbers("bool", 45), numbers("bool", 45) }, { exact = true })
  end)

  it("broadcasts all three", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16", "uint8" } do
      for _, case in ipairs(layouts(dtype)) do
        local function fn(c, a, b) return mc.where(c, a, b) end
        H.compare(fn, { numbers("bool", 1):view({}), case[2], case[3] }, { exact = true, what = case[1] })
      end
      H.compare(mc.where, { numbers("bool", 32), numbers(dtype, 1):view({}), numbers(dtype, 96):view(3, 32) },
        { exact = true })
      H.compare(mc.where, { numbers("bool", 5):view(5, 1), numbers(dtype, 35):view(5, 7), numbers(dtype, 7) },
        { exact = true })
    end
  end)
end)

describe("swiglu on a device", function()
  local function forward(x) return x:swiglu() end
  local function backward(dy, x)
    local dx = mc.empty(x:shape(), { dtype = x.dtype, device = x.device })
    check(C.mc_swiglu_backward(dx.h, dy.h, x.h))
    return dx
  end
  local SIZES = { { 0, 16 }, { 3, 0 }, { 1, 2 }, { 5, 14 }, { 4, 32 }, { 3, 48 }, { 2, 3, 64 }, { 130, 64 } }

  it("and its derivative are close to the CPU's", function()
    for _, dtype in ipairs(H.floats) do
      for _, shape in ipairs(SIZES) do
        local x = mc.randn(shape, { dtype = dtype })
        local half = {}
        for i, size in ipairs(shape) do half[i] = i == #shape and size / 2 or size end
        local what = ("%s [%s]"):format(dtype, table.concat(shape, ", "))
        H.compare(forward, { x }, { what = what })
        H.compare(backward, { mc.randn(half, { dtype = dtype }), x }, { what = what .. " backward" })
      end
    end
  end)

  it("take views", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      local x, dy = mc.randn(6, 99, { dtype = dtype }), mc.randn(6, 48, { dtype = dtype })
      for _, first in ipairs { 1, 2, 4 } do
        local part = H.view(x, function(b) return b:narrow(2, first, 96) end)
        H.compare(forward, { part })
        H.compare(backward, { dy, part })
      end
      local turned = H.view(mc.randn(32, 6, { dtype = dtype }), function(b) return b:transpose(1, 2) end)
      H.compare(forward, { turned })
      H.compare(backward, { mc.randn(6, 16, { dtype = dtype }), turned })
    end
  end)

  it("stays finite for large gates", function()
    for _, dtype in ipairs(H.floats) do
      local x = mc.tensor({ 300, -300, 88, -88, 1, 1, 1, 1 }, { dtype = dtype }):view(1, 8)
      local y = forward(x:to(H.device)):to("cpu")
      assert.is_true(y:isfinite():to("uint8"):min():item() == 1)
      helper.close(y, forward(x), helper.tolerance(dtype), dtype)
    end
  end)
end)
