-- mc.checkpoint.diff, and the statistics and the search for equal experts that look at every value of a file.
local mc = require "mascon"
local helper = require "helper"
local pieces = require "mascon.checkpoint.pieces"

local G, OUT, IN = 12, 3, 5 -- more than ten experts: their names must sort and match as numbers

local function grouped(single_weight, single_bias)
  return mc.nn.GroupedLinear { num_gemms = G, in_features = IN, out_features = OUT,
    single_grouped_weight = single_weight, single_grouped_bias = single_bias }
end

-- A layer whose every element tells where it belongs.
local function coded()
  local gl = grouped(false, false)
  mc.no_grad(function()
    gl.weight:copy_(mc.arange(G * OUT * IN):view(G, OUT, IN))
    gl.bias:copy_(mc.arange(G * OUT):view(G, OUT) + 1000)
  end)
  return gl
end

local function checkpoint(gl)
  return { model = { experts = gl:state_dict(), norm = mc.ones(4) }, step = 7, note = "a" }
end

local function set(t, index, value)
  mc.no_grad(function()
    for _, i in ipairs(index) do t = t:select(1, i + 1) end
    t:fill_(value)
  end)
end

describe("mc.checkpoint.diff", function()
  local made
  before_each(function() made = {} end)
  after_each(function()
    for _, path in ipairs(made) do os.remove(path) end
  end)

  local function saved(object, opts)
    local path = os.tmpname()
    made[#made + 1] = path
    mc.save(path, object, opts)
    return path
  end

  local function both(a, b, opts) return mc.checkpoint.diff(saved(a), saved(b), opts) end

  it("finds a file equal to itself and counts tensors and values", function()
    local path = saved(checkpoint(coded()))
    local report = mc.checkpoint.diff(path, path)
    assert.is_true(report.ok)
    assert.equal(2 * G + 1, report.equal)
    assert.equal(2, report.equal_values)
    assert.same({}, report.layouts)
  end)

  it("finds experts stored one by one equal to the same experts stored as one, biases too, in both directions",
    function()
      local object = checkpoint(coded())
      local many, one = saved(object, { layout = "per_expert" }), saved(object, { layout = "single" })
      for _, case in ipairs { { many, one, "per_expert", "single" }, { one, many, "single", "per_expert" } } do
        local report = mc.checkpoint.diff(case[1], case[2])
        assert.is_true(report.ok)
        assert.equal(3, report.equal)
        assert.same({ { name = "model.experts.bias", a = case[3], b = case[4] },
          { name = "model.experts.weight", a = case[3], b = case[4] } }, report.layouts)
      end
    end)

  it("compares two files with mixed layouts: weights one way, biases the other", function()
    local a, b = grouped(true, false), grouped(false, true)
    b:load_state_dict(a:state_dict())
    local report = both(checkpoint(a), checkpoint(b))
    assert.is_true(report.ok)
    assert.equal(2, #report.layouts)
    set(b.bias, { 11, 2 }, 5)
    assert.is_false(both(checkpoint(a), checkpoint(b)).ok)
  end)

  it("calls another layout a difference with layout_aware = false", function()
    local object = checkpoint(coded())
    local report = mc.checkpoint.diff(saved(object, { layout = "per_expert" }), saved(object, { layout = "single" }),
      { layout_aware = false })
    assert.is_false(report.ok)
    assert.equal(2 * G, #report.only_a)
    assert.same({ "model.experts.bias", "model.experts.weight" }, report.only_b)
  end)

  it("finds optimizer arrays stored one by one equal to the stacked ones", function()
    local stacked, apart = {}, {}
    for _, array in ipairs { "exp_avg", "exp_avg_sq" } do
      local t = mc.randn(G, OUT, IN)
      stacked[array .. ".experts.weight"] = t
      for i = 0, G - 1 do apart[array .. ".experts.weight" .. i] = t:select(1, i + 1) end
    end
    local report = both({ optimizer = stacked }, { optimizer = apart })
    assert.is_true(report.ok)
    assert.equal(2, report.equal)
    assert.equal(2, #report.layouts)
  end)

  it("finds one flipped element in either layout and says where", function()
    local gl = coded()
    local before = { saved(checkpoint(gl), { layout = "per_expert" }), saved(checkpoint(gl), { layout = "single" }) }
    set(gl.weight, { 10, 2, 4 }, -1)
    local after = saved(checkpoint(gl), { layout = "single" })
    for _, path in ipairs(before) do
      local report = mc.checkpoint.diff(path, after)
      assert.is_false(report.ok)
      assert.equal(1, #report.differing)
      local found = report.differing[1]
      assert.equal("model.experts.weight", found.name)
      assert.equal(1, found.count)
      assert.equal(G * OUT * IN, found.of)
      assert.same({ index = { 10, 2, 4 }, a = 164, b = -1 }, found.first)
      assert.equal(165, found.max_abs)
      assert.equal(165, found.max_rel)
      assert.equal(2, report.equal)
    end
  end)

  it("finds two swapped experts", function()
    local sd = coded():state_dict()
    local a = saved { model = sd }
    sd.weight2, sd.weight11 = sd.weight11, sd.weight2
    local report = mc.checkpoint.diff(a, saved { model = sd })
    assert.equal(2, #report.differing)
    assert.equal("model.weight2", report.differing[1].name)
    assert.equal("model.weight11", report.differing[2].name)
  end)

  it("names experts that are missing, and compares those that are there", function()
    local gl = coded()
    local one = saved({ model = gl:state_dict() }, { layout = "single" })
    local sd = gl:state_dict()
    sd.weight3, sd.weight11 = nil, nil
    local many = saved { model = sd }
    local report = mc.checkpoint.diff(one, many)
    assert.is_false(report.ok)
    assert.same({ "model.weight3", "model.weight11" }, report.only_a)
    assert.same({}, report.differing)
    assert.equal(1, report.equal) -- the biases
    set(gl.weight, { 4, 0, 0 }, 77)
    report = mc.checkpoint.diff(saved { model = sd }, one)
    assert.same({ "model.weight3", "model.weight11" }, report.only_b)
    assert.same({ 4, 0, 0 }, report.differing[1].first.index)
  end)

  it("reports a surplus expert and another number of experts as a shape", function()
    local gl = coded()
    local one = saved({ model = gl:state_dict() }, { layout = "single" })
    local sd = gl:state_dict()
    sd.weight12 = mc.zeros(OUT, IN)
    local report = mc.checkpoint.diff(one, saved { model = sd })
    assert.is_false(report.ok)
    assert.equal("model.weight", report.shape[1].name)
    assert.matches("13 experts in the checkpoint, 12 in the other file", report.shape[1].message, 1, true)
  end)

  it("lists names of one file alone, other shapes, other dtypes and other values", function()
    local a = { x = mc.zeros(2, 3), y = mc.ones(3), only = mc.ones(1), step = 1, text = "one", flag = true, gone = 1,
      long = ("a"):rep(2000), longer = ("b"):rep(2000), kind = 1 }
    local b = { x = mc.zeros(3, 2), y = mc.ones(3, { dtype = "bfloat16" }), new = { thing = mc.ones(1) }, step = 2,
      text = "two", flag = true, long = ("a"):rep(1999) .. "c", longer = ("b"):rep(2000), kind = mc.ones(1) }
    local report = both(a, b)
    assert.is_false(report.ok)
    assert.same({ "gone", "only" }, report.only_a)
    assert.same({ "new.thing" }, report.only_b)
    assert.same({ { name = "x", a = "[2, 3]", b = "[3, 2]" } }, report.shape)
    assert.same({ { name = "y", a = "float32", b = "bfloat16" } }, report.dtype)
    assert.same({}, report.differing) -- ones are ones in both
    local by_name = {}
    for _, value in ipairs(report.values) do by_name[value.name] = value end
    assert.same({ name = "step", a = 1, b = 2 }, by_name.step)
    assert.same({ name = "text", a = "one", b = "two" }, by_name.text)
    assert.matches("from byte 1999 on", by_name.long.b)
    assert.equal("a tensor [1] float32", by_name.kind.b)
    assert.is_nil(by_name.flag)
    assert.equal(2, report.equal_values) -- flag, longer
    assert.equal(0, report.equal)
  end)

  it("compares the values of tensors whose dtypes differ, too", function()
    local x = mc.tensor { 1, 2.00390625, 3 } -- bfloat16 has 8 bits: the second is rounded to 2
    local report = both({ x = x }, { x = x:to "bfloat16" })
    assert.equal(1, #report.dtype)
    assert.equal(1, report.differing[1].count)
    assert.equal(0.00390625, report.differing[1].max_abs)
    assert.same({}, both({ x = x }, { x = x:to "bfloat16" }, { rtol = 2 ^ -8 }).differing)
  end)

  it("lets bits decide without tolerances, and values with them", function()
    local nan = 0 / 0
    local x = mc.tensor { 0, nan, 1 / 0, 1 }
    local y = x:clone()
    y:narrow(1, 1, 1):mul_(-1) -- to -0
    assert.is_true(both({ x = x }, { x = x }).ok)
    local report = both({ x = x }, { x = y })
    assert.equal(1, report.differing[1].count)
    assert.equal(0, report.differing[1].max_abs)
    assert.is_true(both({ x = x }, { x = y }, { atol = 1e-9 }).ok)
  end)

  it("takes tolerances as |a - b| <= atol + rtol * |b|, for tensors and numbers", function()
    local a, b = { x = mc.tensor({ 1, 100 }, { dtype = "float64" }), lr = 0.1 },
      { x = mc.tensor({ 1.5, 110 }, { dtype = "float64" }), lr = 0.101 }
    assert.equal(2, both(a, b).differing[1].count)
    assert.equal(1, both(a, b, { atol = 0.5 }).differing[1].count)
    assert.same({ 1 }, both(a, b, { atol = 0.5 }).differing[1].first.index)
    assert.equal(1, both(a, b, { rtol = 0.1 }).differing[1].count)
    assert.is_true(both(a, b, { rtol = 0.1, atol = 0.4 }).ok)
    assert.equal(1, #both(a, b, { rtol = 0.001 }).values)
  end)

  it("never takes NaN or infinity for close to anything else", function()
    for _, pair in ipairs { { 0 / 0, 1 }, { 1 / 0, 1 }, { 1 / 0, -1 / 0 }, { 1, 0 / 0 } } do
      local report = both({ x = mc.tensor { pair[1] } }, { x = mc.tensor { pair[2] } }, { rtol = 10, atol = 10 })
      assert.is_false(report.ok, ("%g and %g"):format(pair[1], pair[2]))
      assert.is_false(report.differing[1].max_abs < 1e300)
    end
  end)

  it("sees a difference in every dtype, and of one in int64 beyond 2^53", function()
    for _, dtype in ipairs { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool",
      "float8_e4m3fn", "float8_e5m2" } do
      local x, y = mc.tensor { 0, 1, 1 }, mc.tensor { 0, 1, 0 }
      local report = both({ x = x:to(dtype) }, { x = y:to(dtype) })
      assert.equal(1, report.differing[1].count, dtype)
      assert.same({ 2 }, report.differing[1].first.index, dtype)
      assert.equal(1, report.differing[1].max_abs, dtype)
    end
    local x = mc.full({ 2 }, 2 ^ 53, { dtype = "int64" })
    local y = x:clone()
    y:narrow(1, 2, 1):add_(1)
    local found = both({ x = x }, { x = y }).differing[1]
    assert.same({ 1 }, found.first.index)
    assert.equal(1, found.max_abs)
    assert.equal("9007199254740993LL", tostring(found.first.b))
  end)

  it("gives the cosine on request", function()
    local a, b = { x = mc.tensor { 3, 4 } }, { x = mc.tensor { 4, 3 } }
    assert.is_nil(both(a, b).differing[1].cosine)
    assert.is_true(math.abs(both(a, b, { stats = true }).differing[1].cosine - 0.96) < 1e-15)
  end)

  it("compares scalars and zero-size tensors", function()
    local object = { s = mc.tensor(3), z = mc.zeros(0, 4), e = {} }
    local report = both(object, object)
    assert.is_true(report.ok)
    assert.equal(2, report.equal)
    assert.equal("z", both({ z = mc.zeros(0, 4) }, { z = mc.zeros(4, 0) }).shape[1].name)
  end)

  it("finds the last element of a tensor of several pieces, in bounded memory", function()
    local n = 9 * pieces.SIZE + 3
    local x = mc.zeros(n, { dtype = "uint8" })
    local a = saved { x = x }
    set(x, { n - 1 }, 9)
    local b = saved { x = x }
    x:free()
    collectgarbage()
    mc.collect_garbage()
    mc.reset_peak_memory()
    local before = mc.memory_stats().live_bytes
    local report = mc.checkpoint.diff(a, b)
    assert.same({ n - 1 }, report.differing[1].first.index)
    local used = mc.memory_stats().peak_bytes - before
    assert.is_true(used < 4 * pieces.SIZE, ("%d bytes for files of %d"):format(used, n))
  end)

  it("takes experts for such without a record only where all of them are there and fit", function()
    local w = mc.randn(3, 2, 2)
    local a = { w = w }
    assert.is_true(both(a, { w0 = w[1], w1 = w[2], w2 = w[3] }).ok)
    local report = both(a, { w0 = w[1], w2 = w[3] })
    assert.same({ "w" }, report.only_a)
    assert.same({ "w0", "w2" }, report.only_b)
    report = both({ layer = mc.ones(4) }, { layer2 = mc.ones(7) })
    assert.same({ "layer" }, report.only_a)
  end)

  it("hides nothing of a file that has both layouts", function()
    local w = mc.randn(2, 2, 2)
    local report = both({ w = w }, { w = w, w0 = w[1], w1 = w[2] + 1 })
    assert.same({ "w0", "w1" }, report.only_b)
    assert.equal(1, report.equal)
  end)

  it("raises for what is no file, naming it, and for options that do not exist", function()
    local path = saved { x = mc.ones(1) }
    helper.raises("/nonexistent/x.h5", mc.checkpoint.diff, path, "/nonexistent/x.h5")
    helper.raises("wanted a path", mc.checkpoint.diff, path, 3)
    helper.raises("rtoll", mc.checkpoint.diff, path, path, { rtoll = 1 })
    helper.raises("rtol", mc.checkpoint.diff, path, path, { rtol = -1 })
  end)
end)

describe("statistics of a file", function()
  local path
  after_each(function() os.remove(path) end)

  local function stats(t)
    path = path or os.tmpname()
    mc.save(path, { t = t })
    return mc.checkpoint.inspect(path, { stats = true }).tensors[1].stats
  end

  it("and its tree are what print shows of a report", function()
    stats(mc.tensor { 0, 1 })
    local shown, verified = tostring(mc.checkpoint.inspect(path)), tostring(mc.checkpoint.verify(path))
    assert.is_truthy(shown:find("mascon checkpoint, format 1", 1, true), shown)
    assert.is_truthy(shown:find("float32[2]", 1, true), shown)
    assert.equal(path .. ": ok, 1 dataset checked\n", verified)
  end)

  it("are those of the finite values, with the others counted", function()
    local s = stats(mc.tensor { 0, 1, 2, 3, 0 / 0, 1 / 0, -1 / 0, -0 })
    assert.same({ count = 8, min = 0, max = 3, mean = 1.2, std = math.sqrt(1.36), zeros = 2, nan = 1, inf = 2 }, s)
    assert.is_nil(stats(mc.tensor { 0 / 0 }).mean)
    assert.equal(0, stats(mc.zeros(0)).count)
  end)

  it("keep a small deviation beside a large mean, over several pieces", function()
    local n = 2 * pieces.SIZE + 2
    local t = mc.full({ n }, 1e9, { dtype = "float64" })
    t:narrow(1, 1, n / 2):add_(1)
    local s = stats(t)
    assert.is_true(math.abs(s.mean - 1e9 - 0.5) < 1e-6, tostring(s.mean))
    assert.is_true(math.abs(s.std - 0.5) < 1e-6, tostring(s.std))
  end)

  it("are the same for one tensor and for its parts taken together", function()
    local merge = require("mascon.checkpoint.stats").merge
    local t = mc.randn(30, { dtype = "float64" })
    local parts = { stats(t:narrow(1, 1, 7)), stats(t:narrow(1, 8, 23)) }
    local whole, merged = stats(t), merge(parts)
    for _, key in ipairs { "min", "max", "zeros", "nan", "inf", "count" } do
      assert.equal(whole[key], merged[key], key)
    end
    assert.is_true(math.abs(whole.mean - merged.mean) < 1e-14)
    assert.is_true(math.abs(whole.std - merged.std) < 1e-14)
  end)
end)

describe("equal experts", function()
  local path
  after_each(function() os.remove(path) end)

  local function duplicates(gl, layout)
    path = path or os.tmpname()
    mc.save(path, { model = gl:state_dict() }, { layout = layout })
    return mc.checkpoint.verify(path).duplicates
  end

  it("are found by verify in both layouts", function()
    local gl = coded()
    mc.no_grad(function()
      gl:expert(11).weight:copy_(gl:expert(2).weight)
      gl:expert(5).weight:copy_(gl:expert(2).weight)
    end)
    for _, layout in ipairs { "single", "per_expert" } do
      assert.same({ { name = "model.weight", experts = { 2, 5, 11 } } }, duplicates(gl, layout), layout)
    end
  end)

  it("are no finding where they are all one number, as fresh biases are", function()
    local gl = grouped(false, false)
    for _, layout in ipairs { "single", "per_expert" } do assert.same({}, duplicates(gl, layout)) end
  end)

  it("need to be equal to the last element", function()
    local gl = mc.nn.GroupedLinear { num_gemms = 3, in_features = 64, out_features = 64 }
    mc.no_grad(function() gl.weight:copy_(gl.weight[1]:unsqueeze(1):expand(3, 64, 64):contiguous()) end)
    set(gl.weight, { 1, 63, 63 }, 5)
    assert.same({ { name = "model.weight", experts = { 0, 2 } } }, duplicates(gl, "single"))
  end)
end)
