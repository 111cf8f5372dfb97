--- rope and attention on a device against the CPU's: outputs, lse and all gradients, on both of the device's paths
-- (tensor cores: bfloat16 and half, head sizes 64 and 128, aligned rows; the plain one: everything else).
local assert = require "luassert"
local H = require "device_helper"
local helper = require "helper"
local lib = require "mascon.lib"
local mc = require "mascon"
local memory = require "mascon.memory"

local C, check, new = lib.C, lib.check, memory.new
local HALVES = { "bfloat16", "float16" }

local function numbers(dtype, ...)
  return mc.randn({ ... }, { dtype = "float64" }):to(dtype)
end

-- A function of q, k, v, dout that gives out, lse, dq, dk, dv. dout nil: the first two only.
local function attention(causal, scale)
  return function(q, k, v, dout)
    local s = scale or 1 / math.sqrt(math.max(1, q:size(4)))
    local out, lse, dq, dk, dv = new(), new(), new(), new(), new()
    check(C.mc_attention(out.h, lse.h, q.h, k.h, v.h, s, causal and 1 or 0))
    if not dout then return out, lse end
    check(C.mc_attention_backward(dq.h, dk.h, dv.h, dout.h, q.h, k.h, v.h, out.h, lse.h, s, causal and 1 or 0))
    return out, lse, dq, dk, dv
  end
end

local function operands(dtype, B, T, S, heads, kv, D)
  return { numbers(dtype, B, T, heads, D), numbers(dtype, B, S, kv, D), numbers(dtype, B, S, kv, D),
    numbers(dtype, B, T, heads, D) }
end

local function compare(dtype, B, T, S, heads, kv, D, causal, scale)
  local what = ("%s B %d, T %d, S %d, H %d / %d, D %d%s, result"):format(dtype, B, T, S, heads, kv, D,
    causal and ", causal" or "")
  H.compare(attention(causal, scale), operands(dtype, B, T, S, heads, kv, D),
    { n = math.max(1, T, S, D) * math.max(1, heads / kv), what = what })
end

-- The four operands as columns of one [B, T, 4 H, D + pad], from column `first` on.
local function packed(dtype, B, T, heads, D, pad, first)
  local base, list = numbers(dtype, B, T, 4 * heads, D + pad), {}
  for i = 1, 4 do
    list[i] = H.view(base, function(b) return b:narrow(3, (i - 1) * heads + 1, heads):narrow(4, first, D) end)
  end
  return list
end

describe("attention on a device", function()
  before_each(function() mc.manual_seed(22) end)

  it("agrees on either side of every tile of the tensor cores' path", function()
    local edges = { { 1, 1 }, { 1, 200 }, { 31, 33 }, { 63, 65 }, { 65, 63 }, { 64, 65 }, { 65, 64 }, { 64, 128 },
      { 127, 129 }, { 129, 127 }, { 128, 64 }, { 200, 200 } }
    for _, D in ipairs { 64, 128 } do
      for _, edge in ipairs(edges) do
        for _, causal in ipairs { true, false } do compare("bfloat16", 1, edge[1], edge[2], 1, 1, D, causal) end
      end
      compare("float16", 1, 130, 140, 1, 1, D, true)
      compare("float16", 1, 70, 67, 1, 1, D, false)
    end
  end)

  it("agrees for several sequences and for heads that share keys", function()
    for _, D in ipairs { 64, 128 } do
      compare("bfloat16", 2, 70, 66, 2, 2, D, true)
      compare("bfloat16", 2, 33, 97, 4, 2, D, true)
      compare("float16", 1, 66, 20, 3, 1, D, false)
    end
    for _, dtype in ipairs(H.floats) do
      compare(dtype, 2, 18, 35, 4, 2, 24, true)
      compare(dtype, 2, 33, 17, 3, 1, 24, false)
    end
  end)

  it("agrees for every head size and dtype, about a warp's and a block's rows and columns", function()
    for _, dtype in ipairs(H.floats) do
      for _, D in ipairs { 1, 2, 33, 80, 128, 130 } do
        compare(dtype, 1, 17, 33, 1, 1, D, true)
        compare(dtype, 1, 15, 32, 1, 1, D, false)
      end
      compare(dtype, 1, 16, 16, 1, 1, 300, true)
      compare(dtype, 1, 1, 31, 2, 1, 64, true)
      compare(dtype, 1, 40, 1, 2, 1, 64, false)
    end
  end)

  it("agrees on columns of one packed product, and writes gradients into another", function()
    for _, dtype in ipairs { "bfloat16", "float32" } do
      for _, D in ipairs { 64, 40 } do
        H.compare(attention(true), packed(dtype, 2, 35, 2, D, 0, 1), { n = 70, what = dtype .. " packed, result" })
      end
      H.compare(function(q, k, v, dout, buffer)
        local scale, lse, out = 0.125, new(), buffer:narrow(3, 7, 2)
        local dq, dk, dv = buffer:narrow(3, 1, 2), buffer:narrow(3, 3, 2), buffer:narrow(3, 5, 2)
        check(C.mc_attention(out.h, lse.h, q.h, k.h, v.h, scale, 1))
        check(C.mc_attention_backward(dq.h, dk.h, dv.h, dout.h, q.h, k.h, v.h, out.h, lse.h, scale, 1))
        return buffer
      end, { numbers(dtype, 2, 35, 2, 64), numbers(dtype, 2, 35, 2, 64), numbers(dtype, 2, 35, 2, 64),
        numbers(dtype, 2, 35, 2, 64), mc.full({ 2, 35, 9, 64 }, 3, { dtype = dtype }) }, { n = 70, what = "buffer" })
    end
  end)

  it("agrees on operands that are unaligned, broadcast, or step over elements", function()
    for _, dtype in ipairs { "bfloat16", "float64" } do
      H.compare(attention(true), packed(dtype, 1, 33, 2, 64, 3, 2), { n = 64, what = "unaligned" })
      H.compare(attention(true), packed(dtype, 1, 33, 2, 64, 8, 9), { n = 64, what = "within wider rows" })
      local list = operands(dtype, 1, 20, 20, 2, 2, 64)
      list[1] = H.view(numbers(dtype, 1, 64, 2, 20), function(b) return b:transpose(2, 4) end)
      list[2] = H.view(numbers(dtype, 1, 20, 1, 64), function(b) return b:expand(1, 20, 2, 64) end)
      list[3] = H.view(numbers(dtype, 1, 20, 2, 64, 2), function(b) return b:select(5, 2) end)
      list[4] = H.view(numbers(dtype, 2, 20, 1, 64), function(b) return b:transpose(1, 3) end)
      H.compare(attention(true), list, { n = 64, what = "strided" })
      H.compare(attention(false), { list[4], list[2], list[4], list[4] }, { n = 64, what = "broadcast keys" })
    end
  end)

  it("gives zeros, lse -inf and no gradient to queries that see no key", function()
    for _, case in ipairs { { "bfloat16", 64 }, { "float16", 128 }, { "float32", 8 } } do
      local dtype, D = case[1], case[2]
      compare(dtype, 1, 140, 5, 2, 1, D, true)
      compare(dtype, 1, 20, 0, 2, 1, D, true)
      compare(dtype, 1, 20, 0, 2, 1, D, false)
      local list = operands(dtype, 1, 9, 2, 2, 1, D)
      for i = 1, 4 do list[i] = list[i]:to(H.device) end
      local out, lse, dq = attention(true)(unpack(list))
      assert.equal(0, out:to("cpu"):to("float64"):narrow(2, 1, 7):abs():max():item())
      assert.equal(0, dq:to("cpu"):to("float64"):narrow(2, 1, 7):abs():max():item())
      assert.equal(-math.huge, lse:to("cpu"):narrow(3, 1, 7):max():item())
    end
  end)

  it("agrees where an axis has no elements", function()
    for _, case in ipairs { { "bfloat16", 64 }, { "float32", 6 } } do
      local dtype, D = case[1], case[2]
      compare(dtype, 0, 3, 4, 2, 1, D, true)
      compare(dtype, 2, 0, 4, 2, 1, D, true)
      compare(dtype, 2, 3, 4, 0, 1, D, false)
      compare(dtype, 2, 3, 4, 2, 1, 0, false)
    end
  end)

  it("agrees for scales of either sign, none, and scores that exp alone could not hold", function()
    for _, case in ipairs { { "bfloat16", 64 }, { "float16", 128 }, { "float64", 5 } } do
      for _, scale in ipairs { -0.3, 0, 4, 1e-12 } do compare(case[1], 1, 12, 70, 1, 1, case[2], true, scale) end
    end
  end)

  it("agrees on NaN and infinities", function()
    for _, case in ipairs { { "bfloat16", 64 }, { "float32", 8 } } do
      for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
        local list = operands(case[1], 1, 34, 40, 1, 1, case[2])
        list[1]:select(2, 3):fill_(bad)
        H.compare(attention(false), { list[1], list[2], list[3] }, { n = 64, what = "a query of " .. bad })
        list = operands(case[1], 1, 34, 40, 1, 1, case[2])
        list[2]:select(2, 5):select(3, 1):fill_(bad)
        H.compare(attention(false), { list[1], list[2], list[3] }, { n = 64, what = "a key of " .. bad })
      end
      local list = operands(case[1], 1, 34, 40, 1, 1, case[2])
      list[4]:select(2, 3):fill_(0 / 0)
      H.compare(attention(false), list, { n = 64, what = "a gradient of NaN" })
    end
  end)

  it("gives the same bits again", function()
    for _, dtype in ipairs(HALVES) do
      local list = operands(dtype, 1, 130, 130, 2, 1, 64)
      for i = 1, 4 do list[i] = list[i]:to(H.device) end
      local first, second = { attention(true)(unpack(list)) }, { attention(true)(unpack(list)) }
      for i = 1, 5 do assert.is_true(mc.equal(first[i]:to("cpu"), second[i]:to("cpu"))) end
    end
  end)
end)

describe("rope on a device", function()
  before_each(function() mc.manual_seed(23) end)

  local function rope(theta, first, inverse)
    return function(x)
      local y = new()
      check(C.mc_rope(y.h, x.h, theta, first, inverse))
      return y
    end
  end

  it("agrees for every dtype, head size and number of heads, there and back", function()
    for _, dtype in ipairs(H.floats) do
      for _, D in ipairs { 2, 6, 8, 16, 34, 64, 128 } do
        for _, heads in ipairs { 1, 4, 5 } do
          H.compare(rope(10000, 0, 0), { numbers(dtype, 2, 3, heads, D) })
          H.compare(rope(500, 7, 1), { numbers(dtype, 2, 3, heads, D) })
        end
      end
      H.compare(rope(10000, 0, 0), { numbers(dtype, 3, 90, 2, 32) })
    end
  end)

  it("agrees at far positions", function()
    for _, dtype in ipairs(H.floats) do
      -- an angle of up to a million, computed in float64, is uncertain by a millionfold of its rounding
      local opts = { tolerance = helper.tolerance(dtype) + 1e6 * 2 ^ -50 }
      H.compare(rope(10000, 1000000, 0), { numbers(dtype, 1, 33, 2, 64) }, opts)
      H.compare(rope(1e6, 999983, 1), { numbers(dtype, 1, 33, 2, 64) }, opts)
    end
  end)

  it("agrees on views, and in place", function()
    for _, dtype in ipairs(H.floats) do
      local base = numbers(dtype, 2, 5, 9, 48)
      H.compare(rope(10000, 0, 0), { H.view(base, function(b) return b:narrow(3, 2, 6) end) })
      H.compare(rope(10000, 0, 0), { H.view(base, function(b) return b:narrow(4, 2, 32) end) })
      H.compare(rope(10000, 0, 0), { H.view(base, function(b) return b:transpose(1, 4) end) })
      H.compare(rope(10000, 0, 0), { H.view(base, function(b) return b:transpose(2, 3) end) })
      H.compare(function(x)
        check(C.mc_rope(x.h, x.h, 10000, 3, 0))
        return x
      end, { base:clone() })
      H.compare(function(x, buffer)
        check(C.mc_rope(buffer:narrow(3, 2, 9).h, x.h, 10000, 3, 0))
        return buffer
      end, { base, numbers(dtype, 2, 5, 11, 48) })
    end
  end)

  it("agrees where an axis has no elements", function()
    for _, shape in ipairs { { 0, 2, 2, 4 }, { 2, 0, 2, 4 }, { 2, 2, 0, 4 }, { 2, 2, 2, 0 } } do
      H.compare(rope(10000, 0, 0), { numbers("float32", unpack(shape)) })
    end
  end)
end)
