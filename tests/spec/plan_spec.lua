-- The load planner: names, layouts and shapes, every rule by its number, with its error text.

local plan = require("mascon.checkpoint.plan")
local names = require("mascon.checkpoint.plan_names")
local helper = require("plan_helper")

local N, K, LAYOUTS = helper.N, helper.K, helper.LAYOUTS
local packed, bias_want, offer, members = helper.packed, helper.bias_want, helper.offer, helper.members
local range, joined, lines = helper.range, helper.joined, helper.lines
local names_of, shuffled = helper.names_of, helper.shuffled

describe("a load plan", function()
  it("L1: copies directly where the layouts agree", function()
    local p = plan.make({ packed("m.weight", 3) }, { offer("m.weight", { 3, N, K }) })
    assert.is_true(p.ok)
    assert.are.equal(1, #p.copies)
    assert.are.equal(3 * N * K, p.copies[1].count)
    assert.is_nil(p.copies[1].cast)
    assert.is_false(p.copies[1].reshape)
    assert.are.same({ "m.weight" }, p.loaded)
  end)

  it("L2: writes each expert's slice of a packed target", function()
    local offers = members("m.weight", range(0, 2))
    local p = plan.make({ packed("m.weight", 3, "single") }, offers)
    assert.are.equal(3, #p.copies)
    for i, copy in ipairs(p.copies) do
      assert.are.equal((i - 1) * N * K, copy.want_first)
      assert.are.equal(N * K, copy.count)
      assert.are.equal(offers[i], copy.offer)
    end
    assert.are.same(names_of(offers), p.converted)
    assert.are.same({}, p.unexpected)
  end)

  it("L3: reads a packed source once into the memory of all experts", function()
    local p = plan.make({ packed("m.weight", 3, "per_expert") }, { offer("m.weight", { 3, N, K }) })
    assert.is_true(p.ok)
    assert.are.equal(1, #p.copies)
    assert.are.same({ "m.weight" }, p.converted)
    assert.are.same({}, p.missing)
  end)

  it("L4: lets the target's own layout win when both are complete, with one warning", function()
    local offers = joined({ offer("m.weight", { 3, N, K }) }, members("m.weight", range(0, 2)))
    local p = plan.make({ packed("m.weight", 3, "single") }, offers)
    assert.is_true(p.ok)
    assert.are.same({ "m.weight" }, p.loaded)
    assert.are.same({ "m.weight0", "m.weight1", "m.weight2" }, p.ignored)
    assert.are.same({ "m.weight and m.weight{0-2} are both in the checkpoint: m.weight is used, "
      .. "m.weight{0-2} ignored" }, p.warnings)
    p = plan.make({ packed("m.weight", 3, "per_expert") }, offers)
    assert.are.same({ "m.weight" }, p.ignored)
    assert.are.same({ "m.weight0", "m.weight1", "m.weight2" }, p.loaded)
    assert.are.same({ "m.weight and m.weight{0-2} are both in the checkpoint: m.weight{0-2} is used, "
      .. "m.weight ignored" }, p.warnings)
    assert.are.same({}, p.compare)
  end)

  it("L4: asks for a comparison of every expert with verify_duplicates", function()
    local offers = joined({ offer("m.weight", { 3, N, K }) }, members("m.weight", range(0, 2)))
    for _, layout in ipairs(LAYOUTS) do
      local p = plan.make({ packed("m.weight", 3, layout) }, offers, { verify_duplicates = true })
      assert.is_true(p.ok)
      assert.are.equal(3, #p.compare)
      for i, c in ipairs(p.compare) do
        assert.are.equal((i - 1) * N * K, c.a_first)
        assert.are.equal(0, c.b_first)
        assert.are.equal(N * K, c.count)
        assert.are.equal(offers[1], c.a)
        assert.are.equal(offers[i + 1], c.b)
      end
      p:differs(p.compare[3], 7)
      assert.is_false(p.ok)
      assert.are.same({ "[conflict] m.weight (expert 2) and m.weight2 differ, first at element 7 "
        .. "(0-based)" }, lines(p))
      assert.are.equal("checkpoint: cannot load, 1 problem; nothing was changed\n[conflict] m.weight "
        .. "(expert 2) and m.weight2 differ, first at element 7 (0-based)", p.error_text)
    end
  end)

  it("L4: calls it a conflict at once when the two layouts differ in dtype or shape", function()
    local offers = joined({ offer("m.weight", { 2, N, K }) },
      { offer("m.weight0", { N, K }, { dtype = "bfloat16" }), offer("m.weight1", { N, K + 1 }) })
    local p = plan.make({ packed("m.weight", 2) }, offers, { verify_duplicates = true })
    assert.are.same({
      "[conflict] m.weight (expert 0) and m.weight0 differ: they are float32 and bfloat16",
      "[conflict] m.weight (expert 1) and m.weight1 differ: their shapes are [2, 3, 5] and [3, 6]",
    }, lines(p))
  end)

  it("L5: keeps the target's complete layout beside a partial other one", function()
    local offers = joined({ offer("m.weight", { 3, N, K }) }, members("m.weight", { 0, 2 }))
    local p = plan.make({ packed("m.weight", 3, "single") }, offers)
    assert.is_true(p.ok)
    assert.are.same({ "m.weight" }, p.loaded)
    assert.are.same({ "m.weight0", "m.weight2" }, p.ignored)
    assert.are.same({ "m.weight and m.weight{0,2} (incomplete, missing 1) are both in the checkpoint: "
      .. "m.weight is used, m.weight{0,2} ignored" }, p.warnings)
  end)

  it("L6: takes the complete other layout where the target's own is partial, or refuses", function()
    local offers = joined({ offer("m.weight", { 3, N, K }) }, members("m.weight", { 0 }))
    local p = plan.make({ packed("m.weight", 3, "per_expert") }, offers)
    assert.is_true(p.ok)
    assert.are.same({ "m.weight" }, p.converted)
    assert.are.same({ "m.weight0" }, p.ignored)
    assert.are.same({ "m.weight and m.weight0 (incomplete, missing 1,2) are both in the checkpoint: "
      .. "m.weight is used, m.weight0 ignored" }, p.warnings)
    p = plan.make({ packed("m.weight", 3, "per_expert") }, offers, { refuse_partial = true })
    assert.are.same({ "[partial] m.weight and m.weight0 (incomplete, missing 1,2) are both in the "
      .. "checkpoint" }, lines(p))
  end)

  it("L7: names the missing experts of a partial set, strict or not", function()
    local offers = members("m.weight", { 0, 2, 3, 4, 9 })
    for _, strict in ipairs { true, false } do
      local p = plan.make({ packed("m.weight", 11) }, offers, { strict = strict })
      assert.are.same({ "[partial] m.weight{0,2-4,9}: only 5 of 11 experts are in the checkpoint, "
        .. "missing 1,5-8,10" }, lines(p))
      assert.are.same({}, p.copies)
      assert.are.same({}, p.unexpected)
      assert.are.equal("m.weight1", p.missing[1])
      assert.are.equal(6, #p.missing)
    end
  end)

  it("L7: names what is wrong with the experts that are there, too", function()
    local p = plan.make({ packed("m.weight", 3) }, { offer("m.weight0", { N, K }), offer("m.weight2", { 9, 9 }) })
    assert.are.same({ "[partial] m.weight{0,2}: only 2 of 3 experts are in the checkpoint, missing 1",
      ("[shape] m.weight2: found [9, 9], wanted [%d, %d]"):format(N, K) }, lines(p))
  end)

  it("L7: loads a partial set only with allow_partial_experts", function()
    local p = plan.make({ packed("m.weight", 3) }, members("m.weight", { 0, 2 }),
      { allow_partial_experts = true })
    assert.is_true(p.ok)
    assert.are.equal(2, #p.copies)
    assert.are.equal(2 * N * K, p.copies[2].want_first)
    assert.are.same({ "m.weight1" }, p.missing)
    assert.are.same({ "m.weight{0,2}: only 2 of 3 experts are in the checkpoint, missing 1; those keep "
      .. "their values" }, p.warnings)
  end)

  it("L8: names both counts when a packed entry has another number of experts", function()
    for _, layout in ipairs(LAYOUTS) do
      for _, strict in ipairs { true, false } do
        local p = plan.make({ packed("m.weight", 3, layout), bias_want("m.bias", 3, layout) },
          { offer("m.weight", { 5, N, K }), offer("m.bias", { 2, N }) }, { strict = strict })
        assert.are.same({
          "[count] m.weight: 5 experts in the checkpoint (shape [5, 3, 5]), 3 in the module",
          "[count] m.bias: 2 experts in the checkpoint (shape [2, 3]), 3 in the module",
        }, lines(p))
      end
    end
  end)

  it("L8: names the holes of a set with too many experts", function()
    local p = plan.make({ packed("m.weight", 3) }, members("m.weight", { 0, 2, 4 }))
    assert.are.same({ "[count] m.weight{0,2,4}: 5 experts in the checkpoint, missing 1, 3 in the module" },
      lines(p))
  end)

  it("L9: refuses a surplus expert, strict or not, whichever layout would win", function()
    for _, strict in ipairs { true, false } do
      for _, layout in ipairs(LAYOUTS) do
        local text = { "[count] m.weight{0-3}: 4 experts in the checkpoint, 3 in the module" }
        local offers = members("m.weight", range(0, 3))
        assert.are.same(text, lines(plan.make({ packed("m.weight", 3, layout) }, offers,
          { strict = strict })))
        offers[5] = offer("m.weight", { 3, N, K })
        local p = plan.make({ packed("m.weight", 3, layout) }, offers, { strict = strict })
        assert.are.same(text, lines(p))
        assert.are.same({}, p.unexpected)
      end
    end
  end)

  it("L9: refuses an expert number too large to be one", function()
    local p = plan.make({ packed("m.weight", 1) },
      joined(members("m.weight", { 0 }), { offer("m.weight" .. ("9"):rep(30), { N, K }) }),
      { strict = false })
    assert.are.same({ "[count] m.weight0: more than 10^15 experts in the checkpoint, 1 in the module" },
      lines(p))
  end)

  it("L9: refuses an ignored packed entry with another number of experts", function()
    local p = plan.make({ packed("m.weight", 3, "per_expert") },
      joined({ offer("m.weight", { 5, N, K }) }, members("m.weight", range(0, 2))), { strict = false })
    assert.are.same({ "[count] m.weight: 5 experts in the checkpoint (shape [5, 3, 5]), 3 in the module" },
      lines(p))
  end)

  it("L10: takes only canonical decimals as expert numbers", function()
    local odd = { "m.weight01", "m.weight-1", "m.weight1x", "m.weight 1", "m.weight+1", "m.weight1.0",
      "m.weight0x1", "m.weight1e0" }
    local offers = members("m.weight", { 0, 1 })
    for _, name in ipairs(odd) do offers[#offers + 1] = offer(name, { N, K }) end
    local p = plan.make({ packed("m.weight", 2) }, offers, { strict = false })
    assert.is_true(p.ok)
    assert.are.same(odd, p.unexpected)
    p = plan.make({ packed("m.weight", 2) }, joined(members("m.weight", { 0, 1 }),
      { offer("m.weight01", { N, K }) }))
    assert.are.same({ "[unexpected] m.weight01: not in the module; 01 is no expert number: those have no "
      .. "leading zeros" }, lines(p))
  end)

  it("L10: orders experts by number, not by text", function()
    local offers = shuffled(members("m.weight", range(0, 11)), 5)
    local p = plan.make({ packed("m.weight", 12) }, offers)
    for i, copy in ipairs(p.copies) do
      assert.are.equal("m.weight" .. (i - 1), copy.offer.name)
      assert.are.equal((i - 1) * N * K, copy.want_first)
    end
  end)

  it("L11: names entry, found and wanted shape, grouping equal problems", function()
    local p = plan.make({ packed("m.weight", 12) }, members("m.weight", range(0, 11), { N, K + 1 }))
    assert.are.same({ "[shape] m.weight{0-11}: found [3, 6], wanted [3, 5]" }, lines(p))
    p = plan.make({ packed("m.weight", 2) }, { offer("m.weight", { 2, N + 1, K }) })
    assert.are.same({ "[shape] m.weight: found [2, 4, 5], wanted [2, 3, 5]" }, lines(p))
    p = plan.make({ packed("m.weight", 2) }, { offer("m.weight", { 4, N + 1, K }) })
    assert.are.same({
      "[count] m.weight: 4 experts in the checkpoint (shape [4, 4, 5]), 2 in the module",
      "[shape] m.weight: found [4, 4, 5], wanted [2, 3, 5]",
    }, lines(p))
  end)

  it("L11: says when a shape looks transposed or flattened", function()
    local function text(want, o) return lines(plan.make({ want }, { o }))[1] end
    local function found(...) return offer("m.weight", { ... }) end
    local want = packed("m.weight", 2)
    assert.are.equal("[shape] m.weight: found [2, 5, 3], wanted [2, 3, 5]; each expert looks transposed: "
      .. "weights are [out_features, in_features]", text(want, found(2, K, N)))
    assert.are.equal("[shape] m.weight: found [6, 5], wanted [2, 3, 5]; it looks like [2 * 3, 5], the "
      .. "experts below one another: reshape it to [2, 3, 5]", text(want, found(2 * N, K)))
    assert.are.equal("[shape] m.weight: found [3, 10], wanted [2, 3, 5]; it looks like [3, 2 * 5], the "
      .. "experts side by side: split it into [2, 3, 5]", text(want, found(N, 2 * K)))
    assert.are.equal("[shape] m.weight: found [3, 5], wanted [2, 3, 5]; it has the shape of one expert",
      text(want, found(N, K)))
    assert.are.equal("[shape] m.weight: found [30], wanted [2, 3, 5]", text(want, found(30)))
    local p = plan.make({ want }, members("m.weight", { 0, 1 }, { K, N }))
    assert.are.same({ "[shape] m.weight{0,1}: found [5, 3], wanted [3, 5]; it looks transposed: weights "
      .. "are [out_features, in_features]" }, lines(p))
    assert.are.equal("[shape] l.weight: found [5, 3], wanted [3, 5]; it looks transposed: weights are "
      .. "[out_features, in_features]", text({ name = "l.weight", shape = { N, K }, dtype = "float32" },
      offer("l.weight", { K, N })))
    assert.are.equal("[shape] m.bias: found [3, 2], wanted [2, 3]; it looks transposed: biases are "
      .. "[experts, out_features]", text(bias_want("m.bias", 2), offer("m.bias", { N, 2 })))
  end)

  it("L12: accepts [G * N, K] where the metadata declares it", function()
    local marked = { packed = { count = 2 } }
    local p = plan.make({ packed("m.weight", 2) }, { offer("m.weight", { 2 * N, K }, marked) })
    assert.is_true(p.ok)
    assert.is_true(p.copies[1].reshape)
    assert.are.same({ "m.weight" }, p.converted)
    p = plan.make({ packed("m.weight", 4) }, { offer("m.weight", { 2 * N, K }, marked) })
    assert.are.same({ "[count] m.weight: 2 experts in the checkpoint (shape [6, 5]), 4 in the module" },
      lines(p))
    p = plan.make({ packed("m.weight", 2) }, { offer("m.weight", { 2 * N, K + 1 }, marked) })
    assert.are.equal("shape", p.errors[1].code)
  end)

  it("L13: normalises every bias form", function()
    for _, layout in ipairs(LAYOUTS) do
      for _, n in ipairs { 1, 4 } do
        for _, G in ipairs { 1, 3 } do
          for _, shape in ipairs { { n }, { 1, n }, { n, 1 } } do
            local p = plan.make({ bias_want("m.bias", G, layout, n) },
              members("m.bias", range(0, G - 1), shape))
            assert.is_true(p.ok)
            assert.are.equal(G, #p.copies)
            assert.are.equal(n, p.copies[1].count)
          end
          for _, shape in ipairs { { G, n }, { G, 1, n }, { G * n } } do
            local p = plan.make({ bias_want("m.bias", G, layout, n) }, { offer("m.bias", shape) })
            assert.is_true(p.ok)
            assert.are.equal(G * n, p.copies[1].count)
          end
        end
      end
    end
  end)

  it("L13: rejects other bias forms by their shapes", function()
    local function text(shape) return lines(plan.make({ bias_want("m.bias", 3, "single", 4) },
      { offer("m.bias", shape) })) end
    assert.are.same({ "[shape] m.bias: found [4], wanted [3, 4]; it has the shape of one expert" },
      text { 4 })
    assert.are.same({ "[shape] m.bias: found [13], wanted [3, 4]" }, text { 13 })
    assert.are.same({ "[shape] m.bias: found [3, 4, 1], wanted [3, 4]" }, text { 3, 4, 1 })
    assert.are.same({ "[shape] m.bias: found [3, 5], wanted [3, 4]" }, text { 3, 5 })
    assert.are.same({ "[count] m.bias: 2 experts in the checkpoint (shape [2, 1, 4]), 3 in the module" },
      text { 2, 1, 4 })
    local p = plan.make({ bias_want("m.bias", 2, "single", 4) }, members("m.bias", { 0, 1 }, { 2, 2 }))
    assert.are.same({ "[shape] m.bias{0,1}: found [2, 2], wanted [4]" }, lines(p))
  end)

  it("L14: names the option where only one side has a bias", function()
    local weight = offer("m.weight", { 2, N, K })
    for layout, text in pairs { single = "m.bias", per_expert = "m.bias{0,1}" } do
      local bias = layout == "single" and { offer("m.bias", { 2, N }) } or members("m.bias", { 0, 1 }, { N })
      local options = { absent = { ["m.bias"] = "bias = false" } }
      local p = plan.make({ packed("m.weight", 2) }, joined({ weight }, bias), options)
      assert.are.same({ ("[unexpected] %s: not in the module; the module was built with bias = false")
        :format(text) }, lines(p))
      options.strict = false
      p = plan.make({ packed("m.weight", 2) }, joined({ weight }, bias), options)
      assert.is_true(p.ok)
      assert.are.same(names_of(bias), p.unexpected)
      p = plan.make({ packed("m.weight", 2), bias_want("m.bias", 2, layout) }, { weight })
      assert.are.same({ ("[missing] %s: not in the checkpoint; the module was built with bias = true")
        :format(text) }, lines(p))
      assert.are.same(names_of(bias), p.missing)
      p = plan.make({ packed("m.weight", 2), bias_want("m.bias", 2, layout) }, { weight },
        { strict = false })
      assert.is_true(p.ok)
      assert.are.same(names_of(bias), p.missing)
    end
  end)

  it("L15: plans weight and bias independently of one another", function()
    local p = plan.make({ packed("m.weight", 2, "single"), bias_want("m.bias", 2, "per_expert") },
      joined(members("m.weight", { 0, 1 }), { offer("m.bias", { 2, N }) }))
    assert.is_true(p.ok)
    assert.are.same({ "m.weight0", "m.weight1", "m.bias" }, p.converted)
  end)
end)

describe("names", function()
  it("split into a stem and a canonical number", function()
    assert.are.same({ "w", 10, "10" }, { names.split("w10") })
    assert.are.same({ "a2.w", 0, "0" }, { names.split("a2.w0") })
    assert.are.same({ "w", nil, "01" }, { names.split("w01") })
    assert.is_nil(names.split("w"))
    assert.is_nil(names.split("12"))
    assert.are.equal(math.huge, select(2, names.split("w" .. ("1"):rep(16))))
  end)

  it("sort by number inside text", function()
    assert.are.same({ "a", "w1", "w2.x", "w9", "w010", "w10", "w10.b", "w100" },
      names.sort { "w10", "w100", "w2.x", "w9", "a", "w1", "w010", "w10.b" })
  end)

  it("print long lists of numbers as ranges", function()
    assert.are.equal("0-3,5,7,8", names.ranges { 0, 1, 2, 3, 5, 7, 8 })
    assert.are.equal("", names.ranges {})
  end)
end)
