-- The grouped linear passes of a device against the CPU's. Most data are whole numbers in -2 .. 2: their sums are exact
-- in every order, so the bits must be equal, and a row that leaks into its neighbour shows.
local ffi = require "ffi"
local H = require "device_helper"
local helper = require "helper"
local lib = require "mascon.lib"
local mc = require "mascon"
local memory = require "mascon.memory"

local C, check = lib.C, lib.check
local nan = 0 / 0
local emulated = H.device:match "^cuda" == nil or mc.cuda.info(H.device).name:lower():find "emulat" ~= nil

local function forward(x, w, b, s, y)
  y = y or memory.new()
  check(C.mc_grouped_linear(y.h, x.h, w.h, b and b.h or nil, s.h))
  return y
end
local function dgrad(dy, w, s, dx)
  dx = dx or memory.new()
  check(C.mc_grouped_linear_dgrad(dx.h, dy.h, w.h, s.h))
  return dx
end
local function wgrad(dy, x, s, dw, accumulate)
  dw = dw or memory.new()
  check(C.mc_grouped_linear_wgrad(dw.h, dy.h, x.h, s.h, accumulate and 1 or 0))
  return dw
end
local function bias_grad(dy, s, db, accumulate)
  db = db or memory.new()
  check(C.mc_grouped_linear_bias_grad(db.h, dy.h, s.h, accumulate and 1 or 0))
  return db
end

local function ints(dtype, shape) return mc.randint(-2, 3, shape):to(dtype) end
local function splits_of(list, dtype) return mc.tensor(list, { dtype = dtype or "int32" }) end
local function total(list)
  local sum = 0
  for _, m in ipairs(list) do sum = sum + m end
  return sum
end

-- Inputs as a narrow view amid NaN: rows and columns before and after, of whole 16-byte pieces (or `edge` columns).
local function amid(t, edge)
  edge = edge or 8
  local shape, d = t:shape(), t:dim()
  local base = {}
  for i, n in ipairs(shape) do base[i] = n + (i == d and 2 * edge or 2) end
  local function view(b)
    for i, n in ipairs(shape) do b = b:narrow(i, i == d and edge + 1 or 2, n) end
    return b
  end
  base = mc.full(base, nan, { dtype = t.dtype })
  view(base):copy_(t)
  return H.view(base, view)
end
-- x or dy with `more` rows of NaN behind the last that belongs to a group.
local function rows_of(dtype, m, columns, more)
  local t = mc.full({ m + more, columns }, nan, { dtype = dtype })
  if m > 0 then t:narrow(1, 1, m):copy_(ints(dtype, { m, columns })) end
  return t
end

local function four(x, w, b, dy, s)
  return forward(x, w, b, s), dgrad(dy, w, s), wgrad(dy, x, s), bias_grad(dy, s)
end
-- All passes into fresh tensors.
local function fresh(dtype, k, n, list, opts)
  opts = opts or {}
  local g, m, more = #list, total(list), opts.more or 0
  local wrap = opts.wrap or function(t) return t end
  H.compare(four, {
    wrap(rows_of(dtype, m, k, more)), wrap(ints(dtype, { g, n, k })), not opts.no_bias and wrap(ints(dtype, { g, n })),
    wrap(rows_of(dtype, m, n, more)), splits_of(list, opts.index),
  }, { exact = true, count = 5, what = ("%s K %d N %d splits %s pass"):format(dtype, k, n, table.concat(list, " ", 1,
    math.min(g, 16))) })
end

local EDGES = { 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65 }

describe("grouped linear passes on a device", function()
  before_each(function() mc.manual_seed(11) end)

  it("give the CPU's bits for every dtype, whichever groups are empty", function()
    for _, dtype in ipairs(H.floats) do
      for _, list in ipairs { { 5, 0, 9 }, { 0, 0, 3 }, { 4, 0, 0 }, { 0, 0, 0 }, { 0, 131, 0 }, { 1 }, { 0 },
        EDGES } do
        fresh(dtype, 40, 24, list)
        fresh(dtype, 13, 7, list, { more = 3, no_bias = true, index = "int64" })
      end
    end
  end)

  it("meet every edge of the tiles along the rows", function()
    for _, dtype in ipairs { "bfloat16", "float32" } do
      fresh(dtype, 40, 72, { 127, 128, 129 })
      fresh(dtype, 16, 8, { 255, 256, 257, 1 }, { more = 130 })
    end
    fresh("float16", 8, 8, { 127, 0, 385 })
  end)

  it("meet every edge of the tiles along features, in multiples of 8 and not", function()
    for _, size in ipairs { 8, 24, 32, 40, 56, 64, 72, 120, 128, 136, 264 } do
      fresh("bfloat16", size, 16, { 3, 40 })
      fresh("float16", 24, size, { 33, 2 })
    end
    for _, size in ipairs { 1, 15, 17, 63, 65, 127, 129 } do
      fresh("bfloat16", size, 12, { 3, 20 })
      fresh("float32", 12, size, { 17, 2 })
      fresh("float64", size, size, { 1, 2 })
    end
  end)

  it("use wide tiles where there are enough of them, with the same bits", function()
    -- the emulator has few multiprocessors; a GPU with 132 takes wide tiles in the last case only
    fresh("bfloat16", 504, 248, { 3, 0, 130, 1, 2 }, { more = 2 })
    fresh("float16", 256, 496, { 129, 5, 2, 0, 1 }, { wrap = amid })
    fresh("bfloat16", 8, 504, { 20, 7, 120, 260 })
    local list = {}
    for i = 1, 140 do list[i] = i % 35 == 0 and 130 or i % 3 end
    if not emulated then fresh("bfloat16", 504, 248, list, { more = 2 }) end
  end)

  it("take any number of groups", function()
    for _, g in ipairs { 2, 3, 31, 32, 33, 129, 300 } do
      local list = mc.randint(0, 4, { g }):totable()
      list[g] = g % 2
      for i = 1, g, 7 do list[i] = 0 end
      fresh("bfloat16", 16, 8, list, { more = 1 })
      fresh("float32", 3, 5, list, { index = "int64" })
    end
    local list = {}
    for i = 1, 4100 do list[i] = i % 100 == 0 and 1 or 0 end
    local x, w = ints("bfloat16", { 41, 16 }), ints("bfloat16", { 4100, 8, 16 })
    local function pair(a, b, s) return forward(a, b, nil, s), bias_grad(a, s) end
    H.compare(pair, { x, w, splits_of(list) }, { exact = true })
    local every = H.view(mc.stack({ x, x }, 3), function(b) return b:select(3, 2) end) -- not for cuBLASLt
    H.compare(function(a, b) return pair(a, b, splits_of(list, "int64")) end, { every, w }, { exact = true })
  end)

  it("read nothing around their operands", function()
    for _, dtype in ipairs { "bfloat16", "float16", "float64" } do
      fresh(dtype, 40, 72, { 3, 0, 130, 1 }, { wrap = amid, more = 5 })
      fresh(dtype, 40, 72, { 3, 0, 130, 1 }, { wrap = function(t) return amid(t, 3) end, more = 5 })
    end
  end)

  it("write nothing around their outputs, nor rows that belong to no group", function()
    for _, dtype in ipairs(H.floats) do
      for _, edge in ipairs { 8, 1 } do
        local list = { 9, 0, 130 }
        local x, dy = rows_of(dtype, 139, 24, 4), rows_of(dtype, 139, 40, 4)
        local y, dx = amid(mc.full({ 143, 40 }, nan, { dtype = dtype }), edge),
          amid(mc.full({ 143, 24 }, nan, { dtype = dtype }), edge)
        local dw, db = amid(mc.full({ 3, 40, 24 }, nan, { dtype = dtype }), edge),
          amid(mc.full({ 3, 40 }, nan, { dtype = dtype }), edge)
        H.compare(function(a, b, w, bias, s, y_base, dx_base, dw_base, db_base)
          forward(a, w, bias, s, y.view(y_base))
          dgrad(b, w, s, dx.view(dx_base))
          wgrad(b, a, s, dw.view(dw_base))
          bias_grad(b, s, db.view(db_base))
          return y_base, dx_base, dw_base, db_base
        end, {
          x, dy, ints(dtype, { 3, 40, 24 }), ints(dtype, { 3, 40 }), splits_of(list), y.base:clone(), dx.base:clone(),
          dw.base:clone(), db.base:clone(),
        }, { exact = true, what = dtype })
      end
    end
  end)

  it("add to gradients, of their own dtype or float32, and leave those of empty groups as they are", function()
    for _, dtype in ipairs(H.floats) do
      for _, size in ipairs { 40, 13 } do
        local narrow = dtype == "bfloat16" or dtype == "float16"
        for _, out in ipairs { dtype, narrow and "float32" or nil } do
          local list = { 0, 70, 0, 3 }
          local dw, db = ints(out, { 4, size, 24 }), ints(out, { 4, size })
          dw:select(1, 1):fill_(-0.0)
          dw:select(1, 3):fill_(nan)
          db:select(1, 1):fill_(-0.0)
          db:select(1, 3):fill_(nan)
          H.compare(function(dy, x, s, dw1, db1, dw2, db2)
            return wgrad(dy, x, s, dw1, true), bias_grad(dy, s, db1, true), wgrad(dy, x, s, dw2), bias_grad(dy, s, db2)
          end, {
            rows_of(dtype, 73, size, 2), rows_of(dtype, 73, 24, 2), splits_of(list), dw, db, dw:clone(), db:clone(),
          }, { exact = true, what = dtype .. " to " .. out })
        end
      end
    end
  end)

  it("round once, after the bias and after adding", function()
    for _, dtype in ipairs { "bfloat16", "float16" } do
      -- 256 + 1 + 1 is 258 in one rounding, 256 where each sum is rounded by itself to bfloat16
      local big = dtype == "bfloat16" and 256 or 2048
      local x, w = mc.ones(2, 8, { dtype = dtype }), mc.zeros(1, 8, 8, { dtype = dtype })
      w:select(3, 1):fill_(big)
      w:select(3, 2):fill_(1)
      local b = mc.full({ 1, 8 }, 1, { dtype = dtype })
      H.compare(function(a, weight, bias, s)
        local dw = a:narrow(1, 1, 1):expand(8, 8):clone():view(1, 8, 8)
        return forward(a, weight, bias, s), wgrad(a, a, s, dw, true)
      end, { x, w, b, splits_of { 2 } }, { exact = true, what = dtype })
      assert.equal(big + 2, forward(x, w, b, splits_of { 2 })[1][1]:item())
    end
  end)

  it("take operands of any steps", function()
    local t = function(b) return b:transpose(1, 2) end
    local t3 = function(b) return b:transpose(2, 3) end
    local every = function(b) return b:select(3, 1) end
    for _, dtype in ipairs { "bfloat16", "float32" } do
      local list, s = { 20, 0, 50 }, H.view(ints("int32", { 3, 2 }), function(b) return b:select(2, 2) end)
      s.base:select(2, 2):copy_(splits_of(list))
      -- transposed weights are tensor core work too, transposed rows are not
      H.compare(four, { rows_of(dtype, 70, 40, 0), H.view(ints(dtype, { 3, 40, 24 }), t3),
        H.view(ints(dtype, { 24, 3 }), t), rows_of(dtype, 70, 24, 0), s }, { exact = true, what = dtype .. " weight" })
      H.compare(four, { H.view(ints(dtype, { 40, 70 }), t), ints(dtype, { 3, 24, 40 }), ints(dtype, { 3, 24 }),
        H.view(ints(dtype, { 24, 70 }), t), s }, { exact = true, what = dtype .. " transposed rows" })
      H.compare(four, { H.view(ints(dtype, { 70, 40, 2 }), every), ints(dtype, { 3, 24, 40 }), ints(dtype, { 3, 24 }),
        H.view(ints(dtype, { 70, 24, 2 }), every), s }, { exact = true, what = dtype .. " every second" })
      H.compare(four, { H.view(ints(dtype, { 1, 40 }), function(b) return b:expand(70, 40) end),
        ints(dtype, { 3, 24, 40 }), ints(dtype, { 3, 24 }),
        H.view(ints(dtype, { 1, 24 }), function(b) return b:expand(70, 24) end), s },
        { exact = true, what = "one row" })
      H.compare(function(x, w, splits, y, dw)
        forward(x, w, nil, splits, t(y))
        wgrad(w:select(1, 1):narrow(1, 1, 1):expand(70, 40), x, splits, t3(dw))
        return y, dw
      end, { rows_of(dtype, 70, 40, 0), ints(dtype, { 3, 24, 40 }), s, ints(dtype, { 24, 70 }),
        ints(dtype, { 3, 40, 40 }) }, { exact = true, what = dtype .. " outputs" })
    end
  end)

  it("take sizes of 0", function()
    for _, dtype in ipairs { "bfloat16", "float32" } do
      for _, size in ipairs { { 0, 8, 8, 2 }, { 5, 0, 8, 2 }, { 5, 8, 0, 2 }, { 5, 8, 8, 0 }, { 0, 0, 0, 0 } } do
        local r, k, n, g = unpack(size)
        local list = {}
        for i = 1, g do list[i] = math.min(i - 1, r) end
        H.compare(four, { ints(dtype, { r, k }), ints(dtype, { g, n, k }), ints(dtype, { g, n }), ints(dtype, { r, n }),
          splits_of(list) }, { exact = true, what = table.concat(size, " ") })
      end
    end
  end)

  it("stay near the CPU for numbers that round", function()
    for _, dtype in ipairs(H.floats) do
      local list = { 40, 0, 90, 7 }
      H.compare(four, { mc.randn(140, 200, { dtype = dtype }), mc.randn(4, 48, 200, { dtype = dtype }),
        mc.randn(4, 48, { dtype = dtype }), mc.randn(140, 48, { dtype = dtype }), splits_of(list) },
        { n = 200, what = dtype })
    end
  end)

  it("keep NaN and infinities in the rows and groups that have them", function()
    for _, dtype in ipairs { "bfloat16", "float16", "float32" } do
      local x, dy = ints(dtype, { 90, 40 }), ints(dtype, { 90, 24 })
      x[3][5]:fill_(nan)
      x[40][39]:fill_(math.huge)
      dy[89][1]:fill_(-math.huge)
      H.compare(four, { x, ints(dtype, { 4, 24, 40 }), ints(dtype, { 4, 24 }), dy, splits_of { 10, 40, 39, 1 } },
        { what = dtype })
    end
  end)

  it("give the same bits each time", function()
    local x, w = mc.randn(300, 72, { dtype = "bfloat16" }), mc.randn(5, 40, 72, { dtype = "bfloat16" })
    local dy, b = mc.randn(300, 40, { dtype = "bfloat16" }), mc.randn(5, 40, { dtype = "bfloat16" })
    local s = splits_of { 100, 0, 150, 1, 49 }
    local on = {}
    for i, t in ipairs { x, w, b, dy, s } do on[i] = t:to(H.device) end
    local first, second = { four(unpack(on)) }, { four(unpack(on)) }
    for i = 1, 4 do helper.same(first[i]:to("cpu"), second[i]:to("cpu"), "pass " .. i) end
  end)

  it("take splits that the host knows, for any operands", function()
    for _, dtype in ipairs { "bfloat16", "float32" } do
      for _, g in ipairs { 3, 900 } do
        local list = { 20, 0, 50 }
        for i = 4, g do list[i] = i % 2 end
        local m = total(list)
        local host = function(x, w, b, dy, tail)
          local s = splits_of(list, "int64")
          local y = forward(x, w, b, s)
          if tail then y, tail = y:narrow(1, 1, m), y:narrow(1, m + 1, 3) end
          return y, tail, dgrad(dy, w, s), wgrad(dy, x, s), bias_grad(dy, s)
        end
        for _, every in ipairs { false, true } do
          local wrap = function(t)
            if not every then return t end
            local base = mc.full({ t:size(1), t:size(2), 2 }, nan, { dtype = dtype })
            base:select(3, 2):copy_(t)
            return H.view(base, function(v) return v:select(3, 2) end)
          end
          H.compare(host, { wrap(rows_of(dtype, m, 40, 3)), ints(dtype, { g, 8, 40 }), ints(dtype, { g, 8 }),
            wrap(rows_of(dtype, m, 8, 3)), true }, { exact = true, what = dtype .. (every and " every second" or "") })
        end
      end
    end
  end)

  it("blame bad splits in the CPU's words, and stay within their operands", function()
    local function bad(list, texts)
      for _, dtype in ipairs { "bfloat16", "float32" } do
        for _, index in ipairs { "int64", list[1] < 2 ^ 31 and "int32" or nil } do
          local x, w, s = ints(dtype, { 9, 8 }), ints(dtype, { #list, 16, 8 }), splits_of(list, index)
          local dy = ints(dtype, { 9, 16 })
          H.raises("grouped_linear: " .. texts[1], forward, { x, w, ints(dtype, { #list, 16 }), s })
          H.raises("grouped_linear_dgrad: " .. texts[2], dgrad, { dy, w, s })
          H.raises("grouped_linear_wgrad: " .. texts[2], wgrad, { dy, x, s })
          H.raises("grouped_linear_bias_grad: " .. texts[2], bias_grad, { dy, s })
        end
      end
    end
    local text = "m_splits[1] is -4, must be 0 or more"
    bad({ 3, -4, 1, -5, 300 }, { text, text })
    bad({ 3, 0, 9, 2 }, { "m_splits sum to 14, x has 9 rows", "m_splits sum to 14, dy has 9 rows" })
    local big = 2 ^ 31 - 1
    bad({ big, 3, big }, { ("m_splits sum to %d, x has 9 rows"):format(2 * big + 3), "m_splits sum to 4294967297, dy" })
    bad({ 2 ^ 62, 3, 2 ^ 62, 2 ^ 62 }, { "m_splits sum to 9223372036854775807, x has 9 rows",
      "m_splits sum to 9223372036854775807, dy has 9 rows" })
  end)

  it("are recorded once and replayed with other splits", function()
    if not H.device:match "^cuda" then return end
    for _, dtype in ipairs { "bfloat16", "float32" } do
      local x, w, b = ints(dtype, { 150, 40 }), ints(dtype, { 3, 24, 40 }), ints(dtype, { 3, 24 })
      local dy, s = ints(dtype, { 150, 24 }), splits_of { 0, 0, 0 }
      local on = {}
      for i, t in ipairs { x, w, b, dy, s } do on[i] = t:to(H.device) end
      local step = mc.cuda.graph(function() return four(unpack(on)) end)
      for _, list in ipairs { { 150, 0, 0 }, { 0, 1, 149 }, { 7, 130, 0 }, { 0, 0, 0 } } do
        on[5]:copy_(splits_of(list))
        local got, want = { step:replay() }, { four(x, w, b, dy, splits_of(list)) }
        for i = 1, 4 do helper.same(got[i]:to("cpu"), want[i], dtype .. " pass " .. i) end
      end
      step:free()
    end
  end)

  it("do what good splits say after bad ones", function()
    if not H.device:match "^cuda" then return end
    local x, w = ints("bfloat16", { 9, 8 }), ints("bfloat16", { 2, 16, 8 })
    local xd, wd = x:to(H.device), w:to(H.device)
    forward(xd, wd, nil, splits_of({ 30, -1 }):to(H.device))
    assert.is_false(pcall(mc.cuda.synchronize, H.device))
    local s = splits_of { 4, 5 }
    helper.same(forward(xd, wd, nil, s:to(H.device)):to("cpu"), forward(x, w, nil, s), "y")
  end)

  it("say which way they go, and why", function()
    if not H.device:match "^cuda" then return end
    local text = ffi.new "char[512]"
    local device = C.mc_tensor_device(mc.zeros(1, { device = H.device }).h)
    local codes = { bfloat16 = mc.zeros(1, { dtype = "bfloat16" }), float32 = mc.zeros(1) }
    local function path(pass, dtype, k, n, host)
      check(C.mc_grouped_linear_path(pass, device, C.mc_tensor_dtype(codes[dtype].h), 4, k, n, host, text, 512))
      return ffi.string(text)
    end
    for _, pass in ipairs { "forward", "dgrad", "wgrad" } do
      assert.truthy(path(pass, "bfloat16", 64, 72, 0):find("tensor core", 1, true))
      assert.truthy(path(pass, "bfloat16", 64, 70, 0):find("plain CUDA kernel (no tensor cores: ", 1, true))
      assert.truthy(path(pass, "float32", 64, 72, 0):find("the dtype has 32 or 64 bits", 1, true))
      assert.truthy(path(pass, "float32", 64, 72, 1):find("^cuBLASLt"))
    end
  end)
end)
