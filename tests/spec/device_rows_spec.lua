--- Softmax, running sums and top k on a device against the CPU's.
local H = require "device_helper"
local mc = require "mascon"

local ALL = { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool" }
local NAN, INF = 0 / 0, math.huge

local function is_float(dtype) return dtype:match "float" ~= nil end
local function turned(b) return b:transpose(1, 2) end

local function numbers(dtype, ...)
  if is_float(dtype) then return mc.randn({ ... }, { dtype = "float64" }):to(dtype) end
  if dtype == "bool" then return mc.randint(0, 2, { ... }, { dtype = "uint8" }):to("bool") end
  return mc.randint(dtype == "uint8" and 0 or -9, 10, { ... }, { dtype = "int64" }):to(dtype)
end

-- Both softmaxes of x along `axis`, and their gradients for dy.
local function softmaxes(axis)
  return function(x, dy)
    local out = {}
    for i, name in ipairs { "softmax", "log_softmax" } do
      local leaf = x:detach():requires_grad_(true)
      local y = leaf[name](leaf, axis)
      y:backward(dy)
      out[2 * i - 1], out[2 * i] = y:detach(), leaf.grad
    end
    return unpack(out)
  end
end

-- Sums of n terms of which the CPU adds some in float32 too; log_softmax has sizes of about ten.
local function tolerance(dtype) return dtype == "float64" and 1e-13 or dtype == "float32" and 4e-6 or nil end

local function compare_softmax(dtype, x, dy, axis, what)
  H.compare(softmaxes(axis), { x, dy }, { n = 100, tolerance = tolerance(dtype), what = dtype .. what })
end

describe("softmax on a device", function()
  before_each(function() mc.manual_seed(12) end)

  it("agrees at every length about a vector, a warp, a block and what registers hold", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 1, 7, 8, 31, 32, 33, 256, 264, 1023, 1032, 2049, 2056 } do
        compare_softmax(dtype, numbers(dtype, 3, n), numbers(dtype, 3, n), 2, " " .. n)
      end
    end
  end)

  it("agrees on rows that do not fit into registers, aligned or not", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 8200, 8195 } do
        compare_softmax(dtype, numbers(dtype, 2, n), numbers(dtype, 2, n), 2, " " .. n)
      end
    end
    local function narrowed(b) return b:narrow(2, 2, 8193) end
    compare_softmax("bfloat16", H.view(numbers("bfloat16", 2, 8210), narrowed), numbers("bfloat16", 2, 8193), 2, " cut")
    compare_softmax("float32", H.view(numbers("float32", 8193, 2), turned), numbers("float32", 2, 8193), 2, " turned")
  end)

  it("agrees along every axis and on every layout", function()
    for _, dtype in ipairs(H.floats) do
      for axis = 1, 3 do
        compare_softmax(dtype, numbers(dtype, 5, 9, 40), numbers(dtype, 5, 9, 40), axis, " axis " .. axis)
      end
      for axis = 1, 2 do
        compare_softmax(dtype, H.view(numbers(dtype, 70, 33), turned), numbers(dtype, 33, 70), axis, " turned")
        compare_softmax(dtype, H.view(numbers(dtype, 8, 72), function(b) return b:narrow(2, 2, 64) end),
          numbers(dtype, 8, 64), axis, " off by one")
      end
      compare_softmax(dtype, numbers(dtype, 0, 4), numbers(dtype, 0, 4), 2, " without rows")
      compare_softmax(dtype, numbers(dtype, 4, 0), numbers(dtype, 4, 0), 2, " without columns")
    end
  end)

  it("handles infinities and NaN as the CPU", function()
    local rows = { { 1, -INF, 3 }, { -INF, -INF, -INF }, { NAN, 1, 2 }, { INF, 0, 1 },
      { -INF, -INF, 1e4 }, { 500, -500, 0 } }
    for _, dtype in ipairs(H.floats) do
      local x = mc.tensor(rows, { dtype = dtype })
      local function forward(axis)
        return function(a) return a:softmax(axis), a:log_softmax(axis) end
      end
      H.compare(forward(2), { x }, { what = dtype, tolerance = tolerance(dtype) })
      H.compare(forward(1), { H.view(x, turned) }, { what = dtype, tolerance = tolerance(dtype) })
      local tall = mc.full({ 40, 9 }, -INF, { dtype = dtype })
      tall:select(1, 33):fill_(2)
      H.compare(forward(1), { tall }, { what = dtype })
      local long = mc.full({ 2, 9000 }, -INF, { dtype = dtype })
      long:select(1, 1):select(1, 8999):fill_(1)
      H.compare(forward(2), { long }, { what = dtype })
    end
  end)
end)

describe("running sums on a device", function()
  before_each(function() mc.manual_seed(13) end)

  it("agree at every length about a warp and a tile, along each axis", function()
    for _, dtype in ipairs(ALL) do
      for _, n in ipairs { 1, 32, 33, 130, 1024, 1025, 2100 } do
        H.compare(function(a) return a:cumsum(2), a:cumsum(1) end, { numbers(dtype, 3, n) }, { n = n, what = dtype })
      end
      H.compare(function(a) return a:cumsum(1), a:cumsum(2) end, { H.view(numbers(dtype, 60, 50), turned) }, { n = 60 })
      H.compare(function(a) return a:cumsum(1), a:cumsum(2) end, { numbers(dtype, 4, 0) })
    end
    H.compare(function(a) return a:cumsum(1) end, { numbers("float32", 40, 4100) }, { n = 40 })
    H.compare(function(a) return a:cumsum(1) end, { mc.full({ 40 }, 2 ^ 62, { dtype = "int64" }) })
  end)
end)

describe("top k on a device", function()
  before_each(function() mc.manual_seed(14) end)

  local function topk(k)
    return function(a) return a:topk(k) end
  end

  it("agrees on short rows for every k", function()
    for _, dtype in ipairs(ALL) do
      for _, case in ipairs { { 5, 1, 1 }, { 5, 8, 0 }, { 9, 33, 33 }, { 20, 64, 8 }, { 3, 256, 32 } } do
        H.compare(topk(case[3]), { numbers(dtype, case[1], case[2]) }, { exact = true, what = dtype })
      end
    end
  end)

  it("agrees on long rows and for large k, many of them equal", function()
    for _, dtype in ipairs(ALL) do
      for _, case in ipairs { { 3, 257, 5 }, { 2, 700, 700 }, { 3, 50, 40 }, { 1, 3000, 130 }, { 2, 1000, 1 } } do
        H.compare(topk(case[3]), { numbers(dtype, case[1], case[2]) }, { exact = true, what = dtype })
      end
      H.compare(topk(40), { mc.zeros({ 2, 300 }, { dtype = dtype }) }, { exact = true })
      H.compare(topk(33), { H.view(numbers(dtype, 90, 3), turned) }, { exact = true })
    end
  end)

  it("ranks NaN last, gives ties to the lowest index and treats both zeros as equal", function()
    for _, dtype in ipairs(H.floats) do
      local x = mc.tensor({ { NAN, -INF, 0, -0.0, NAN, INF, -0.0, 0 }, { NAN, NAN, NAN, NAN, NAN, NAN, NAN, -INF } },
        { dtype = dtype })
      for k = 1, 8 do
        H.compare(function(a)
          local values, at = a:topk(k)
          return mc.where(values:isnan(), 7, values), at
        end, { x }, { exact = true, what = dtype .. " " .. k })
      end
      local long = numbers(dtype, 2, 400)
      long:select(1, 1):narrow(1, 10, 380):fill_(NAN)
      H.compare(function(a)
        local values, at = a:topk(30)
        return mc.where(values:isnan(), 7, values), at
      end, { long }, { exact = true })
    end
    H.compare(topk(3), { mc.tensor({ -2 ^ 53, 2 ^ 53, 0, -1 }, { dtype = "int64" }) })
  end)
end)
