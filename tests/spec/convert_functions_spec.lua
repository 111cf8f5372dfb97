-- mc.checkpoint.convert with functions of the user: rename, filter, transform.
local helper = require "helper"
local lfs = require "lfs"
local mc = require "mascon"
local shared = require "convert_helper"

local G, coded, stack, layer_object = shared.G, shared.coded, shared.stack, shared.layer_object

describe("convert with functions of the user", function()
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

  it("does the example of the README: foreign names, transposed experts, one per dataset", function()
    local entries = {}
    for l = 0, 1 do
      for e = 0, G - 1 do
        entries[#entries + 1] = { ("/model/layers/%d/mlp/experts/%d/w1"):format(l, e),
          coded({ 3, 5 }, e, l / 2):transpose(1, 2):contiguous() }
      end
      entries[#entries + 1] = { ("/model/layers/%d/norm/scale"):format(l), mc.ones(5) }
    end
    foreign(entries)
    local opts = { layout = "single",
      rename = function(name)
        local layer, expert = name:match "^model%.layers%.(%d+)%.mlp%.experts%.(%d+)%.w1$"
        if layer then return ("model.layers.%d.experts.up.weight%d"):format(layer, expert) end
        return (name:gsub("norm%.scale$", "norm.weight"))
      end,
      transform = function(name, tensor)
        if name:find "%.w1$" then return tensor:transpose(1, 2) end
      end }
    local plan = convert(src, dst, opts)
    assert.same({ "model.layers.0.experts.up.weight", "model.layers.1.experts.up.weight" }, plan.recognised)
    local text = "model.layers.1.mlp.experts.{0-11}.w1  stack, transform -> model.layers.1.experts.up.weight"
    assert.is_true(tostring(plan):find(text, 1, true) ~= nil, tostring(plan))
    local layers = mc.load(dst).model.layers
    for l = 0, 1 do
      local layer = layers[tostring(l)]
      helper.same(layer.experts.up.weight, stack({ 3, 5 }, l / 2))
      helper.same(layer.norm.weight, mc.ones(5))
      assert.is_nil(layer.mlp)
    end
    local item = mc.checkpoint.inspect(dst).tensors[1]
    assert.equal(5, item.layer.in_features)
    assert.equal(3, item.layer.out_features)
    opts.layout = "per_expert"
    convert(src, dst, { layout = "per_expert", rename = opts.rename, transform = opts.transform, overwrite = true,
      views = true })
    helper.same(mc.load(dst).model.layers["1"].experts.up.weight11, coded({ 3, 5 }, 11, 0.5))
  end)

  it("tells them the full name, shape, dtype, bytes, layer, expert and value", function()
    mc.save(src, layer_object("per_expert", 5, 3, false))
    local infos = {}
    convert(src, dst, { filter = function(name, info)
      infos[name] = info
      return true
    end })
    local info = infos["model.layers.1.weight10"]
    assert.same({ 3, 5 }, info.shape)
    assert.equal("float32", info.dtype)
    assert.equal(60, info.bytes)
    assert.equal(10, info.expert)
    assert.equal(G, info.layer.num_gemms)
    assert.equal("per_expert", info.layer.weight_layout)
    assert.equal(7, infos.step.value)
    assert.equal(2100, #infos.note.value)
    assert.is_true(infos["optimizer.exp_avg.weight"].layer.optimizer_state)
  end)

  it("keeps the depth of tables under a new name, moves a table by its first part, takes lists of keys", function()
    mc.save(src, { model = { ["a.w"] = mc.ones(1), list = { mc.ones(2), mc.ones(3) } }, flat = mc.ones(4), n = 3,
      s = "text" })
    convert(src, dst, { rename = function(name)
      if name == "flat" then return { "model", "flat.w" } end
      if name == "n" then return "count" end
      return (name:gsub("^model%.", "net."))
    end })
    local found = mc.load(dst)
    assert.is_not_nil(found.net["a.w"])
    assert.equal(3, found.net.list[2]:numel())
    assert.equal(4, found.model["flat.w"]:numel())
    assert.equal(3, found.count)
    assert.equal("text", found.s)
    assert.is_nil(found.n)
  end)

  it("leaves out what the filter drops, and lists it", function()
    mc.save(src, layer_object("per_expert", 5, 3, true))
    local plan = convert(src, dst, { filter = function(name) return not name:find "^optimizer" end })
    local found = mc.load(dst)
    assert.is_nil(found.optimizer)
    assert.is_not_nil(found.model.layers[1].weight0)
    assert.is_true(#plan.dropped > 0)
    -- experts must be whole, though
    helper.raises("[partial] model.layers.1.weight{0-2,4-11}: only 11 of 12 experts", convert, src, dst,
      { overwrite = true, filter = function(name) return not name:find "weight3$" end })
  end)

  it("changes dtype and shape of each tensor in both directions between layouts", function()
    local object = layer_object("per_expert", 5, 3, true)
    for _, from in ipairs { "per_expert", "single" } do
      mc.save(src, object, { layout = from })
      for _, to in ipairs { "per_expert", "single" } do
        local calls = 0
        convert(src, dst, { layout = to, overwrite = true, transform = function(name, t)
          calls = calls + 1
          if name:find "^model.layers.*weight" then return (t * 2):to("bfloat16") end
        end })
        local layer = mc.load(dst).model.layers[1]
        local wanted = (stack { 3, 5 } * 2):to("bfloat16")
        if to == "single" then
          helper.same(layer.weight, wanted)
          helper.same(layer.bias, stack({ 3 }, 0.5))
        else
          for i = 0, G - 1 do helper.same(layer["weight" .. i], wanted:select(1, i + 1)) end
          helper.same(layer.bias11, coded({ 3 }, 11, 0.5))
        end
        assert.equal(from == "single" and 7 or 5 + 2 * G, calls) -- once for each tensor of the source
      end
    end
  end)

  it("takes a tensor that was changed in place for changed, and leaves the tensor it was tied to alone", function()
    local t = mc.ones(3)
    mc.save(src, { a = t, b = t, c = t })
    convert(src, dst, { overwrite = true, transform = function(name, x)
      if name == "a" then x:mul_(2) end
    end })
    local got = mc.load(dst)
    helper.same(got.a, mc.full({ 3 }, 2))
    helper.same(got.b, mc.ones(3))
    assert.is_true(rawequal(got.b, got.c))
  end)

  it("refuses experts that no longer agree after the transform, naming two", function()
    mc.save(src, layer_object("per_expert", 5, 3, true))
    helper.raises("must agree after the transform: model.layers.1.weight0 became float32 [3, 5], "
      .. "model.layers.1.weight4 became float32 [5, 3]", convert, src, dst, { layout = "single",
      transform = function(name, t) return name:find "weight4$" and t:transpose(1, 2) or nil end })
    assert.is_false(lfs.attributes(dst) ~= nil)
    assert.same({}, leftovers())
    mc.save(src, layer_object("single", 5, 3, false))
    helper.raises("model.layers.1.weight became [3, 60] by the transform; wanted its 12 experts along the first axis",
      convert, src, dst, { layout = "per_expert", transform = function(name, t)
        return name:find "^model.layers" and t:reshape(3, 60) or nil
      end })
  end)

  it("says what a function returned that it must not", function()
    mc.save(src, { t = mc.ones(1), v = 1 })
    helper.raises('convert: rename("t") returned 3; wanted a name', convert, src, dst, { rename = function()
      return 3
    end })
    helper.raises('convert: filter("t") returned nil; wanted true or false', convert, src, dst,
      { filter = function() end })
    helper.raises('convert: transform("t") returned 5; wanted a tensor, or nil', convert, src, dst,
      { transform = function() return 5 end })
    helper.raises("my own mistake", convert, src, dst, { transform = function() error("my own mistake") end })
    assert.is_nil(lfs.attributes(dst))
    assert.same({}, leftovers())
  end)

  it("finds two sources of one name, and a table of the name of a tensor", function()
    mc.save(src, { a = mc.ones(1), b = mc.ones(1), c = { d = mc.ones(1) }, v = 1 })
    helper.raises("[conflict] a and b would both be x", convert, src, dst, { rename = function(name)
      return (name:gsub("^[ab]$", "x"))
    end })
    helper.raises("[conflict] a would be c, which is the table around c.d", convert, src, dst,
      { rename = function(name) return (name:gsub("^a$", "c")) end })
    helper.raises("[conflict] b and v would both be b", convert, src, dst, { rename = function(name)
      return (name:gsub("^v$", "b"))
    end })
    mc.save(src, { ["m.weight0"] = mc.ones(1), m = layer_object("single", 5, 3, false).model.layers[1] })
    local plan = convert(src, dst, { layout = "per_expert" })
    assert.is_true(plan.ok) -- m as a table and m as a part of a key are two things
    assert.equal(1, mc.load(dst)["m.weight0"]:numel())
    plan = convert(dst, src, { layout = "single", overwrite = true, round_trip = true })
    assert.same({}, plan.round_trip.differences)
    assert.equal(1, mc.load(src)["m.weight0"]:numel())
    helper.same(mc.load(src).m.weight, stack { 3, 5 })
  end)

  it("transforms the layout that is used where both are there", function()
    local entries = { { "/m/weight", stack { 3, 5 } } }
    for i = 0, G - 1 do entries[#entries + 1] = { "/m/weight" .. i, coded({ 3, 5 }, i) } end
    foreign(entries)
    for _, layout in ipairs { "single", "per_expert" } do
      convert(src, dst, { layout = layout, overwrite = true, transform = function(_, t) return t * 2 end })
      local found = mc.load(dst).m
      if layout == "single" then
        helper.same(found.weight, stack { 3, 5 } * 2)
      else
        for i = 0, G - 1 do helper.same(found["weight" .. i], coded({ 3, 5 }, i) * 2) end
      end
    end
  end)
end)
