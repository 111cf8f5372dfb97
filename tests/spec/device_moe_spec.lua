--- Mixtures of experts on a device against the CPU: the router, the sort, the moves of rows, the losses; every dtype,
-- either side of each kernel's sizes, any strides, ties and NaN, values out of range.
local assert = require "luassert"
local mc = require "mascon"
local lib, memory = require "mascon.lib", require "mascon.memory"
local helper = require "helper"
local H = require "device_helper"

local F = mc.nn.functional
local PRE, POST, SIGMOID = 0, 1, 2
local NAN, INF = 0 / 0, 1 / 0

local function handle(x) return mc.is_tensor(x) and x.h or x or nil end

-- The C function of that name with `count` fresh outputs; f(...) takes its operands, nil for an absent one.
local function op(name, count)
  local call = lib.C["mc_" .. name]
  return function(...)
    local outs, list = {}, {}
    for i = 1, count do
      outs[i] = memory.new()
      list[i] = outs[i].h
    end
    local n = select("#", ...)
    for i = 1, n do list[count + i] = handle((select(i, ...))) end
    local status = call(unpack(list, 1, count + n))
    if status ~= 0 then lib.failed(status, "mc_" .. name, unpack(outs)) end
    return unpack(outs)
  end
end

-- The same into tensors given first.
local function op_into(name)
  local call = lib.C["mc_" .. name]
  return function(...)
    local n, list = select("#", ...), {}
    for i = 1, n do list[i] = handle((select(i, ...))) end
    local status = call(unpack(list, 1, n))
    if status ~= 0 then lib.failed(status, "mc_" .. name, (...)) end
  end
end

local function stat(dtype) return dtype == "float64" and "float64" or "float32" end

-- Quarters around `mean`: keys that differ do so by much, and many are equal.
local function quarters(dtype, rows, columns, mean)
  return ((mc.randn { rows, columns } * 4):to("int32"):to("float32") * 0.25 + (mean or 0)):to(dtype)
end

local function i32(v) return mc.tensor(v, { dtype = "int32" }) end
local function i64(v) return mc.tensor(v, { dtype = "int64" }) end

-- int32 [rows, columns] of 0 .. most - 1.
local function some_ids(rows, columns, most, lowest)
  return mc.randint(lowest or 0, most, { rows, columns }, { dtype = "int32" })
end

local function turned(t) return H.view(t:transpose(1, 2):contiguous(), function(b) return b:transpose(1, 2) end) end
-- Rows further apart than they are long, beginning at the second element.
local function apart(t)
  local wide = mc.cat({ t, t }, 2)
  local n = t:size(2)
  wide:narrow(2, 2, n):copy_(t)
  return H.view(wide, function(b) return b:narrow(2, 2, n) end)
end
local function spread(t) return H.view(mc.stack({ t, t }, t:dim() + 1), function(b) return b:select(b:dim(), 2) end) end

describe("router_topk on the device", function()
  before_each(function() mc.manual_seed(31) end)

  local function route(x, bias, k, code, scale, groups, group_topk)
    return op("router_topk", 3)(x, bias, k, code, scale or 1, groups or 1, group_topk or 1)
  end
  local function router(k, code, scale, groups, group_topk)
    return function(x, bias) return route(x, bias, k, code, scale, groups, group_topk) end
  end

  it("chooses as the CPU does for any number of experts and choices", function()
    for _, dtype in ipairs(H.floats) do
      for _, experts in ipairs { 1, 31, 32, 33, 64, 65, 128, 256, 257, 512, 513 } do
        for code = PRE, SIGMOID do
          local k = ({ 1, 4, 32 })[(experts + code) % 3 + 1]
          local x = quarters(dtype, 3, experts)
          H.compare(router(math.min(k, experts), code, 1.5), { x },
            { n = experts, what = ("%s, %d experts, k %d, code %d"):format(dtype, experts, k, code) })
        end
      end
    end
    for code = PRE, SIGMOID do
      H.compare(router(33, code), { quarters("float32", 3, 33) }, { n = 33 })
      H.compare(router(40, code, 2), { quarters("bfloat16", 3, 70) }, { n = 70 })
      H.compare(router(2, code), { quarters("float32", 0, 7) })
      H.compare(router(2, code), { quarters("float32", 133, 8) }, { n = 8 })
    end
  end)

  it("adds a bias of either dtype to the choice, and takes the best groups", function()
    for _, dtype in ipairs(H.floats) do
      for _, s in ipairs { { 8, 2, 2, 1 }, { 32, 4, 4, 2 }, { 64, 6, 8, 3 }, { 256, 8, 8, 4 }, { 96, 4, 32, 4 },
        { 48, 8, 48, 8 }, { 12, 12, 3, 3 } } do
        for code = PRE, SIGMOID do
          local what = ("%s, %d experts in %d groups, code %d"):format(dtype, s[1], s[3], code)
          local x = quarters(dtype, 3, s[1], 0.1)
          H.compare(router(s[2], code, 1, s[3], s[4]), { x }, { n = s[1], what = what })
          for _, of in ipairs { dtype, dtype == "bfloat16" and "float32" or nil } do
            local bias = quarters(of, 1, s[1])[1]
            H.compare(router(s[2], code, 1, s[3], s[4]), { x, bias }, { n = s[1], what = what .. ", bias " .. of })
          end
        end
      end
    end
  end)

  it("gives ties to the lowest id, ranks NaN last and infinities as numbers", function()
    local rows = {
      { 1, 1, 1, 1, 1, 1 }, { NAN, 0, 1, NAN, 1, 0 }, { NAN, NAN, NAN, NAN, NAN, NAN }, { -INF, 0, -INF, NAN, -INF, 1 },
      { INF, 1, INF, NAN, 0, -INF }, { -INF, -INF, -INF, -INF, -INF, -INF }, { 0, -0.0, 0, -0.0, NAN, -1 },
    }
    for _, dtype in ipairs(H.floats) do
      local x = mc.tensor(rows):to(dtype)
      local wide = mc.cat({ x, mc.full({ #rows, 600 }, -INF, { dtype = dtype }) }, 2)
      for code = PRE, SIGMOID do
        for k = 1, 6 do
          local what = ("%s, code %d, k %d"):format(dtype, code, k)
          H.compare(router(k, code), { x }, { n = 6, what = what })
          if k == 2 or k == 4 then
            H.compare(router(k, code, 1, 3, 2), { x }, { n = 6, what = what .. ", groups" })
            H.compare(router(k, code), { wide }, { n = 6, what = what .. ", 606 experts" })
          end
        end
      end
    end
  end)

  it("takes logits and outputs that lie in any way, and scores in the logits' place", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16" } do
      for _, experts in ipairs { 24, 520 } do
        local x = quarters(dtype, 6, experts)
        for code = PRE, SIGMOID do
          for _, make in ipairs { turned, apart, spread } do
            H.compare(router(3, code), { make(x) }, { n = experts })
          end
          H.compare(function(a)
            local out = { dtype = stat(dtype), device = a.device }
            local w, s = mc.zeros({ 3, 6 }, out):transpose(1, 2), mc.zeros({ experts, 6 }, out):transpose(1, 2)
            local ids = mc.zeros({ 6, 5 }, { dtype = "int32", device = a.device }):narrow(2, 2, 3)
            op_into "router_topk"(w, ids, s, a, nil, 3, code, 1, 1, 1)
            return w, ids, s
          end, { x }, { n = experts })
          if dtype ~= "bfloat16" then
            H.compare(function(a)
              local b = a:clone()
              local w, ids = memory.new(), memory.new()
              op_into "router_topk"(w, ids, b, b, nil, 3, code, 1, 1, 1)
              return w, ids, b
            end, { x }, { n = experts })
          end
        end
      end
    end
  end)

  local function backward(code, scale)
    return function(dweights, dscores, scores, weights, ids, x)
      return op("router_topk_backward", 1)(dweights, dscores, scores, weights, ids, x, code, scale)
    end
  end

  it("has the CPU's gradient from weights, scores, both or none", function()
    for _, dtype in ipairs(H.floats) do
      for _, s in ipairs { { 1, 1 }, { 8, 2 }, { 32, 4 }, { 33, 32 }, { 128, 1 }, { 300, 8 }, { 513, 3 },
        { 40, 34 } } do
        local experts, k = s[1], s[2]
        local x = mc.randn({ 5, experts }):to(dtype)
        for code = PRE, SIGMOID do
          local weights, ids, scores = route(x, nil, k, code)
          local dw = mc.randn({ 5, k }):to(stat(dtype))
          local ds = mc.randn({ 5, experts }):to(stat(dtype))
          local opts = { n = experts, count = 6, what = ("%s, %d of %d, code %d"):format(dtype, k, experts, code) }
          H.compare(backward(code, 1.5), { dw, ds, scores, weights, ids, x }, opts)
          if experts % 2 == 0 then
            H.compare(backward(code, 1), { dw, nil, scores, weights, ids, x }, opts)
            H.compare(backward(code, 1), { nil, ds, scores, weights, ids, x }, opts)
            H.compare(backward(code, 1), { nil, nil, scores, weights, ids, x }, opts)
            H.compare(backward(code, 1), { apart(dw), turned(ds), spread(scores), turned(weights), apart(ids),
              turned(x) }, opts)
          end
        end
      end
    end
  end)

  it("writes the gradient into the logits' or the scores' place", function()
    for _, experts in ipairs { 16, 513 } do
      local x = mc.randn(4, experts)
      for code = PRE, SIGMOID do
        local weights, ids, scores = route(x, nil, 3, code)
        local dw, ds = mc.randn(4, 3), mc.randn(4, experts)
        for into = 1, 3 do
          H.compare(function(...)
            local list = { ... }
            local at = ({ 2, 3, 6 })[into]
            list[at] = list[at]:clone()
            op_into "router_topk_backward"(list[at], list[1], list[2], list[3], list[4], list[5], list[6], code, 1)
            return list[at]
          end, { dw, ds, scores, weights, ids, x }, { n = experts })
        end
      end
    end
  end)

  it("blames ids that are no experts", function()
    for _, experts in ipairs { 8, 520 } do
      local x = mc.randn(2, experts)
      local weights, _, scores = route(x, nil, 2, POST)
      for _, bad in ipairs { experts, -1 } do
        for code = PRE, SIGMOID do
          H.raises(("router_topk_backward: ids[1, 0] is %d, legal are 0 to %d (0-based)"):format(bad, experts - 1),
            backward(code, 1), { mc.randn(2, 2), scores, scores, weights, i32 { { 0, 1 }, { bad, 2 } }, x })
        end
      end
    end
  end)
end)

describe("moe_sort on the device", function()
  before_each(function() mc.manual_seed(32) end)

  local function sort(experts)
    return function(ids) return op("moe_sort", 3)(ids, experts) end
  end

  it("sorts stably for any number of slots and experts", function()
    for _, s in ipairs { { 0, 3, 4 }, { 3, 0, 4 }, { 1, 1, 1 }, { 31, 1, 2 }, { 33, 1, 5 }, { 128, 2, 8 },
      { 171, 3, 32 }, { 257, 4, 33 }, { 700, 3, 100 }, { 600, 8, 512 }, { 300, 5, 1175 }, { 300, 5, 1176 },
      { 300, 5, 1177 }, { 400, 3, 2000 }, { 100, 2, 12289 } } do
      for _, dtype in ipairs { "int32", "int64" } do
        local ids = some_ids(s[1], s[2], s[3], -1):to(dtype)
        H.compare(sort(s[3]), { ids }, { what = ("%s [%d, %d], %d experts"):format(dtype, s[1], s[2], s[3]) })
      end
    end
    for _, e in ipairs { -1, 0, 2 } do H.compare(sort(3), { mc.full({ 517, 3 }, e, { dtype = "int32" }) }) end
  end)

  it("gives longer runs of slots to each block when there are many", function()
    H.compare(sort(40), { some_ids(66000, 4, 40) })
  end)

  it("takes ids that lie in any way, and rows in the ids' place", function()
    for _, dtype in ipairs { "int32", "int64" } do
      local ids = some_ids(211, 3, 9, -2):to(dtype)
      for _, make in ipairs { turned, apart, spread } do H.compare(sort(9), { make(ids) }) end
    end
    for _, experts in ipairs { 9, 3000 } do
      H.compare(function(ids)
        local rows, counts, slots = ids:clone(), memory.new(), memory.new()
        op_into "moe_sort"(counts, rows, slots, rows, experts)
        return counts, rows, slots
      end, { some_ids(211, 3, experts, -2):to("int64") })
    end
    H.compare(function(ids)
      local opts = { dtype = "int64", device = ids.device }
      local counts, slots = mc.zeros({ 9, 2 }, opts):select(2, 1), mc.zeros({ 633, 2 }, opts):select(2, 2)
      local rows = mc.zeros({ 3, 211 }, opts):transpose(1, 2)
      op_into "moe_sort"(counts, rows, slots, ids, 9)
      return counts, rows, slots
    end, { some_ids(211, 3, 9, -2) })
  end)

  it("blames an id that is no expert and routes the rest", function()
    H.raises("moe_sort: ids[1, 1] is 5, legal are 0 to 4 (0-based), or negative for none", sort(5),
      { i32 { { 0, 1 }, { 2, 5 } } })
    H.raises("moe_sort: ids[0, 2] is 4294967296, legal are 0 to 2999 (0-based), or negative for none", sort(3000),
      { i64 { { 0, 1, 2 ^ 32 } } })
  end)
end)

-- Widths: of one element; either side of 16 bytes in each dtype; either side of a warp's and a block's pieces.
local WIDTHS = { 0, 1, 3, 8, 16, 24, 72, 256, 257, 1032, 2304 }

-- counts, rows, slots of `tokens` tokens with k choices of 5 experts, some of them none.
local function routed(tokens, k)
  return op("moe_sort", 3)(some_ids(tokens, k, 5, -1), 5)
end

describe("the moves of rows on the device", function()
  before_each(function() mc.manual_seed(33) end)

  local function permute(k)
    return function(x, slots) return op("moe_permute", 1)(x, slots, k) end
  end
  local unpermute, unpermute_backward = op("moe_unpermute", 1), op("moe_unpermute_backward", 2)
  local dh_into = op_into "moe_unpermute_backward"
  local function only_dh(dy, h, rows, slots, weights)
    local dh = memory.new()
    dh_into(dh, nil, dy, h, rows, slots, weights)
    return dh
  end

  it("permutes rows of every dtype and width, bit for bit", function()
    local dtypes = { "float64", "float32", "bfloat16", "int64", "int32", "uint8", "bool", "float8_e4m3fn" }
    for i, dtype in ipairs(dtypes) do
      for j, d in ipairs(WIDTHS) do
        local tokens, k = ({ 1, 7, 19 })[(i + j) % 3 + 1], (i + j) % 4 + 1
        local x = (mc.rand { tokens, d } * 200):to(dtype)
        local _, _, slots = routed(tokens, k)
        if j % 2 == 0 then slots = slots:to("int32") end
        H.compare(permute(k), { x, slots }, { exact = true, what = ("%s, width %d"):format(dtype, d) })
      end
    end
    local x, _, _, slots = mc.randn(9, 40), routed(9, 3)
    for _, make in ipairs { turned, apart, spread } do
      H.compare(permute(3), { make(x), spread(slots) }, { exact = true })
    end
    H.compare(permute(3), { mc.zeros(0, 40), i64 {}:view(0) })
  end)

  it("permutes a large x whatever slots there are: all, none, some twice, many of a token", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      for _, case in ipairs { { 90, 2, 64 }, { 30, 3, 1032 }, { 5, 40, 256 }, { 2, 33, 512 } } do
        local tokens, k, d = unpack(case)
        local x, n = mc.randn({ tokens, d }):to(dtype), tokens * k
        local what = ("%s [%d, %d], k %d"):format(dtype, tokens, d, k)
        local _, _, slots = routed(tokens, k)
        for _, list in ipairs { slots, mc.full({ n }, -1, { dtype = "int64" }), mc.full({ n }, 7, { dtype = "int32" }),
          some_ids(1, n, n, -n)[1] } do
          H.compare(permute(k), { x, list }, { exact = true, what = what })
          H.compare(permute(k), { apart(x), spread(list) }, { exact = true, what = what })
        end
      end
    end
  end)

  it("brings rows back in every dtype, weighted in either dtype or not", function()
    for i, dtype in ipairs(H.floats) do
      for j, d in ipairs(WIDTHS) do
        local tokens, k = ({ 1, 6, 17 })[(i + j) % 3 + 1], ({ 1, 4, 5, 9 })[(i + j) % 4 + 1]
        local _, rows = routed(tokens, k)
        local h = mc.randn({ tokens * k, d }):to(dtype)
        local opts = { n = k, count = 3, what = ("%s, width %d, k %d"):format(dtype, d, k) }
        H.compare(unpermute, { h, rows, nil }, opts)
        H.compare(unpermute, { h, rows:to("int32"), mc.randn({ tokens, k }):to(dtype) }, opts)
        H.compare(unpermute, { h, rows, mc.randn({ tokens, k }):to(stat(dtype)) }, opts)
      end
      local _, rows = routed(9, 3)
      local h, w = mc.randn({ 27, 40 }):to(dtype), mc.randn({ 9, 3 }):to(dtype)
      for _, make in ipairs { turned, apart, spread } do
        H.compare(unpermute, { make(h), make(rows), make(w) }, { n = 3 })
      end
    end
    H.compare(unpermute, { mc.zeros(0, 8), mc.zeros({ 3, 0 }, { dtype = "int64" }), nil }, { count = 3 })
    H.compare(unpermute, { mc.zeros(0, 8), mc.zeros({ 0, 4 }, { dtype = "int64" }), nil }, { count = 3 })
  end)

  it("has the CPU's gradients of rows and weights", function()
    for i, dtype in ipairs(H.floats) do
      for j, d in ipairs(WIDTHS) do
        local tokens, k = ({ 1, 6, 17 })[(i + j) % 3 + 1], ({ 1, 4, 5, 9 })[(i + j) % 4 + 1]
        local _, rows, slots = routed(tokens, k)
        local dy, h = mc.randn({ tokens, d }):to(dtype), mc.randn({ tokens * k, d }):to(dtype)
        local opts = { n = d, count = 5, what = ("%s, width %d, k %d"):format(dtype, d, k) }
        H.compare(unpermute_backward, { dy, h, rows, slots, mc.randn({ tokens, k }):to(dtype) }, opts)
        H.compare(unpermute_backward, { dy, h, rows:to("int32"), slots, mc.randn({ tokens, k }):to(stat(dtype)) }, opts)
        H.compare(only_dh, { dy, h, rows, slots:to("int32"), mc.randn({ tokens, k }):to(dtype) }, opts)
        H.compare(only_dh, { dy, nil, rows, slots, nil }, opts)
      end
      local _, rows, slots = routed(9, 3)
      local dy, h, w = mc.randn({ 9, 40 }):to(dtype), mc.randn({ 27, 40 }):to(dtype), mc.randn({ 9, 3 }):to(dtype)
      for _, make in ipairs { turned, apart, spread } do
        H.compare(unpermute_backward, { make(dy), make(h), make(rows), spread(slots), make(w) }, { n = 40 })
      end
    end
    local _, rows, slots = routed(3, 40)
    H.compare(unpermute_backward, { mc.randn(3, 64), mc.randn(120, 64), rows, slots, mc.randn(3, 40) }, { n = 64 })
  end)

  it("follows rows for the weights and slots for the rows where the two disagree", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      for _, d in ipairs { 5, 64 } do
        for _ = 1, 4 do
          local rows, slots = some_ids(6, 3, 18, -3):to("int64"), some_ids(1, 18, 18, -3)[1]
          local dy, h, w = mc.randn({ 6, d }):to(dtype), mc.randn({ 18, d }):to(dtype), mc.randn({ 6, 3 }):to(dtype)
          H.compare(unpermute_backward, { dy, h, rows, slots, w }, { n = d })
        end
      end
    end
  end)

  it("blames rows and slots beyond the last and stays within bounds", function()
    for _, d in ipairs { 0, 3, 64, 512 } do
      local x, h, w = mc.randn(2, d), mc.randn(4, d), mc.randn(2, 2)
      local rows, slots = i64 { { 0, 1 }, { 2, 3 } }, i64 { 0, 1, 2, 3 }
      local bad_rows, bad_slots = i64 { { 0, 1 }, { 2 ^ 40, 3 } }, i64 { 0, 4, 2, -7 }
      H.raises("moe_permute: slots[1] is 4, legal are 0 to 3 (0-based), or negative for none", permute(2),
        { x, bad_slots })
      H.raises("moe_unpermute: rows[1, 0] is 1099511627776, legal are 0 to 3 (0-based), or negative for none",
        unpermute, { h, bad_rows, w })
      H.raises("moe_unpermute_backward: rows[1, 0] is 1099511627776, legal are 0 to 3 (0-based), or negative for none",
        unpermute_backward, { x, h, bad_rows, slots, w })
      H.raises("moe_unpermute_backward: slots[1] is 4, legal are 0 to 3 (0-based), or negative for none",
        unpermute_backward, { x, h, rows, bad_slots, w })
    end
  end)

  it("gives the same bits each time", function()
    local counts, rows, slots = routed(300, 4)
    local on = H.device
    local h, w, dy = mc.randn({ 1200, 72 }):to(on), mc.randn({ 300, 4 }):to(on), mc.randn({ 300, 72 }):to(on)
    local scores = mc.rand({ 300, 5 }):to(on)
    rows, slots, counts = rows:to(on), slots:to(on), counts:to(on)
    local first, again = {}, {}
    for _, list in ipairs { first, again } do
      list[1] = unpermute(h, rows, w)
      list[2], list[3] = unpermute_backward(dy, h, rows, slots, w)
      list[4] = F.moe_aux_loss(scores, counts)
      list[5] = F.moe_z_loss(scores)
    end
    for i = 1, 5 do helper.same(again[i]:to("cpu"), first[i]:to("cpu")) end
  end)
end)

describe("the balancing losses on the device", function()
  before_each(function() mc.manual_seed(34) end)

  local aux, aux_backward = op("moe_aux_loss", 1), op("moe_aux_loss_backward", 1)
  local z, z_backward = op("moe_z_loss", 2), op("moe_z_loss_backward", 1)
  local SHAPES = { { 0, 4 }, { 3, 0 }, { 1, 1 }, { 7, 8 }, { 9, 31 }, { 8, 32 }, { 65, 33 }, { 3, 1024 },
    { 3, 1030 }, { 2055, 3 } }

  -- the last shape has more tokens than the blocks of a loss have warps
  it("agree with the CPU in every dtype, with their gradients", function()
    for _, dtype in ipairs(H.floats) do
      for i = 1, dtype == "bfloat16" and #SHAPES or #SHAPES - 1 do
        local s = SHAPES[i]
        local opts = { n = s[1] * s[2], what = ("%s [%d, %d]"):format(dtype, s[1], s[2]) }
        local x, scores = (mc.randn { s[1], s[2] } * 3):to(dtype), mc.rand({ s[1], s[2] }):to(dtype)
        local counts = mc.randint(0, 9, { s[2] }, { dtype = i % 2 == 0 and "int32" or "int64" })
        local dloss = mc.full({}, 0.7, { dtype = stat(dtype) })
        local views = { x, x, x, x }
        if s[1] > 0 and s[2] > 0 then views = { x, turned(x), apart(x), spread(x) } end
        for j, view in ipairs(views) do
          if j == 1 or s[1] * s[2] < 300 then
            H.compare(function(a) return z(a, 0.3) end, { view }, opts)
            H.compare(function(g, a)
              local _, lse = z(a, 0.3)
              return z_backward(g, a, lse, 0.3)
            end, { dloss, view }, opts)
          end
        end
        H.compare(function(a, c) return aux(a, c, 0.3) end, { scores, counts }, opts)
        H.compare(function(g, a, c) return aux_backward(g, a, c, 0.3) end, { dloss, scores, counts }, opts)
        if s[1] > 0 and s[2] > 0 and s[1] < 100 then
          H.compare(function(a, c) return aux(a, c, 0.3) end, { turned(scores), spread(counts) }, opts)
          H.compare(function(g, a, c) return aux_backward(g, a, c, 0.3) end, { dloss, apart(scores), counts }, opts)
        end
      end
    end
  end)

  it("take rows of zeros, of infinities and of NaN as the CPU does", function()
    local rows = mc.tensor { { 0, 0, 0 }, { -INF, -INF, -INF }, { 1, INF, 0 }, { NAN, 1, 2 }, { -1, 1, 0 },
      { 1, -INF, 2 } }
    local none, some = i64 { 0, 0, 0 }, i64 { 2, 0, 4 }
    for _, dtype in ipairs(H.floats) do
      for r = 1, 6 do
        local x, one = rows:narrow(1, r, 1):to(dtype), mc.full({}, 1, { dtype = stat(dtype) })
        H.compare(function(a) return z(a, 1) end, { x }, { n = 3 })
        H.compare(function(g, a)
          local _, lse = z(a, 1)
          return z_backward(g, a, lse, 1)
        end, { one, x }, { n = 3 })
        for _, counts in ipairs { none, some } do
          H.compare(function(a, c) return aux(a, c, 1) end, { x, counts }, { n = 3 })
          H.compare(function(g, a, c) return aux_backward(g, a, c, 1) end, { one, x, counts }, { n = 3 })
        end
      end
    end
  end)
end)

describe("grouped_offsets on the device", function()
  local offsets = op("grouped_offsets", 1)

  it("sums splits of either dtype, any number of them", function()
    mc.manual_seed(35)
    for _, groups in ipairs { 0, 1, 2, 31, 33, 255, 256, 257, 1000 } do
      for _, dtype in ipairs { "int32", "int64" } do
        H.compare(offsets, { mc.randint(0, 1000, { groups }, { dtype = dtype }) }, { what = groups .. " groups" })
      end
    end
    H.compare(offsets, { spread(mc.randint(0, 1000, { 300 }, { dtype = "int32" })) })
    H.compare(offsets, { i64 { 2 ^ 53, 2 ^ 53, 0, 7 } })
  end)

  it("blames a negative split, and a sum that no int64 holds", function()
    H.raises("grouped_offsets: first_dims[2] is -3, must be 0 or more", offsets, { i32 { 4, 0, -3, 1 } })
    local many = mc.full({ 300 }, 2 ^ 55, { dtype = "int64" })
    H.raises("grouped_offsets: first_dims sum to more than 2^63 - 1", offsets, { many })
    assert.equal("int64", offsets(many:narrow(1, 1, 255)).dtype)
  end)
end)
