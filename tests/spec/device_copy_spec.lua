--- copy, fill and arange on a device against the CPU's, bit for bit.
local H = require "device_helper"
local helper = require "helper"
local mc = require "mascon"

local ALL = { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "float8_e4m3fn",
  "float8_e5m2", "float8_e8m0fnu" }
local SIZES = { float64 = 8, float32 = 4, bfloat16 = 2, uint8 = 1 } -- a dtype of each size

local function product(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

-- Numbers that rounding, overflow, saturation and NaN tell apart, in float64.
local HARD = { 0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 1 + 2 ^ -8, 1 + 2 ^ -8 + 2 ^ -40, 1 + 3 * 2 ^ -9, 1 + 2 ^ -11, 1
  + 2 ^ -11 + 2 ^ -50, 1 + 2 ^ -24, 1 + 2 ^ -24 + 2 ^ -52, 65504, 65519.99, 65520, 448, 464, 465, 57344, 61440,
  3e38, 3.4028235e38, 1e39, -1e39, 1e300, 2 ^ -24, 2 ^ -25, 3 * 2 ^ -26, 2 ^ -133, 2 ^ -134, 2 ^ -149, 2 ^ -150, 2 ^
  -9, 2 ^ -10, 2 ^ -16, 2 ^ -17, 1e-300, 255, 256, 255.5, -0.75, 2 ^ 31 - 1, 2 ^ 31, -2 ^ 31, -2 ^ 31 - 1, 2 ^ 63,
  -2 ^ 63, 1e19, 2 ^ 53 - 1, 16777217, 33554435, math.huge, -math.huge, 0 / 0, 3.5, 117, 300 }

local function hard()
  local t = mc.tensor(HARD, { dtype = "float64" })
  return mc.cat({ t, t * -1, mc.randn(200, { dtype = "float64" }), mc.randn(90, { dtype = "float64" }) * 1e4 }, 1)
end

-- Random bytes as a tensor of a dtype: a copy moves every bit pattern.
local function bits(dtype, shape)
  local n = product(shape)
  if dtype == "bool" then return mc.randint(0, 2, { n }, { dtype = "uint8" }):to("bool"):view(shape) end
  if SIZES[dtype] == 1 then return mc.randint(0, 256, { n }, { dtype = "uint8" }):view(shape) end
  return mc.randn(math.max(n, 1), { dtype = dtype }):narrow(1, 1, n):view(shape)
end

-- A copy of x made by the device's copy kernel into fresh memory of the given dtype.
local function copied(dtype)
  return function(x)
    local y = mc.zeros(x:shape(), { dtype = dtype or x.dtype, device = x.device })
    return y:copy_(x)
  end
end

describe("copy on a device", function()
  it("converts between all dtypes as the CPU does", function()
    local source = hard()
    for _, from in ipairs(ALL) do
      local x = source:to(from)
      for _, to in ipairs(ALL) do
        H.compare(copied(to), { x }, { exact = true, what = from .. " to " .. to })
      end
    end
  end)

  it("converts integers at the ends of their ranges", function()
    local x = mc.tensor({ 0, 1, -1, 2 ^ 31, -2 ^ 31, 2 ^ 32 + 5, 2 ^ 53, -2 ^ 53, 255, 256, -129 }, { dtype = "int64" })
    local wide = mc.cat({ x, x * 1023, x * 1024 + 1, x * 1025 - 1 }, 1)
    for _, to in ipairs(ALL) do
      H.compare(copied(to), { wide }, { exact = true, what = "int64 to " .. to })
      H.compare(copied(to), { wide:to("int32") }, { exact = true, what = "int32 to " .. to })
    end
  end)

  it("converts views", function()
    local turned = function(b) return b:transpose(1, 2) end
    local part = function(b) return b:narrow(2, 17, 32) end
    local shifted = function(b) return b:view(-1):narrow(1, 2, 300) end
    for _, pair in ipairs { { "float32", "bfloat16" }, { "bfloat16", "float32" }, { "float32", "float16" },
      { "float16", "float32" }, { "float64", "float32" }, { "uint8", "float32" }, { "int64", "int32" } } do
      local x = bits("float32", { 8, 64 }):to(pair[1])
      for name, view in pairs { turned = turned, part = part, shifted = shifted } do
        H.compare(copied(pair[2]), { H.view(x, view) }, { exact = true, what = pair[1] .. " " .. name })
      end
      H.compare(function(a)
        local y = mc.zeros(8, 64, { dtype = pair[2], device = a.device })
        y:copy_(a)
        return y
      end, { x:narrow(1, 1, 1) }, { exact = true, what = pair[1] .. " broadcast" })
    end
  end)

  it("moves every size around units and blocks", function()
    for dtype in pairs(SIZES) do
      for _, n in ipairs { 0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 1023, 1024, 1025, 4097, 16401 } do
        H.compare(copied(), { bits(dtype, { n }) }, { exact = true, what = dtype .. " " .. n })
      end
    end
  end)

  it("moves rows of any alignment", function()
    for dtype in pairs(SIZES) do
      local x = bits(dtype, { 7, 96 })
      for _, part in ipairs { { 1, 32 }, { 33, 64 }, { 2, 32 }, { 3, 32 }, { 5, 92 }, { 9, 40 }, { 1, 95 },
        { 96, 1 } } do
        local view = function(b) return b:narrow(2, part[1], part[2]) end
        local what = ("%s from %d, %d"):format(dtype, part[1], part[2])
        H.compare(copied(), { H.view(x, view) }, { exact = true, what = what })
        H.compare(function(b) -- and into a part
          local y = mc.zeros(7, 96, { dtype = dtype, device = b.device })
          view(y):copy_(view(b))
          return y
        end, { x }, { exact = true, what = "into " .. what })
      end
    end
  end)

  it("permutes axes", function()
    for dtype in pairs(SIZES) do
      for _, shape in ipairs { { 2, 3, 5, 16 }, { 2, 9, 3, 7 }, { 1, 8, 2, 12 }, { 2, 70, 3, 64 } } do
        local x = bits(dtype, shape)
        for _, axes in ipairs { { 1, 3, 2, 4 }, { 1, 3, 4, 2 }, { 4, 3, 2, 1 }, { 2, 1, 4, 3 }, { 3, 4, 1, 2 } } do
          local what = ("%s {%s}"):format(dtype, table.concat(axes, ", "))
          local function permuted(b) return b:permute(axes[1], axes[2], axes[3], axes[4]) end
          H.compare(copied(), { H.view(x, permuted) }, { exact = true, what = what })
          H.compare(function(b) -- into a permuted view
            local y = mc.zeros(b:shape(), { dtype = dtype, device = b.device })
            permuted(y):copy_(permuted(b):contiguous())
            return y
          end, { x }, { exact = true, what = "into " .. what })
        end
      end
    end
  end)

  it("transposes matrices around its tiles", function()
    local function turned(b) return b:transpose(1, 2) end
    for dtype in pairs(SIZES) do
      for _, shape in ipairs { { 1, 9 }, { 8, 8 }, { 7, 64 }, { 63, 65 }, { 64, 64 }, { 128, 64 }, { 80, 144 },
        { 65, 9 }, { 200, 66 }, { 72, 72 }, { 136, 256 }, { 264, 120 } } do
        local x = bits(dtype, shape)
        local what = ("%s %d x %d"):format(dtype, shape[1], shape[2])
        H.compare(copied(), { H.view(x, turned) }, { exact = true, what = what })
        H.compare(function(b)
          local y = mc.zeros(shape[2], shape[1], { dtype = dtype, device = b.device })
          turned(y):copy_(b)
          return y
        end, { x }, { exact = true, what = "into " .. what })
      end
      local wide = bits(dtype, { 70, 99 })
      H.compare(copied(), { H.view(wide, function(b) return turned(b:narrow(2, 2, 80)) end) }, { exact = true })
      H.compare(copied(), { H.view(bits(dtype, { 5, 80, 96 }), function(b) return b:transpose(2, 3) end) },
        { exact = true, what = dtype .. " batched" })
    end
    local tall = bits("bfloat16", { 2, 144, 17 * 128 + 8 }) -- more tiles than a band has
    H.compare(copied(), { H.view(tall, function(b) return b:transpose(2, 3) end) }, { exact = true, what = "bands" })
  end)

  it("spreads a broadcast source", function()
    for dtype in pairs(SIZES) do
      local function into(shape)
        return function(x)
          return mc.zeros(shape, { dtype = dtype, device = x.device }):copy_(x)
        end
      end
      H.compare(into { 6, 33 }, { bits(dtype, { 33 }) }, { exact = true, what = dtype })
      H.compare(into { 6, 32 }, { bits(dtype, { 6, 1 }) }, { exact = true, what = dtype })
      H.compare(into { 4, 17 }, { bits(dtype, { 1 }):view({}) }, { exact = true, what = dtype })
      H.compare(into { 3, 4, 16 }, { bits(dtype, { 3, 1, 16 }) }, { exact = true, what = dtype })
      H.compare(into {}, { bits(dtype, { 1 }):view({}) }, { exact = true, what = dtype })
    end
  end)
end)

describe("fill on a device", function()
  it("rounds the number as the CPU does", function()
    for _, dtype in ipairs(ALL) do
      local whole = not dtype:match "float" and dtype ~= "bool"
      local values = whole and { 0, 1, 100, 255 } or { 0, 1, -0.0, 0.1, 1 + 2 ^ -8 + 2 ^ -40, 1e39, 0 / 0, 448 }
      for _, value in ipairs(values) do
        H.compare(function(x) return x:clone():fill_(value) end, { mc.zeros(37, { dtype = dtype }) },
          { exact = true, what = dtype .. " " .. value })
      end
    end
  end)

  it("fills arrays and views of every size", function()
    for dtype in pairs(SIZES) do
      for _, n in ipairs { 0, 1, 2, 15, 16, 17, 33, 1025, 4097, 16401 } do
        H.compare(function(x) return x:clone():fill_(7) end, { mc.zeros(n, { dtype = dtype }) }, { exact = true })
      end
      for _, view in ipairs {
        function(b) return b:narrow(2, 2, 30) end, function(b) return b:narrow(2, 17, 32) end,
        function(b) return b:select(2, 5) end, function(b) return b:transpose(1, 2):narrow(1, 4, 9) end,
        function(b) return b:view(-1):narrow(1, 2, 200) end,
      } do
        H.compare(function(x)
          local y = x:clone()
          view(y):fill_(7)
          return y
        end, { mc.zeros(9, 64, { dtype = dtype }) }, { exact = true, what = dtype })
      end
    end
  end)
end)

describe("arange on a device", function()
  it("gives the CPU's numbers", function()
    local function numbers(device, dtype)
      local o = { dtype = dtype, device = device }
      return { mc.arange(0, o), mc.arange(1, o), mc.arange(100, o), mc.arange(3, 120, 7, o), mc.arange(0, 255, 1, o) }
    end
    for _, dtype in ipairs(ALL) do
      if dtype ~= "bool" then
        local got, want = numbers(H.device, dtype), numbers("cpu", dtype)
        for i = 1, #want do helper.same(got[i]:to("cpu"), want[i], dtype .. " " .. i) end
      end
    end
    for _, dtype in ipairs(H.floats) do
      local o = { dtype = dtype, device = H.device }
      helper.same(mc.arange(0.1, 40, 0.1, o):to("cpu"), mc.arange(0.1, 40, 0.1, { dtype = dtype }), dtype)
    end
  end)
end)
