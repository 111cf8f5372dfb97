-- mc.checkpoint.convert: layouts, names, values, the plan and its errors. Every element codes its place.
local hdf5 = require "mascon.checkpoint.hdf5"
local helper = require "helper"
local lfs = require "lfs"
local mc = require "mascon"
local shared = require "convert_helper"

local G, coded, read, stack, layer_object = shared.G, shared.coded, shared.read, shared.stack, shared.layer_object

describe("convert", function()
  local folder, src, dst
  local convert = mc.checkpoint.convert

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(lfs.mkdir(folder))
    src, dst = folder .. "/src.h5", folder .. "/dst.h5"
  end)
  teardown(function() os.execute("rm -rf " .. folder) end)
  before_each(function() os.execute(("rm -f %s/*"):format(folder)) end)

  local function foreign(entries, attributes) shared.foreign(src, entries, attributes) end
  local function leftovers() return shared.leftovers(folder) end

  for _, sizes in ipairs { { 5, 3 }, { 4, 4 }, { 1, 1 } } do
    local K, N = unpack(sizes)
    for _, from in ipairs { "single", "per_expert" } do
      it(("makes of a %s file what a save in the other layouts would have made, byte for byte (%d x %d)"):format(from,
        N, K), function()
        local object, wanted = layer_object("per_expert", K, N, true), {}
        for _, from_views in ipairs { false, true } do
          mc.save(src, object, { layout = from, views = from_views })
          for _, to in ipairs { "as_is", "single", "per_expert" } do
            for _, views in ipairs { false, true } do
              convert(src, dst, { layout = to, views = views, overwrite = true })
              local layout = to == "as_is" and from or to
              local id = layout .. tostring(views)
              if not wanted[id] then
                mc.save(folder .. "/wanted.h5", object, { layout = layout, views = views })
                wanted[id] = read(folder .. "/wanted.h5")
              end
              assert.is_true(read(dst) == wanted[id], to .. " " .. id)
              assert.same({}, leftovers())
            end
          end
        end
      end)
    end
    it(("turns a file of somebody else from either layout into the other (%d x %d)"):format(N, K), function()
      local many = {}
      for i = 0, G - 1 do
        many[#many + 1] = { "/net/experts/weight" .. i, coded({ N, K }, i) }
        many[#many + 1] = { "/net/experts/bias" .. i, coded({ N }, i, 0.5) }
      end
      many[#many + 1] = { "/net/embed/weight", coded({ 2, 3 }, 0) }
      local one = { { "/net/experts/weight", stack { N, K } }, { "/net/experts/bias", stack({ N }, 0.5) },
        { "/net/embed/weight", coded({ 2, 3 }, 0) } }
      for _, entries in ipairs { many, one } do
        foreign(entries)
        for _, views in ipairs { false, true } do
          local plan = convert(src, dst, { layout = "single", views = views, overwrite = true })
          table.sort(plan.recognised)
          assert.same({ "net.experts.bias", "net.experts.weight" }, plan.recognised)
          local experts = mc.load(dst).net.experts
          helper.same(experts.weight, stack { N, K })
          helper.same(experts.bias, stack({ N }, 0.5))
          assert.equal(G, experts.weight.group.count)
          convert(src, dst, { layout = "per_expert", views = views, overwrite = true })
          local loaded = mc.load(dst).net
          for i = 0, G - 1 do
            helper.same(loaded.experts["weight" .. i], coded({ N, K }, i))
            helper.same(loaded.experts["bias" .. i], coded({ N }, i, 0.5))
          end
          helper.same(loaded.embed.weight, coded({ 2, 3 }, 0))
          assert.is_nil(loaded.experts.weight) -- a view is no content
          assert.is_true(mc.checkpoint.verify(dst).ok)
          assert.is_true(mc.checkpoint.diff(src, dst).ok)
        end
        convert(src, dst, { overwrite = true }) -- as it is: names that nobody declares are only names
        assert.is_nil(mc.checkpoint.inspect(dst).tensors[2].layer)
        assert.is_true(mc.checkpoint.diff(src, dst, { layout_aware = false }).ok)
      end
    end)
  end

  it("carries an optimizer along: the next step in the other layout is the same, bit for bit", function()
    local function make(single)
      mc.manual_seed(3)
      local gl = mc.nn.GroupedLinear { num_gemms = G, in_features = 5, out_features = 3, single_grouped_weight = single,
        single_grouped_bias = single }
      return gl, mc.optim.AdamW { params = gl, lr = 0.01 }
    end
    local splits = {}
    for i = 1, G do splits[i] = i % 3 end
    local function train(gl, opt, seed)
      mc.manual_seed(seed)
      local x = mc.randn(G, 5)
      opt:zero_grad();
      (gl(x, splits) ^ 2):sum():backward()
      opt:step()
    end
    for _, single in ipairs { false, true } do
      local gl, opt = make(single)
      for seed = 1, 3 do train(gl, opt, seed) end
      mc.save(src, { model = gl:state_dict(), optimizer = opt:state_dict() })
      convert(src, dst, { layout = single and "per_expert" or "single", overwrite = true })
      local other, other_opt = make(not single)
      local report = mc.checkpoint.load_into(dst, { model = other, optimizer = other_opt })
      assert.same({}, report.missing)
      -- for the model it is its own layout's file; an optimizer's arrays are stacked in both
      for _, name in ipairs(report.converted) do assert.is_nil(name:find "^model", name) end
      train(gl, opt, 4)
      train(other, other_opt, 4)
      helper.same(gl.weight, other.weight)
      helper.same(gl.bias, other.bias)
      for i, slot in ipairs(opt:slots()) do helper.same(slot.tensor, other_opt:slots()[i].tensor, slot.name) end
    end
  end)

  it("stacks the optimizer arrays of somebody else's experts in either layout, and joins their steps", function()
    local entries, attributes = {}, {}
    for i = 0, G - 1 do
      entries[#entries + 1] = { "/model/weight" .. i, coded({ 3, 5 }, i) }
      entries[#entries + 1] = { "/optimizer/exp_avg/weight" .. i, coded({ 3, 5 }, i, 0.25) }
      entries[#entries + 1] = { "/optimizer/steps/weight" .. i, mc.full({}, 9, { dtype = "int64" }) }
      attributes[#attributes + 1] = { "/optimizer/seen", "weight" .. i, 11 }
    end
    foreign({ unpack(entries) }, { { "/optimizer", "lr", 0.5 } })
    local plan = convert(src, dst, { layout = "per_expert", round_trip = true })
    assert.same({}, plan.round_trip.differences)
    local found = mc.load(dst)
    helper.same(found.model.weight3, coded({ 3, 5 }, 3))
    helper.same(found.optimizer.exp_avg.weight, stack({ 3, 5 }, 0.25))
    assert.is_true(found.optimizer.exp_avg.weight.group.state)
    assert.equal(9, found.optimizer.steps.weight:item())
    assert.equal(0.5, found.optimizer.lr)
    -- the same as plain numbers, and experts that do not agree
    foreign(entries, attributes)
    convert(src, dst, { layout = "single", overwrite = true })
    assert.equal(11, mc.load(dst).optimizer.seen.weight)
    attributes[4][3] = 12
    foreign(entries, attributes)
    helper.raises("[state] optimizer.seen.weight: experts must agree, but", convert, src, dst, { layout = "single",
      overwrite = true })
  end)

  it("keeps every kind of key, value, text, empty table, tied tensor and dtype", function()
    local tied = mc.randn(4, 3)
    local many = {}
    for i = 1, 40 do many["key" .. i] = i / 3 end
    local object = { [1] = "first", [-5] = { mc.ones(2), { deep = true } }, ["a/b"] = mc.ones(2),
      ["a..b"] = mc.zeros(1), format = "mine", table = mc.ones(1), many = many, big = 2 ^ 53,
      minus = -0.0, inf = math.huge, long = ("x\0y"):rep(2000), empty = {}, tied = { one = tied, two = tied },
      ["m.weight"] = mc.ones(3),
      ["m.weight.weight"] = mc.zeros(3), zero = mc.zeros(0, 3), scalar = mc.full({}, 2), dtypes = {} }
    for _, dtype in ipairs { "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "float8_e4m3fn",
      "float8_e5m2", "float8_e8m0fnu" } do
      object.dtypes[dtype] = mc.ones(5):to(dtype)
    end
    mc.save(src, object)
    local plan = convert(src, dst, { round_trip = true })
    assert.same({}, plan.round_trip.differences)
    assert.is_true(read(src) == read(dst))
    convert(src, dst, { overwrite = true, transform = function() end })
    assert.is_true(read(src) == read(dst))
  end)

  it("keeps integers that are no Lua numbers, however many values there are", function()
    for _, n in ipairs { 1, 40 } do
      local attributes = { { "/g", "huge", 2LL ^ 53 + 1 }, { "/g", "least", -2LL ^ 63 } }
      for i = 1, n do attributes[#attributes + 1] = { "/g", "v" .. i, i } end
      foreign({ { "/t", mc.ones(2) } }, attributes)
      local plan = convert(src, dst, { overwrite = true, round_trip = true })
      assert.same({}, plan.round_trip.differences)
      local found = mc.load(dst).g
      assert.is_true(found.huge == 9007199254740993LL and found.least == -9223372036854775807LL - 1)
      assert.equal(n, found["v" .. n])
    end
  end)

  describe("refuses, and writes nothing:", function()
    local function refused(text, opts, path)
      local before = path or dst
      local had = lfs.attributes(before) and read(before)
      opts = opts or {}
      opts.overwrite = true
      helper.raises(text, convert, src, dst, opts)
      assert.equal(had or nil, lfs.attributes(before) and read(before))
      assert.same({}, leftovers())
      opts.plan, opts.overwrite = true, nil
      local plan = convert(src, nil, opts)
      assert.is_false(plan.ok)
      assert.is_true(tostring(plan):find(text, 1, true) ~= nil, tostring(plan))
      helper.raises(text, plan.raise, plan)
    end
    local function experts(but)
      local entries = {}
      for i = 0, G - 1 do
        local t = but(i)
        if t then entries[#entries + 1] = { "/m/weight" .. i, t } end
      end
      return entries
    end

    before_each(function() mc.save(dst, { old = mc.ones(3) }) end)

    it("a set with an expert missing", function()
      foreign(experts(function(i) return i ~= 3 and i ~= 10 and coded({ 3, 5 }, i) end))
      refused("[partial] m.weight{0-2,4-9,11}: only 10 of 12 experts are in the checkpoint, missing 3,10",
        { layout = "single" })
      assert.is_true(convert(src, nil, { plan = true }).ok) -- copied as they are they are only names
    end)
    it("experts of two shapes", function()
      foreign(experts(function(i) return coded(i == 4 and { 5, 3 } or { 3, 5 }, i) end))
      refused("[shape] m.weight4: found [5, 3], wanted [3, 5]", { layout = "single" })
    end)
    it("experts of two dtypes", function()
      foreign(experts(function(i) return coded({ 3, 5 }, i):to(i == 7 and "bfloat16" or "float32") end))
      refused("[dtype] m.weight{0-11}: the experts differ in dtype", { layout = "single" })
    end)
    it("experts of numbers that no expert has, which are not to be lost as plain tensors", function()
      foreign { { "/m/weight0", coded({ 3, 5 }, 0) }, { "/m/weight1", coded({ 3, 5 }, 1) },
        { "/m/weight65536", coded({ 3, 5 }, 2) }, { "/m/weight70000", coded({ 3, 5 }, 3) },
        { "/m/weight12345678901234567890", coded({ 3, 5 }, 4) } }
      for _, layout in ipairs { "single", "per_expert" } do
        refused("[count] m.weight{65536,70000}, m.weight12345678901234567890 beside m.weight{0,1}: experts have the "
          .. "numbers 0 to 65535", { layout = layout })
      end
      convert(src, dst, { overwrite = true }) -- as they are they are only names
      assert.is_true(mc.checkpoint.diff(src, dst).ok)
      foreign { { "/m/weight70000", mc.ones(3, 5) }, { "/m/weight70001", mc.ones(3, 5) } }
      refused("[count] m.weight{70000,70001}: experts have the numbers 0 to 65535", { layout = "single" })
      local object = layer_object("per_expert", 5, 3, false)
      object.model.layers[1].weight12345678901234567890 = mc.ones(3, 5)
      mc.save(src, object)
      refused("[count] model.layers.1.weight12345678901234567890 beside model.layers.1.weight{0-11}: experts have",
        { layout = "single" })
    end)
    it("more experts than the layer declares", function()
      local object = layer_object("per_expert", 5, 3, false)
      object.model.layers[1].weight12 = mc.ones(3, 5)
      mc.save(src, object)
      refused("[count] model.layers.1.weight{0-12}: 13 experts in the checkpoint, 12 in the layer",
        { layout = "single" })
    end)
    it("two layouts that differ, and an incomplete one beside a whole one", function()
      local entries = experts(function(i) return coded({ 3, 5 }, i) end)
      entries[#entries + 1] = { "/m/weight", stack { 3, 5 } }
      foreign(entries)
      for _, layout in ipairs { "single", "per_expert" } do
        local plan = convert(src, dst, { layout = layout, overwrite = true, round_trip = true })
        assert.same({}, plan.round_trip.differences)
        assert.is_true(#plan.redundant > 0)
        local found = mc.load(dst).m
        assert.equal(layout == "single", found.weight ~= nil)
        assert.equal(layout == "per_expert", found.weight0 ~= nil)
      end
      entries[5][2] = coded({ 3, 5 }, 4, 1)
      foreign(entries)
      refused("[conflict] m.weight (expert 4) and m.weight4 differ, first at element 0 (0-based)",
        { layout = "single" })
      table.remove(entries, 5)
      foreign(entries)
      refused("[partial] m.weight and m.weight{0-3,5-11} (incomplete, missing 4) are both in the checkpoint",
        { layout = "per_expert" })
    end)
    it("bytes that are not those of the digest, also where an expert is cut out of them", function()
      for _, layout in ipairs { "single", "per_expert" } do
        mc.save(src, { model = layer_object(layout, 5, 3, false).model })
        local item = mc.checkpoint.inspect(src).tensors[1]
        local file = assert(io.open(src, "r+b"))
        file:seek("set", item.offset + 5)
        file:write "\255"
        file:close()
        for _, to in ipairs { "single", "per_expert" } do
          for _, transform in ipairs { false, function() end } do
            helper.raises("match", convert, src, dst, { layout = to, overwrite = true,
              transform = transform or nil })
            assert.equal(3, mc.load(dst).old:numel())
          end
        end
        assert.same({}, leftovers())
      end
    end)
    it("an existing file without overwrite, the source itself, and what is no file", function()
      mc.save(src, { t = mc.ones(1) })
      helper.raises("dst.h5 is there already; overwrite = true replaces it", convert, src, dst)
      helper.raises("are one file", convert, src, src, { overwrite = true })
      assert(lfs.link(src, folder .. "/hard.h5"))
      assert(lfs.link(src, folder .. "/soft.h5", true))
      helper.raises("are one file", convert, src, folder .. "/hard.h5", { overwrite = true })
      helper.raises("are one file", convert, src, folder .. "/soft.h5", { overwrite = true })
      helper.raises("are one file", convert, src, folder .. "/../" .. folder:match "[^/]+$" .. "/src.h5",
        { overwrite = true })
      helper.raises("convert: wanted a path, got nil", convert, src)
      helper.raises("unknown option layuot", convert, src, dst, { layuot = "single" })
      helper.raises("round_trip compares bits", convert, src, dst, { round_trip = true, transform = function() end })
      helper.raises("none.h5", convert, folder .. "/none.h5", folder .. "/x.h5")
      helper.raises("no/x.h5", convert, src, folder .. "/no/x.h5")
      assert.equal(1, mc.load(src).t:numel())
    end)
  end)

  describe("of a file that declares nothing", function()
    it("takes no convolution, no lone pair of other shapes and no single weight for experts", function()
      foreign { { "/conv/weight", mc.randn(4, 3, 5) }, { "/conv/bias", mc.randn(4) }, { "/mlp/weight1", mc.randn(3) },
        { "/mlp/weight2", mc.randn(3) }, { "/x/weight0", mc.randn(2, 2) }, { "/y/weight01", mc.randn(2, 2) },
        { "/y/weight1x", mc.randn(2, 2) }, { "/z/myweight0", mc.randn(2, 2) }, { "/z/myweight1", mc.randn(2, 2) },
        { "/g/bias", mc.randn(4, 2) }, { "/v/weight1", mc.randn(3) }, { "/v/weight70000", mc.randn(3) } }
      for _, layout in ipairs { "single", "per_expert" } do
        local plan = convert(src, dst, { layout = layout, overwrite = true })
        assert.same({}, plan.recognised)
        assert.is_true(mc.checkpoint.diff(src, dst, { layout_aware = false }).ok)
        assert.is_true(tostring(plan):find("warning: mlp.weight{1,2}: not taken for experts", 1, true) ~= nil
          or tostring(plan):find("not taken for experts", 1, true) ~= nil)
      end
    end)
    it("says that a stack is too many to be taken for experts", function()
      foreign { { "/m/weight", mc.zeros(65537, 1, 1) } }
      local plan = convert(src, dst, { layout = "per_expert" })
      assert.same({ "m.weight: not taken for 65537 experts; at most 65536 are converted" }, plan.warnings)
      assert.equal(65537, mc.load(dst).m.weight:size(1))
    end)
    it("refuses weight1 and weight2 of matrices without a weight0, which may be a lost expert", function()
      foreign { { "/mlp/weight1", mc.randn(3, 2) }, { "/mlp/weight2", mc.randn(3, 2) } }
      helper.raises("[partial]", convert, src, dst, { layout = "single" })
      assert.is_true(convert(src, dst).ok)
    end)
  end)

  it("plans without touching anything, and says sizes, room and memory", function()
    mc.save(src, layer_object("per_expert", 5, 3, true))
    local plan = convert(src, dst, { plan = true, layout = "single", rename = function(name)
      return name == "step" and "steps" or nil
    end })
    assert.is_nil(lfs.attributes(dst))
    assert.is_true(plan.ok and plan.free > 0 and plan.size > plan.bytes and plan.memory >= 2 ^ 25)
    local text = tostring(plan)
    for _, part in ipairs { "model.layers.1.weight{0-11}", "stack -> model.layers.1.weight", "float32[12, 3, 5]",
      "steps", "not renamed: " } do
      assert.is_true(text:find(part, 1, true) ~= nil, text)
    end
    assert.equal(plan, plan:raise())
    local rows = plan:rows()
    local kinds = {}
    for _, row in ipairs(rows) do kinds[row.op] = (kinds[row.op] or 0) + 1 end
    assert.equal(2, kinds.stack)
  end)

  it("proves a conversion by the way back, and by the bytes where names changed", function()
    mc.save(src, layer_object("per_expert", 5, 3, true))
    local plan = convert(src, dst, { layout = "single", round_trip = true })
    assert.is_true(plan.round_trip.ok and plan.round_trip.back)
    assert.equal(plan.bytes, plan.round_trip.bytes)
    assert.equal(#mc.checkpoint.inspect(src).tensors, plan.round_trip.tensors)
    plan = convert(src, dst, { layout = "single", round_trip = true, overwrite = true, rename = function(name)
      return (name:gsub("^model", "net"))
    end })
    assert.is_true(plan.round_trip.ok)
    assert.is_false(plan.round_trip.back)
    assert.same({}, leftovers())
    assert.is_nil(lfs.attributes(dst .. ".back.h5"))
  end)

  it("proves it where two tables of experts have one dotted name", function()
    local layer = layer_object("per_expert", 5, 3, true).model.layers[1]
    local other = layer_object("single", 5, 3, true).model.layers[1]
    mc.save(src, { net = { [1] = layer, ["1"] = other } })
    for _, layout in ipairs { "single", "per_expert" } do
      local plan = convert(src, dst, { layout = layout, round_trip = true, overwrite = true })
      assert.same({}, plan.round_trip.differences)
      assert.equal(26, plan.round_trip.tensors)
    end
  end)

  it("leaves files alone that have the name of its way back", function()
    mc.save(src, layer_object("per_expert", 5, 3, true))
    local theirs = dst .. ".back.h5"
    local file = assert(io.open(theirs, "w"))
    file:write("precious")
    file:close()
    assert.is_true(convert(src, dst, { layout = "single", round_trip = true }).round_trip.ok)
    assert.equal("precious", read(theirs))
    os.remove(theirs)
    assert.same({}, leftovers())
    assert.is_nil(lfs.attributes(dst .. ".back-2.h5"))
  end)

  it("believes no layer facts that cannot be true, and shows them without what a terminal would act upon", function()
    local writer = hdf5.create(src)
    for name, value in pairs { format = "mascon", format_version = 1, table = true } do
      writer:attr("/", name, value)
    end
    writer:group("/m")
    for name, value in pairs { table = true, type = "Gr\27[31m", num_gemms = 2, weight_layout = "single",
      bias_layout = true, in_features = "many", optimizer_state = 7 } do
      writer:attr("/m", name, value)
    end
    writer:tensor("/m/weight", coded({ 2, 3, 4 }, 1))
    writer:tensor("/m/bias", coded({ 2, 3 }, 1))
    writer:commit()
    local text = tostring(mc.checkpoint.inspect(src))
    assert.is_truthy(text:find("1 x Gr?[31m of 2 experts, weight single\n", 1, true), text)
    convert(src, dst, { layout = "per_expert", round_trip = true })
    local facts = mc.checkpoint.inspect(dst).tensors[2].layer
    assert.same({ type = "Gr\27[31m", num_gemms = 2, in_features = 4, out_features = 3, weight_layout = "per_expert" },
      facts)
  end)

  describe("of a file whose groups do not say what is there", function()
    -- a layer of `count` experts that says `layouts`, and what it has instead
    local function layer(count, layouts, tensors)
      local writer = hdf5.create(src)
      for name, value in pairs { format = "mascon", format_version = 1, table = true } do
        writer:attr("/", name, value)
      end
      writer:group("/m")
      for name, value in pairs { table = true, type = "GroupedLinear", num_gemms = count } do
        writer:attr("/m", name, value)
      end
      for name, value in pairs(layouts) do writer:attr("/m", name, value) end
      for name, t in pairs(tensors) do writer:tensor("/m/" .. name, t) end
      writer:commit()
    end

    it("says what is wrong with tensors of too few axes", function()
      layer(4, { weight_layout = "single" }, { weight = mc.ones(3, 3) })
      helper.raises("[shape] m.weight: found [3, 3], wanted [4, 3]", convert, src, dst, { layout = "per_expert" })
      layer(4, { bias_layout = "single" }, { bias = mc.ones(3) })
      helper.raises("[shape] m.bias: found [3], wanted [4]", convert, src, dst, { layout = "per_expert" })
    end)

    it("goes by the names", function()
      for stored, tensors in pairs { single = { weight = stack { 3, 5 } }, per_expert = { weight0 = coded({ 3, 5 }, 0),
        weight1 = coded({ 3, 5 }, 1) } } do
        local other = stored == "single" and "per_expert" or "single"
        layer(stored == "single" and G or 2, { weight_layout = other }, tensors)
        for _, layout in ipairs { "as_is", "single", "per_expert" } do
          local plan = convert(src, dst, { layout = layout, round_trip = true, overwrite = true })
          assert.same({}, plan.round_trip.differences)
          local is_single = layout == "single" or layout == "as_is" and stored == "single"
          assert.equal(is_single, mc.load(dst).m.weight ~= nil)
        end
      end
    end)
  end)

  it("tells of a new file that is not the source", function()
    mc.save(src, { t = mc.arange(100000), u = mc.ones(4) })
    local check = require "mascon.checkpoint.convert_check"
    local plan = convert(src, dst, {})
    mc.save(dst, { t = mc.arange(100000) + 1, u = mc.ones(4) })
    plan.changed_names = true
    local found = check.round_trip(plan, nil, function() end)
    assert.is_false(found.ok)
    assert.same({ "new file: differs: t" }, found.differences)
  end)

  it("reports progress up to the end, and lets its errors through without losing the file", function()
    mc.save(src, { t = mc.arange(300000) })
    for _, transform in ipairs { false, function() end } do
      local last, of
      convert(src, dst, { overwrite = true, transform = transform or nil, progress = function(done, total)
        assert.is_true(done <= total)
        last, of = done, total
      end })
      assert.equal(of, last)
    end
    for _, rename in ipairs { false, function() return "other" end } do
      local calls, last, of = {}, 0, nil
      convert(src, dst, { overwrite = true, round_trip = true, rename = rename or nil, progress = function(done, total)
        assert.is_true(done >= last and done <= total and total == (of or total))
        last, of = done, total
        calls[done / total] = true
      end })
      assert.equal(of, last)
      assert.equal(rename and 2 * 1200000 or 4 * 1200000, of)
      assert.is_true(calls[rename and 0.5 or 0.25])
    end
    helper.raises("enough", convert, src, dst, { overwrite = true, progress = function() error "enough" end })
    assert.equal(300000, mc.load(dst).t:numel())
  end)

  it("needs a bounded amount of memory, whatever the size", function()
    -- 100 MB of zeros, 100 experts: a copy of all of them would be seen
    local script = folder .. "/peak.lua"
    local file = assert(io.open(script, "w"))
    file:write(([[
local mc = require "mascon"
local hdf5 = require "mascon.checkpoint.hdf5"
local function peak()
  for line in io.lines "/proc/self/status" do
    local kb = line:match "^VmHWM:%%s+(%%d+)"
    if kb then return kb / 1024 end
  end
end
local writer = hdf5.create(%q)
local t = mc.zeros(500, 500)
for i = 0, 99 do writer:tensor("/m/weight" .. i, t) end
writer:commit()
mc.checkpoint.convert(%q, %q, {layout = "single"})
local before = peak()
mc.checkpoint.convert(%q, %q, {layout = "per_expert"})
mc.checkpoint.convert(%q, %q, {layout = "single", round_trip = true})
local transformed = peak()
mc.checkpoint.convert(%q, %q, {layout = "single", transform = function(_, x) return x:transpose(1, 2) end})
print(before, transformed, peak())
]]):format(src, src, folder .. "/one.h5", folder .. "/one.h5", folder .. "/many.h5", folder .. "/many.h5", dst, src,
      folder .. "/turned.h5"))
    file:close()
    local command = ("scripts/mascon %s"):format(script)
    local pipe = io.popen(command)
    local first, second, third = pipe:read("*n", "*n", "*n")
    pipe:close()
    assert.is_truthy(first and second and third, "the conversions failed")
    for _, name in ipairs { "one", "dst", "turned" } do
      assert.same({ 100, 500, 500 }, mc.checkpoint.inspect(("%s/%s.h5"):format(folder, name)).tensors[1].shape)
    end
    local bound = helper.sanitized() and math.huge or 80
    assert.is_true(first < bound and second < bound and third < bound, ("%g %g %g MiB"):format(first, second, third))
  end)
end)
