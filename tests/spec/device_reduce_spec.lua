--- Reductions on a device against the CPU's.
local H = require "device_helper"
local helper = require "helper"
local mc = require "mascon"
local lib = require "mascon.lib"

local C, check = lib.C, lib.check
local ALL = { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool" }
local NAN, INF = 0 / 0, math.huge

local function is_float(dtype) return dtype:match "float" ~= nil end

-- Values in [-1, 1], small integers, or bools.
local function numbers(dtype, ...)
  if is_float(dtype) then return (mc.rand({ ... }, { dtype = "float64" }) * 2 - 1):to(dtype) end
  if dtype == "bool" then return mc.randint(0, 2, { ... }, { dtype = "uint8" }):to("bool") end
  return mc.randint(dtype == "uint8" and 0 or -9, 10, { ... }, { dtype = "int64" }):to(dtype)
end

local function turned(b) return b:transpose(1, 2) end

-- Every reduction of x over `axis`; n: how many elements meet.
local function compare_all(x, dtype, axis, n, what)
  local function with(keepdim)
    return function(a) return a:sum(axis, keepdim), is_float(dtype) and a:mean(axis, keepdim) end
  end
  H.compare(with(false), { x }, { n = n, what = what .. ": sum, mean" })
  H.compare(with(true), { x }, { n = n, what = what .. ": sum, mean, kept" })
  H.compare(function(a) return a:amax(axis), a:amin(axis) end, { x }, { exact = true, what = what .. ": extremes" })
end

describe("reductions on a device", function()
  before_each(function() mc.manual_seed(11) end)

  it("agree over all elements at every size about a vector, a warp and a block", function()
    for _, dtype in ipairs(ALL) do
      for _, n in ipairs { 1, 2, 15, 16, 17, 33, 255, 1025, 4099 } do
        compare_all(numbers(dtype, n), dtype, nil, n, dtype .. " " .. n)
      end
      local x = H.view(numbers(dtype, 2050), function(b) return b:narrow(1, 2, 2047) end)
      compare_all(x, dtype, nil, 2047, dtype .. " off by one element")
    end
  end)

  it("agree over the last axis, the first, the middle and pairs of axes", function()
    for _, dtype in ipairs(ALL) do
      for _, shape in ipairs { { 3, 40 }, { 5, 600 }, { 70, 64 }, { 33, 7 }, { 600, 3 } } do
        local x = numbers(dtype, unpack(shape))
        for axis = 1, 2 do
          compare_all(x, dtype, axis, shape[axis], ("%s [%d, %d] axis %d"):format(dtype, shape[1], shape[2], axis))
        end
      end
      local x = numbers(dtype, 4, 6, 48)
      for _, axis in ipairs { 1, 2, 3, { 1, 2 }, { 1, 3 }, { 2, 3 } } do
        compare_all(x, dtype, axis, 288, dtype .. " of three axes")
      end
    end
  end)

  it("agree where operands are transposed, spread, repeated or 0-d", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16", "int32" } do
      for axis = 1, 2 do
        compare_all(H.view(numbers(dtype, 37, 50), turned), dtype, axis, 50, dtype .. " transposed")
        compare_all(H.view(numbers(dtype, 20, 64), function(b) return b:narrow(2, 2, 40) end), dtype, axis, 40,
          dtype .. " narrowed")
        compare_all(H.view(numbers(dtype, 1, 30), function(b) return b:expand { 20, 30 } end), dtype, axis, 30,
          dtype .. " expanded")
      end
      compare_all(numbers(dtype, 1):view {}, dtype, nil, 1, dtype .. " 0-d")
    end
  end)

  it("cut long reductions into parts, few outputs or one", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16", "uint8" } do
      compare_all(numbers(dtype, 70001), dtype, nil, 70001, dtype .. " all")
      compare_all(numbers(dtype, 2, 40000), dtype, 2, 40000, dtype .. " two rows")
      compare_all(numbers(dtype, 3001, 24), dtype, 1, 3001, dtype .. " columns")
      compare_all(numbers(dtype, 9001, 3), dtype, 1, 9001, dtype .. " three columns")
      compare_all(numbers(dtype, 50, 3, 90), dtype, { 1, 3 }, 4500, dtype .. " outer and inner axes")
    end
    local x = numbers("float32", 40000)
    H.compare(function(a) return a:argmax(1), a:argmin(1), a:view(20000, 2):argmax(1) end, { x })
  end)

  it("sum integers in int64 and let them wrap", function()
    local big = mc.tensor({ 2 ^ 31 - 1, 2 ^ 31 - 1, 5 }, { dtype = "int32" })
    H.compare(function(a) return a:sum(), a:prod() end, { big })
    H.compare(function(a) return a:sum() end, { mc.full({ 300 }, 255, { dtype = "uint8" }) })
    H.compare(function(a) return a:prod() end, { mc.full({ 70 }, 3, { dtype = "int64" }) })
  end)

  it("multiply", function()
    for _, dtype in ipairs(ALL) do
      local x = is_float(dtype) and numbers(dtype, 6, 40) * 0.3 + 1 or numbers(dtype, 6, 40)
      H.compare(function(a) return a:prod(1), a:prod(2) end, { x }, { n = 40 })
    end
  end)

  it("let NaN win and keep infinities", function()
    for _, dtype in ipairs(H.floats) do
      local rows = { { 1, NAN, 3 }, { INF, -INF, 0 }, { -INF, -INF, -INF }, { NAN, NAN, NAN }, { INF, 1, 2 },
        { 0, 3, 3 } }
      local x = mc.tensor(rows, { dtype = dtype })
      for axis = 1, 2 do
        H.compare(function(a)
          return a:amax(axis), a:amin(axis), a:sum(axis), a:mean(axis), a:argmax(axis), a:argmin(axis)
        end, { x }, { what = dtype })
      end
      local long = numbers(dtype, 3, 700)
      long:select(1, 2):select(1, 650):fill_(NAN)
      H.compare(function(a) return a:amax(2), a:amin(2), a:argmax(2), a:argmin(2) end, { long }, { what = dtype })
    end
  end)

  it("find the first of equal extremes", function()
    for _, dtype in ipairs(ALL) do
      for _, shape in ipairs { { 7, 5 }, { 3, 300 }, { 300, 5 }, { 2, 5000 } } do
        local x = mc.randint(0, dtype == "bool" and 2 or 7, shape, { dtype = "int64" }):to(dtype)
        for axis = 1, 2 do
          H.compare(function(a)
            return a:argmax(axis), a:argmin(axis), a:argmax(axis, true)
          end, { x }, { what = dtype })
        end
      end
      H.compare(function(a) return a:argmax(1), a:argmin(2) end, { H.view(numbers(dtype, 40, 30), turned) })
    end
  end)

  it("give 0, 1 and NaN for nothing, and nothing for no outputs", function()
    for _, dtype in ipairs(H.floats) do
      local x = mc.zeros({ 3, 0 }, { dtype = dtype })
      H.compare(function(a) return a:sum(2), a:mean(2), a:prod(2), a:sum(), a:mean() end, { x })
      H.compare(function(a) return a:sum(1), a:mean(1), a:amax(1), a:amin(1) end, { x })
    end
    H.compare(function(a) return a:sum(2), a:prod(2), a:sum(1) end, { mc.zeros({ 3, 0 }, { dtype = "int32" }) })
  end)

  it("give the same bits again", function()
    local x = mc.randn(300, 77):to(H.device)
    for _ = 1, 2 do
      helper.same(x:sum(1):to("cpu"), x:sum(1):to("cpu"))
      helper.same(x:sum():to("cpu"), x:sum():to("cpu"))
    end
  end)
end)

describe("sums of squares on a device", function()
  local function squares(acc, list)
    for _, x in ipairs(list) do check(C.mc_sum_squares(acc.h, x.h), acc, x) end
    return acc
  end
  local function squares_many(acc, list)
    local handles = require("ffi").new("mc_tensor *[?]", #list)
    for i, x in ipairs(list) do handles[i - 1] = x.h end
    check(C.mc_sum_squares_many(acc.h, #list, handles), acc)
    return acc
  end
  local function start() return mc.full({ 1 }, 0.25, { dtype = "float64" }) end

  it("add to the accumulator, in float64", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 0, 1, 7, 8, 9, 2049, 33000, 66001 } do
        local x = numbers(dtype, n)
        H.compare(function(acc, a) return squares(acc, { a }) end, { start(), x },
          { n = n, what = dtype .. " " .. n, count = 2 })
      end
      H.compare(function(acc, a) return squares(acc, { a }) end,
        { start(), H.view(numbers(dtype, 70, 90), turned) }, { n = 6300, what = dtype .. " transposed" })
      H.compare(function(acc, a) return squares(acc, { a }) end,
        { start(), H.view(numbers(dtype, 6301), function(b) return b:narrow(1, 2, 6300) end) }, { n = 6300 })
    end
    local huge = mc.tensor({ 1e30, 1e-30, 3e30 }, { dtype = "float32" })
    H.compare(function(acc, a) return squares(acc, { a }) end, { start(), huge })
  end)

  it("give the same bits one by one, together, and wherever the elements lie", function()
    local list = {}
    for i, n in ipairs { 5, 0, 40000, 1, 300, 32768, 7 } do
      list[i] = numbers(H.floats[i % 4 + 1], n):to(H.device)
    end
    list[#list + 1] = numbers("float32", 50, 60):to(H.device):transpose(1, 2)
    list[#list + 1] = numbers("bfloat16", 90):to(H.device)
    local one, many = squares(start():to(H.device), list), squares_many(start():to(H.device), list)
    helper.same(many:to("cpu"), one:to("cpu"))
    local base = numbers("bfloat16", 5001):to(H.device)
    local off = base:narrow(1, 2, 5000)
    helper.same(squares(start():to(H.device), { off }):to("cpu"),
      squares(start():to(H.device), { off:clone() }):to("cpu"))
  end)

  it("take lists of more tensors than one table holds", function()
    local list, base = {}, numbers("float32", 1100 * 4):to(H.device)
    for i = 1, 1100 do list[i] = base:narrow(1, i * 4 - 3, 3) end
    helper.same(squares_many(start():to(H.device), list):to("cpu"), squares(start():to(H.device), list):to("cpu"))
  end)
end)
