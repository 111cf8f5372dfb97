-- The load planner: casts, adoption, optimizer state, tied parameters, reports; rules by their numbers.

local plan = require("mascon.checkpoint.plan")
local helper = require("plan_helper")

local N, K, LAYOUTS = helper.N, helper.K, helper.LAYOUTS
local packed, bias_want, offer, members = helper.packed, helper.bias_want, helper.offer, helper.members
local range, joined, copy_deep, lines = helper.range, helper.joined, helper.copy_deep, helper.lines

describe("a load plan", function()
  it("L16: casts between dtypes of a kind and warns when a cast rounds", function()
    local function make(from, to, options)
      return plan.make({ { name = "w", shape = { 4 }, dtype = to } },
        { offer("w", { 4 }, { dtype = from }) }, options)
    end
    for _, pair in ipairs { { "bfloat16", "float32" }, { "float16", "float32" }, { "float32", "float64" },
      { "int32", "int64" }, { "uint8", "int32" } } do
      local p = make(pair[1], pair[2], { refuse_narrowing = true })
      assert.are.same({ from = pair[1], to = pair[2] }, p.copies[1].cast)
      assert.are.same({}, p.warnings)
      assert.are.same({ "w" }, p.converted)
    end
    for _, pair in ipairs { { "float32", "bfloat16" }, { "float16", "bfloat16" }, { "bfloat16", "float16" },
      { "float64", "float32" }, { "int64", "int32" }, { "int32", "uint8" } } do
      local p = make(pair[1], pair[2])
      assert.is_true(p.ok)
      assert.are.same({ ("w: %s is rounded to %s"):format(pair[1], pair[2]) }, p.warnings)
      p = make(pair[1], pair[2], { refuse_narrowing = true })
      assert.are.same({ ("[dtype] w: found %s, wanted %s, and narrowing is refused"):format(pair[1],
        pair[2]) }, lines(p))
    end
  end)

  it("L16: refuses casts that change the kind of the values", function()
    local function text(from, to)
      return lines(plan.make({ { name = "w", shape = { 4 }, dtype = to } },
        { offer("w", { 4 }, { dtype = from }) }, { strict = false }))[1]
    end
    assert.are.equal("[dtype] w: found bfloat16, wanted uint8: float values are not turned into integer "
      .. "ones", text("bfloat16", "uint8"))
    assert.are.equal("[dtype] w: found int64, wanted float32: integer values are not turned into float "
      .. "ones", text("int64", "float32"))
    assert.are.equal("[dtype] w: found bool, wanted uint8: bool values are not turned into integer ones",
      text("bool", "uint8"))
    assert.are.equal("[dtype] w: found float8_e4m3fn, wanted float32: 8-bit codes mean nothing without "
      .. "their scales", text("float8_e4m3fn", "float32"))
    assert.are.equal("[dtype] w: found complex64, wanted float32: complex64 is not a known dtype",
      text("complex64", "float32"))
  end)

  it("L16: warns once for all experts of a layer", function()
    local wants = { packed("m.weight", 12, "single", nil, { dtype = "bfloat16" }) }
    local p = plan.make(wants, members("m.weight", range(0, 11)))
    assert.are.same({ "m.weight{0-11}: float32 is rounded to bfloat16" }, p.warnings)
  end)

  it("L20: refuses experts of different dtypes unless told otherwise", function()
    local offers = members("m.weight", range(0, 2))
    offers[2].dtype = "bfloat16"
    for _, layout in ipairs(LAYOUTS) do
      local p = plan.make({ packed("m.weight", 3, layout) }, offers, { strict = false })
      assert.are.same({ "[dtype] m.weight{0-2}: the experts differ in dtype: float32 in 0,2, bfloat16 in "
        .. "1; wanted one dtype" }, lines(p))
      p = plan.make({ packed("m.weight", 3, layout) }, offers, { allow_mixed_dtypes = true })
      assert.is_true(p.ok)
      assert.are.same({ from = "bfloat16", to = "float32" }, p.copies[2].cast)
      assert.is_nil(p.copies[1].cast)
    end
  end)

  local function in_memory(o, id, first, whole, device)
    o.device, o.storage, o.storage_first, o.storage_numel = device or "cpu", id, first, whole
    return o
  end

  it("L21: adopts a source that is one whole block of the right kind", function()
    local want = packed("m.weight", 2, "single", nil, { device = "cpu" })
    local whole = in_memory(offer("m.weight", { 2, N, K }), 7, 0, 2 * N * K)
    local p = plan.make({ want }, { whole }, { assign = true })
    assert.is_true(p.copies[1].adopt)
    assert.are.same({}, p.warnings)
    assert.is_nil(plan.make({ want }, { whole }).copies[1].adopt)
    -- the members of another layer in per_expert layout are one block too
    local slices = members("m.weight", { 0, 1 })
    in_memory(slices[1], 7, 0, 2 * N * K)
    in_memory(slices[2], 7, N * K, 2 * N * K)
    p = plan.make({ want }, slices, { assign = "strict" })
    assert.is_true(p.ok)
    assert.are.equal(1, #p.copies)
    assert.is_true(p.copies[1].adopt)
    assert.are.equal(2 * N * K, p.copies[1].count)
    assert.are.same({ "m.weight0", "m.weight1" }, p.converted)
  end)

  it("L21: copies and says why, or refuses, where adoption is impossible", function()
    local want = packed("m.weight", 2, "single", nil, { device = "cpu" })
    local function check(offers, why, wants)
      local p = plan.make(wants or { want }, offers, { assign = true })
      assert.is_true(p.ok)
      assert.are.equal(why .. "; copied, not adopted", p.warnings[#p.warnings])
      p = plan.make(wants or { want }, offers, { assign = "strict" })
      assert.are.same({ "[adopt] " .. why .. '; copying is forbidden by assign = "strict"' }, lines(p))
    end
    local function whole(extra) return in_memory(offer("m.weight", { 2, N, K }, extra), 7, 0, 2 * N * K) end
    check({ offer("m.weight", { 2, N, K }) }, "m.weight: the source is not a tensor in memory")
    check({ whole { dtype = "float16" } }, "m.weight: its dtype is float16, wanted float32")
    check({ in_memory(whole(), 7, 0, 2 * N * K, "cuda:1") }, "m.weight: it is on cuda:1, wanted cpu")
    check({ whole { contiguous = false } }, "m.weight: it is not contiguous")
    check({ whole { aligned = false } }, "m.weight: it is not aligned")
    check({ in_memory(whole(), 7, 0, 100) }, "m.weight: it is a part of a larger storage")
    local parts = members("m.weight", { 0, 1 })
    in_memory(parts[1], 7, 0, N * K)
    in_memory(parts[2], 8, 0, N * K)
    check(parts, "m.weight{0,1}: its experts lie in separate storages")
    in_memory(parts[1], 7, N * K, 2 * N * K)
    in_memory(parts[2], 7, 0, 2 * N * K)
    check(parts, "m.weight{0,1}: it is a part of a larger storage, or out of order")
    check({ whole(), in_memory(offer("n.weight", { 2, N, K }), 7, 0, 2 * N * K) },
      "n.weight: m.weight has already adopted its storage",
      { want, packed("n.weight", 2, "single", nil, { device = "cpu" }) })
  end)

  it("L22 and L23: changes none of its arguments and gives the same plan again", function()
    local wants = { packed("m.weight", 12, "per_expert"), bias_want("m.bias", 12),
      { name = "norm.weight", shape = { 4 }, dtype = "bfloat16", tag = { 1 } } }
    local offers = joined(members("m.weight", range(0, 11)), members("m.bias", range(0, 11), { 1, N }),
      { offer("m.weight", { 12, N, K }), offer("norm.weight", { 4 }), offer("m.bias01", { N }) })
    local options = { verify_duplicates = true, absent = { ["x.bias"] = "bias = false" } }
    local before = { copy_deep(wants), copy_deep(offers), copy_deep(options) }
    local first = plan.make(wants, offers, options)
    local second = plan.make(wants, offers, options)
    assert.are.same(before, { wants, offers, options })
    assert.are.same(first, second)
    assert.are.equal(tostring(first), tostring(second))
  end)

  it("L23: gives a map the same plan as a list", function()
    local list = joined(members("m.weight", range(0, 11)), { offer("other", { 2 }) })
    local map = {}
    for _, o in ipairs(list) do map[o.name] = { shape = o.shape, dtype = o.dtype } end
    local a = plan.make({ packed("m.weight", 12) }, list)
    local b = plan.make({ packed("m.weight", 12) }, map)
    assert.are.equal(a.error_text, b.error_text)
    assert.are.same(a.converted, b.converted)
    assert.are.equal(map["m.weight11"], b.copies[12].offer)
    assert.are.equal("m.weight11", b.copies[12].name)
  end)

  it("L24: collects every error of the whole tree under the name of the source", function()
    local p = plan.make({
      packed("a.weight", 3), packed("b.weight", 3), bias_want("b.bias", 3), packed("c.weight", 3),
      { name = "norm", shape = { 4 }, dtype = "float32" }, { name = "head", shape = { 4 }, dtype = "uint8" },
    }, joined({ offer("a.weight", { 5, N, K }) }, members("b.weight", { 0, 2 }),
      { offer("b.bias", { 3, 9 }), offer("head", { 4 }), offer("extra", { 1 }) },
      { offer("c.weight", { 3, N, K }, { problem = "a compressed dataset with an unknown filter" }) }),
      { where = "step-7.h5" })
    assert.are.equal(table.concat({
      "step-7.h5: cannot load, 7 problems; nothing was changed",
      "[count] a.weight: 5 experts in the checkpoint (shape [5, 3, 5]), 3 in the module",
      "[partial] b.weight{0,2}: only 2 of 3 experts are in the checkpoint, missing 1",
      "[shape] b.bias: found [3, 9], wanted [3, 3]",
      "[file] c.weight: a compressed dataset with an unknown filter",
      "[dtype] head: found float32, wanted uint8: float values are not turned into integer ones",
      "[missing] norm: not in the checkpoint",
      "[unexpected] extra: not in the module",
    }, "\n"), p.error_text)
    local ok, err = pcall(p.raise, p)
    assert.is_false(ok)
    assert.is_truthy(err:find(p.error_text, 1, true))
  end)

  it("L25: keeps modules apart whose names are stems of one another", function()
    local wants = { packed("m.weight", 2), packed("m.weight.weight", 2), packed("fc1.weight", 2),
      packed("fc10.weight", 2), { name = "m.weight0.scale", shape = { 1 }, dtype = "float32" } }
    local offers = joined(members("m.weight", { 0, 1 }), members("m.weight.weight", { 0, 1 }),
      members("fc1.weight", { 0, 1 }), { offer("fc10.weight", { 2, N, K }), offer("m.weight0.scale", { 1 }) })
    local p = plan.make(wants, offers)
    assert.is_true(p.ok)
    assert.are.equal(8, #p.copies)
    for _, copy in ipairs(p.copies) do
      assert.are.equal(copy.want.name, (copy.offer.name:gsub("(weight)%d$", "%1")))
    end
  end)

  it("leaves a plain parameter whose name looks like an expert to itself", function()
    local p = plan.make({ packed("m.weight", 2), { name = "m.weight2", shape = { 7 }, dtype = "float32" } },
      joined(members("m.weight", { 0, 1 }), { offer("m.weight2", { 7 }) }))
    assert.is_true(p.ok)
    assert.are.equal(3, #p.copies)
  end)

  it("L26: works under a container's index prefix", function()
    local p = plan.make({ packed("0.weight", 2, "single"), packed("10.weight", 2, "per_expert") },
      joined(members("0.weight", { 0, 1 }), { offer("10.weight", { 2, N, K }) }))
    assert.is_true(p.ok)
    assert.are.equal(3, #p.converted)
  end)

  it("L27: plans optimizer moments as it plans their parameters", function()
    local wants = { packed("exp_avg.e.weight", 11, "single"), packed("exp_avg_sq.e.weight", 11, "single") }
    local p = plan.make(wants, joined(members("exp_avg.e.weight", range(0, 10)),
      members("exp_avg_sq.e.weight", range(0, 10))))
    assert.is_true(p.ok)
    assert.are.equal(22, #p.copies)
    assert.are.equal("exp_avg.e.weight10", p.copies[11].offer.name)
  end)

  local function step_want(layout)
    return { name = "step.e.weight", shape = { 1 }, dtype = "float32",
      packed = { count = 3, role = "scalar", layout = layout } }
  end

  it("L27: makes scalars of the experts agree, comparing known values itself", function()
    local offers = members("step.e.weight", range(0, 2), {})
    for _, o in ipairs(offers) do o.value = 100 end
    local p = plan.make({ step_want("single") }, offers)
    assert.is_true(p.ok)
    assert.are.equal(1, #p.copies)
    assert.are.same({}, p.compare)
    assert.are.equal(3, #p.converted)
    offers[3].value = 90
    p = plan.make({ step_want("single") }, offers)
    assert.are.same({ "[state] step.e.weight: experts must agree, but step.e.weight0 and step.e.weight2 "
      .. "differ: 100 and 90" }, lines(p))
    p = plan.make({ step_want("per_expert") }, offers, { strict = false })
    assert.is_true(p.ok)
    assert.are.same({}, p.copies)
    assert.are.equal(1, #p.warnings)
    assert.are.equal(3, #p.ignored)
  end)

  it("L27: has unknown scalars compared before any copy", function()
    local offers = members("step.e.weight", range(0, 2), { 1 })
    local p = plan.make({ step_want("single") }, offers)
    assert.are.equal(2, #p.compare)
    p:differs(p.compare[1], 0)
    assert.are.same({ "[state] step.e.weight: experts must agree, but step.e.weight0 and step.e.weight1 "
      .. "differ" }, lines(p))
    p = plan.make({ step_want("single") }, offers, { strict = false })
    p:differs(p.compare[2], 0)
    assert.is_true(p.ok)
    assert.is_true(p.copies[1].skip)
    assert.are.equal(1, #p.warnings)
  end)

  it("L27: takes one scalar for all experts, as a tensor or as a number", function()
    for _, o in ipairs { offer("step.e.weight", {}), { name = "step.e.weight", value = 7 } } do
      local p = plan.make({ step_want("per_expert") }, { o })
      assert.is_true(p.ok)
      assert.are.equal(1, p.copies[1].count)
      assert.are.equal(o.value, p.copies[1].value)
    end
    local p = plan.make({ packed("m.weight", 2) }, { { name = "m.weight", value = 7 } })
    assert.are.same({ "[shape] m.weight: found a number, wanted [2, 3, 5]" }, lines(p))
  end)

  it("takes numbers only where they keep their value", function()
    local function make(value, dtype)
      return plan.make({ { name = "n", shape = { 1 }, dtype = dtype } }, { { name = "n", value = value } })
    end
    assert.is_true(make(0.5, "float32").ok)
    assert.is_true(make(7, "int64").ok)
    assert.are.same({ "[dtype] n: found the number 0.5, wanted int64" }, lines(make(0.5, "int64")))
    assert.are.same({ "[dtype] n: found the number 1, wanted bool" }, lines(make(1, "bool")))
    assert.is_true(make(255, "uint8").ok and make(-2 ^ 31, "int32").ok)
    assert.are.same({ "[dtype] n: found the number 256, wanted uint8" }, lines(make(256, "uint8")))
    assert.are.same({ "[dtype] n: found the number -1, wanted uint8" }, lines(make(-1, "uint8")))
    assert.are.same({ "[dtype] n: found the number 2147483648, wanted int32" }, lines(make(2 ^ 31, "int32")))
    assert.are.same({ "[dtype] n: found the number inf, wanted int64" }, lines(make(math.huge, "int64")))
  end)

  it("takes one number with or without an axis, but no other change of axes", function()
    local function make(found, wanted)
      return plan.make({ { name = "n", shape = wanted, dtype = "float32" } }, { offer("n", found) })
    end
    assert.is_true(make({}, { 1 }).ok and make({ 1 }, {}).ok)
    assert.are.same({ "n" }, make({}, { 1 }).converted)
    assert.are.same({ "[shape] n: found [], wanted [0]" }, lines(make({}, { 0 })))
    assert.are.same({ "[shape] n: found [], wanted [1, 1]" }, lines(make({}, { 1, 1 })))
    assert.are.same({ "[shape] n: found [2], wanted []" }, lines(make({ 2 }, {})))
  end)

  it("L30: loads a tied parameter once and needs it under one name only", function()
    local function tied(name) return { name = name, shape = { 4 }, dtype = "float32", id = 1 } end
    local one = offer("head", { 4 }, { id = 9 })
    local p = plan.make({ tied("embed"), tied("head") }, { one })
    assert.is_true(p.ok)
    assert.are.equal(1, #p.copies)
    assert.are.same({}, p.missing)
    p = plan.make({ tied("embed"), tied("head") }, { offer("embed", { 4 }, { id = 9 }), one })
    assert.is_true(p.ok)
    assert.are.equal(1, #p.copies)
    assert.are.same({}, p.compare)
    assert.are.same({ "embed", "head" }, p.loaded)
    p = plan.make({ tied("embed"), tied("head") }, {})
    assert.are.same({ "embed", "head" }, p.missing)
  end)

  it("L30: has the two sources of a tied parameter compared when they are distinct", function()
    local function tied(name) return packed(name, 2, "single", nil, { id = 1 }) end
    local p = plan.make({ tied("a.weight"), tied("b.weight") },
      joined({ offer("a.weight", { 2, N, K }) }, members("b.weight", { 0, 1 })))
    assert.is_true(p.ok)
    assert.are.equal(1, #p.copies)
    assert.are.equal(2, #p.compare)
    assert.are.equal(N * K, p.compare[2].a_first)
    assert.are.equal(0, p.compare[2].b_first)
    p:differs(p.compare[2], 3)
    assert.are.same({ "[conflict] a.weight and b.weight are one tied parameter, but the values of a.weight "
      .. "and b.weight1 differ, first at element 3 (0-based)" }, lines(p))
  end)

  it("L31: accounts for every name of the source exactly once", function()
    local offers = joined({ offer("a.weight", { 2, N, K }) }, members("a.weight", { 0, 1 }),
      members("b.weight", { 0, 1 }), { offer("norm", { 4 }), offer("extra", { 1 }) })
    local p = plan.make({ packed("a.weight", 2), packed("b.weight", 2),
      { name = "norm", shape = { 4 }, dtype = "float32" }, { name = "gone", shape = { 4 }, dtype = "float32" },
      { name = "rare", shape = { 4 }, dtype = "float32", optional = true } }, offers, { strict = false })
    assert.are.same({ "a.weight", "norm" }, p.loaded)
    assert.are.same({ "b.weight0", "b.weight1" }, p.converted)
    assert.are.same({ "a.weight0", "a.weight1" }, p.ignored)
    assert.are.same({ "extra" }, p.unexpected)
    assert.are.same({ "gone", "rare" }, p.missing)
  end)

  it("does not call an optional want an error", function()
    local p = plan.make({ { name = "rare", shape = { 4 }, dtype = "float32", optional = true } }, {})
    assert.is_true(p.ok)
    assert.are.same({ "rare" }, p.missing)
  end)

  it("hints at a grouped source of a plain layer", function()
    local p = plan.make({ { name = "m.weight", shape = { N, K }, dtype = "float32" } },
      members("m.weight", range(0, 7)))
    assert.are.same({
      "[missing] m.weight: not in the checkpoint; the checkpoint has m.weight{0-7}, a grouped layer",
      "[unexpected] m.weight{0-7}: not in the module",
    }, lines(p))
  end)

  it("uses only the entries under a prefix and names them in full", function()
    local offers = joined(members("model.m.weight", range(0, 1)), { offer("optimizer.m.weight", { 1 }),
      offer("model.x", { 1 }) })
    local p = plan.make({ packed("m.weight", 2), { name = "y", shape = { 1 }, dtype = "float32" } }, offers,
      { prefix = "model." })
    assert.are.same({ "[missing] model.y: not in the checkpoint", "[unexpected] model.x: not in the module" },
      lines(p))
    assert.are.same({ "model.m.weight0", "model.m.weight1" }, p.converted)
    assert.are.same({ "model.x" }, p.unexpected)
  end)

  it("reports two entries of one name", function()
    local p = plan.make({ { name = "x", shape = { 1 }, dtype = "float32" } },
      { offer("x", { 1 }), offer("x", { 1 }) })
    assert.are.equal("[conflict] x: two entries have this name", lines(p)[1])
  end)

  it("keeps error lines single even for names with control characters", function()
    local p = plan.make({}, { offer("evil\n[count] m", { 1 }) })
    assert.are.same({ "[unexpected] evil?[count] m: not in the module" }, lines(p))
  end)

  it("rejects unknown options and malformed wants", function()
    assert.has_error(function() plan.make({}, {}, { stict = true }) end, "plan: unknown option 'stict'")
    assert.has_error(function() plan.make({ packed("m.w2", 2) }, {}) end,
      "plan: the name of a packed want must not end in a digit")
  end)

  it("copies nothing of zero-size and scalar tensors but counts them as loaded", function()
    local p = plan.make({ { name = "a", shape = { 0, 3 }, dtype = "float32" },
      { name = "b", shape = {}, dtype = "float32" } }, { offer("a", { 0, 3 }), offer("b", {}) },
      { assign = true })
    assert.is_true(p.ok)
    assert.are.equal(0, p.copies[1].count)
    assert.are.equal(1, p.copies[2].count)
    assert.are.same({ "a", "b" }, p.loaded)
  end)

  it("prints as a table of what would happen", function()
    local p = plan.make({ packed("m.weight", 12, "single", nil, { dtype = "bfloat16" }),
      { name = "norm.weight", shape = { 4 }, dtype = "float32" } },
      joined(members("m.weight", range(0, 11)), { offer("norm.weight", { 4 }), offer("extra", { 1 }) }),
      { where = "x.h5" })
    assert.are.equal(table.concat({
      "x.h5: 1 problem, 2 tensors to load, 376 bytes to copy",
      "  m.weight     [12, 3, 5] bfloat16  <- m.weight{0-11}  (per_expert -> single, float32 -> bfloat16)",
      "  norm.weight  [4] float32          <- norm.weight",
      "unexpected: extra",
      "warning: m.weight{0-11}: float32 is rounded to bfloat16",
      "[unexpected] extra: not in the module",
    }, "\n"), tostring(p))
    p = plan.make({ { name = ("long."):rep(40) .. "w", shape = { 4 }, dtype = "float32" } },
      { offer(("long."):rep(40) .. "w", { 4 }) })
    assert.is_truthy(tostring(p):find("^checkpoint: fits, 1 tensor to load, 16 bytes to copy\n"))
  end)

  it("stays linear in the number of entries", function()
    -- 344 layers x 128 experts; counted in steps, since a busy machine makes times lie
    local function count_steps(layers)
      local wants, offers = {}, {}
      for layer = 1, layers do
        local stem = ("layers.%d.experts.gate_up.weight"):format(layer)
        wants[layer] = packed(stem, 128)
        for e = 0, 127 do offers[#offers + 1] = offer(stem .. e, { N, K }) end
      end
      local steps = 0
      debug.sethook(function() steps = steps + 1 end, "", 1000)
      local p = plan.make(wants, offers)
      debug.sethook()
      assert.is_true(p.ok)
      assert.are.equal(128 * layers, #p.copies)
      return steps
    end
    jit.off()
    local small, large = count_steps(43), count_steps(344)
    jit.on()
    assert.is_true(large < 8 * small * 1.5, ("%d and %d thousand steps"):format(small, large))
  end)
end)
