-- mc.save and mc.load: round trips of everything, layouts, equal files, errors by their texts.

local ffi = require "ffi"
local lfs = require "lfs"
local mc = require "mascon"
local hdf5 = require "mascon.checkpoint.hdf5"

local folder = os.tmpname()
os.remove(folder)
lfs.mkdir(folder)

local function path(name) return folder .. "/" .. name end

local function bytes_of(name)
  local f = assert(io.open(path(name), "rb"))
  local text = f:read("*a")
  f:close()
  return text
end

local function files()
  local list = {}
  for name in lfs.dir(folder) do
    if name ~= "." and name ~= ".." then list[#list + 1] = name end
  end
  table.sort(list)
  return list
end

local function clean()
  for _, name in ipairs(files()) do os.remove(path(name)) end
end

local function raises(fn)
  local ok, err = pcall(fn)
  assert.is_false(ok)
  return err
end

local function raises_with(text, fn)
  local err = raises(fn)
  assert.is_truthy(err:find(text, 1, true), err)
  return err
end

-- equal values of equal types; tensors by shape, dtype and bits; numbers by bits
local function assert_same(a, b, where)
  where = where or "it"
  if type(a) ~= type(b) then error(("%s: %s and %s"):format(where, type(a), type(b))) end
  if mc.is_tensor(a) then
    if not mc.equal(a, b) then error(where .. ": the tensors differ") end
  elseif type(a) == "table" then
    for key, value in pairs(a) do
      if b[key] == nil then error(("%s: the key %s is gone"):format(where, tostring(key))) end
      assert_same(value, b[key], where .. "." .. tostring(key))
    end
    for key in pairs(b) do
      if a[key] == nil then error(("%s: the key %s is new"):format(where, tostring(key))) end
    end
  elseif type(a) == "number" and a ~= a then
    assert(b ~= b, where)
  else
    assert(a == b and (a ~= 0 or 1 / a == 1 / b), ("%s: %s and %s"):format(where, tostring(a), tostring(b)))
  end
end

local function round_trip(object, opts)
  mc.save(path("t.h5"), object, opts)
  local back = mc.load(path("t.h5"))
  assert_same(object, back)
  return back
end

local function layer(opts)
  local value = opts.first or 1
  return mc.nn.GroupedLinear {
    num_gemms = opts.G or 3, in_features = 5, out_features = 4, bias = opts.bias ~= false,
    single_grouped_weight = opts.layout == "single",
    single_grouped_bias = opts.layout == "single" and opts.bias ~= false,
    init_method = function(t)
      t:copy_(mc.arange(value, value + t:numel(), 1):view(t:shape()))
      value = value + t:numel()
    end,
  }
end

local function keys(t)
  local list = {}
  for key in pairs(t) do list[#list + 1] = key end
  table.sort(list)
  return list
end

describe("a checkpoint", function()
  teardown(function()
    clean()
    lfs.rmdir(folder)
  end)

  it("keeps tensors of every dtype and shape bit for bit", function()
    local object = {}
    for _, dtype in ipairs { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool",
      "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu" } do
      for name, shape in pairs { scalar = {}, one = { 1 }, none = { 0 }, hollow = { 2, 0, 3 }, odd = { 3, 1, 7 },
        deep = { 1, 2, 1, 2, 1, 2, 1, 2 } } do
        local n = 1
        for _, size in ipairs(shape) do n = n * size end
        local list = {}
        for i = 1, n do list[i] = i % 2 end
        object[dtype .. "." .. name] = mc.tensor(list, { dtype = dtype }):view(shape)
      end
    end
    local back = round_trip(object)
    assert.are.same({ 2, 0, 3 }, back["int64.hollow"]:shape())
    assert.are.equal("bfloat16", back["bfloat16.odd"].dtype)
  end)

  it("keeps NaN payloads, minus zero and integers beyond 2^53", function()
    local t = mc.zeros(4, { device = "cpu" })
    local words = ffi.cast("uint32_t *", t:data())
    words[0], words[1], words[2], words[3] = 0x7fc12345, 0xffa00001, 0x80000000, 1
    local big = mc.zeros(1, { dtype = "int64", device = "cpu" })
    ffi.cast("int64_t *", big:data())[0] = 2LL ^ 53 + 1LL
    round_trip { t = t, big = big }
    local back = round_trip { value = 2LL ^ 53 + 1LL, least = -2LL ^ 62 }
    assert.is_true(back.value == 2LL ^ 53 + 1LL and back.least == -2LL ^ 62)
  end)

  it("saves from and loads to a device that the host cannot read", function()
    local t, sd = mc.arange(1000), layer { bias = false }:state_dict()
    mc.save(path("t.h5"), { t = t, layer = sd })
    local back = mc.load(path("t.h5"), { device = "fake" })
    assert.are.equal("fake", back.t.device)
    assert.is_true(mc.equal(t, back.t:to("cpu")))
    assert.is_true(mc.equal(sd.weight2, back.layer.weight2:to("cpu")))
    mc.save(path("u.h5"), back)
    assert.is_true(bytes_of("t.h5") == bytes_of("u.h5"))
    local target = layer { bias = false, layout = "single", first = 80 }
    target:to("fake")
    target:load_state_dict(sd)
    assert.is_true(mc.equal(sd.weight2, target:expert(2).weight:detach():to("cpu")))
    target:load_state_dict(layer { bias = false, first = 7 }:to("fake"):state_dict())
    require("mascon.checkpoint").load_into(path("t.h5"), { layer = target })
    assert.is_true(mc.equal(sd.weight0, target:expert(0).weight:detach():to("cpu")))
  end)

  it("keeps large tensors and views of any strides", function()
    local t = mc.arange(40000):view(200, 200)
    mc.save(path("t.h5"), { whole = t, turned = t:transpose(1, 2), part = t:narrow(2, 3, 5) })
    local back = mc.load(path("t.h5"))
    assert.is_true(mc.equal(back.whole, t))
    assert.is_true(mc.equal(back.turned, t:transpose(1, 2):contiguous()))
    assert.is_true(mc.equal(back.part, t:narrow(2, 3, 5):contiguous()))
  end)

  it("keeps numbers, strings and booleans", function()
    round_trip {
      zero = 0, minus_zero = -0.0, one = 1, negative = -7, big = 2 ^ 53, bigger = 2 ^ 60, huge = 1e300, tiny = 5e-324,
      tenth = 0.1, inf = math.huge, ninf = -math.huge, nan = 0 / 0, yes = true, no = false,
      empty = "", text = "two words", utf8 = "Erdős", nul = "a\0b\0", binary = "\255\254\1", long = ("x"):rep(5000),
      newline = "a\nb",
    }
  end)

  it("keeps nested tables, lists and empty tables", function()
    round_trip {
      list = { 1, 2.5, "three", { four = 4 }, false }, empty = {}, nested = { a = { b = { c = mc.ones(2), d = 1 } } },
      sparse = { [1] = 1, [7] = 7, [-2] = "m" }, tensors = { mc.ones(1), mc.zeros(2) },
    }
  end)

  it("keeps keys as they are, odd and colliding ones too", function()
    local t = {}
    for i = 1, 40 do t[i] = mc.full({ 2 }, i) end
    local object = {
      ["m.weight"] = t[1], ["m.weight.weight"] = t[2], ["m.weight.bias"] = t[3], m = { weight = t[4], ["x.y"] = t[5] },
      ["a/b"] = t[6], ["a.b"] = t[7], [""] = t[8], ["."] = t[9], [".."] = t[10], ["a..b"] = t[11], [".a"] = t[12],
      ["a."] = t[13], ["%"] = t[14], ["%41"] = t[15], ["#1"] = t[16], [1] = t[17], ["1"] = t[18], ["#values"] = t[19],
      ["tab\tkey"] = t[20], ["nul\0key"] = t[21], ["Erdős.λ"] = t[22], [("k"):rep(1500)] = t[23],
      [("p."):rep(50) .. "q"] = t[24], ["a.b.c"] = t[25], n = { ["m.weight"] = t[26] }, ["n.m"] = { weight = t[27] },
      ["n.m.weight"] = t[28],
    }
    round_trip(object)
    local values = { ["key.with.dots"] = 1, ["a/b"] = 2, [""] = 3, ["#1"] = 4, ["%"] = 5, [1] = 6, ["1"] = 7 }
    for _, key in ipairs { "format", "format_version", "mascon_version", "table", "key", "type", "num_gemms",
      "in_features", "out_features", "weight_layout", "bias_layout", "optimizer_state", "digest", "dtype", "kind" } do
      values[key] = key
    end
    round_trip { values = values, format = "mine", table = false }
    round_trip(values)
  end)

  it("keeps more than 32 small values in one dataset, exactly", function()
    local many = { inf = math.huge, nan = 0 / 0, minus_zero = -0.0, text = 'q"\\\n', yes = true, long = ("y"):rep(2000),
      t = mc.ones(1), inner = { 1 } }
    for i = 1, 3000 do
      many[i] = i / 7
      many["k" .. i] = i * 2 ^ 40
    end
    local losses = {}
    for i = 1, 3000 do losses[i] = ({ 0 / 0, math.huge, -math.huge, i })[i % 4 + 1] end
    round_trip { losses = losses }
    round_trip { many = many }
    local names = {}
    for _, entry in ipairs(hdf5.open(path("t.h5")).entries) do names[entry.path] = entry end
    assert.is_truthy(names["/many/#values"])
    assert.are.equal("json", names["/many/#values"].attrs.kind)
  end)

  it("shows foreign readers plain paths and attributes", function()
    mc.save(path("t.h5"), { model = { ["layers.0.weight"] = mc.ones(2, 3, { dtype = "bfloat16" }) }, step = 100,
      lr = 0.5, name = "run", ok = true })
    local by_path = {}
    for _, entry in ipairs(hdf5.open(path("t.h5")).entries) do by_path[entry.path] = entry end
    local root = by_path["/"].attrs
    assert.are.equal("mascon", root.format)
    assert.are.equal(1, root.format_version)
    assert.are.equal(mc.version, root.mascon_version)
    assert.are.same({ 100, 0.5, "run", true }, { root.step, root.lr, root.name, root.ok })
    local weight = by_path["/model/layers/0/weight"]
    assert.are.equal("bfloat16", weight.dtype)
    assert.are.equal("bfloat16", weight.attrs.dtype)
    assert.are.same({ 2, 3 }, weight.shape)
    assert.are.equal(32, #weight.attrs.digest)
    assert.is_true(by_path["/model"].attrs.table)
    assert.is_nil(by_path["/model/layers"].attrs.table)
  end)

  it("writes tied tensors once and gives them back tied", function()
    local t = mc.arange(1000)
    mc.save(path("t.h5"), { a = { w = t }, b = { w = t, list = { t, t }, same = t:view(1000) }, c = t:clone(),
      ["odd/key"] = t })
    local back = mc.load(path("t.h5"))
    assert.are.equal(back.a.w, back.b.w)
    assert.are.equal(back.a.w, back.b.list[2])
    assert.are.equal(back.a.w, back.b.same)
    assert.are.equal(back.a.w, back["odd/key"])
    assert.are_not.equal(back.a.w, back.c)
    assert.is_true(mc.equal(back.a.w, t))
    assert.is_true(#bytes_of("t.h5") < 16000)
  end)

  it("is the same file for the same content, whatever the order of its making", function()
    local function object(backwards)
      local result, names = {}, {}
      for i = 1, 60 do names[i] = "k" .. i end
      for i = 1, 60 do
        local name = names[backwards and 61 - i or i]
        result[name] = mc.full({ 3 }, tonumber(name:sub(2)))
        result[name .. "v"] = tonumber(name:sub(2))
      end
      return { m = result, layer = layer { layout = "single" }:state_dict(), n = 7 }
    end
    mc.save(path("1.h5"), object(false))
    mc.save(path("2.h5"), object(true))
    assert.is_true(bytes_of("1.h5") == bytes_of("2.h5"))
    mc.save(path("2.h5"), mc.load(path("1.h5")))
    assert.is_true(bytes_of("1.h5") == bytes_of("2.h5"))
  end)

  it("records grouped layers in their groups and gives tensors their grouping back", function()
    for _, layout in ipairs { "single", "per_expert" } do
      local m = layer { G = 11, layout = layout }
      mc.save(path("t.h5"), { model = { experts = m:state_dict() } })
      for _, entry in ipairs(hdf5.open(path("t.h5")).entries) do
        if entry.path == "/model/experts" then
          local attrs = entry.attrs
          assert.are.same({ "GroupedLinear", 11, 5, 4, layout, layout }, { attrs.type, attrs.num_gemms,
            attrs.in_features, attrs.out_features, attrs.weight_layout, attrs.bias_layout })
        end
      end
      local back = mc.load(path("t.h5")).model.experts
      local member = layout == "per_expert"
      local t = member and back.weight10 or back.weight
      assert.are.equal(11, t.group.count)
      assert.are.equal("weight", t.group.role)
      assert.are.equal(member and 10 or nil, t.group.index)
      assert.are.equal("GroupedLinear", t.group.layer.type)
      mc.save(path("u.h5"), { model = { experts = back } })
      assert.is_true(bytes_of("t.h5") == bytes_of("u.h5"))
    end
  end)

  it("saves either layout in either layout", function()
    for _, own in ipairs { "single", "per_expert" } do
      for _, stored in ipairs { "single", "per_expert" } do
        local m = layer { G = 11, layout = own }
        mc.save(path("t.h5"), { model = m:state_dict(), other = { weight = mc.ones(3, 4, 5) } }, { layout = stored })
        mc.save(path("u.h5"), { model = layer { G = 11, layout = stored }:state_dict(),
          other = { weight = mc.ones(3, 4, 5) } })
        assert.is_true(bytes_of("t.h5") == bytes_of("u.h5"), own .. " " .. stored)
        -- and from the loaded file into the other layout again, and from clones, which have no base
        local back = mc.load(path("t.h5"))
        mc.save(path("v.h5"), back, { layout = own })
        mc.save(path("u.h5"), { model = m:state_dict(), other = back.other })
        assert.is_true(bytes_of("v.h5") == bytes_of("u.h5"), own .. " " .. stored)
        for key, t in pairs(back.model) do back.model[key] = t:clone() end
        mc.save(path("v.h5"), back, { layout = own })
        assert.is_true(bytes_of("v.h5") == bytes_of("u.h5"), own .. " " .. stored)
      end
    end
  end)

  it("keeps the names of an incomplete set of experts", function()
    local sd = layer { bias = false }:state_dict()
    sd.weight1 = nil
    mc.save(path("t.h5"), sd, { layout = "single" })
    assert.are.same({ "weight0", "weight2" }, keys(mc.load(path("t.h5"))))
  end)

  it("keeps both names where a table has both", function()
    local m = layer { bias = false }
    local sd = m:state_dict()
    sd.weight = m.weight:detach():clone()
    for _, layout in ipairs { "single", "per_expert" } do
      mc.save(path("t.h5"), sd, { layout = layout })
      assert_same(sd, mc.load(path("t.h5")))
    end
  end)

  it("takes no name apart whose parts would not be read back, and gives no name twice", function()
    local m = mc.nn.GroupedLinear{ num_gemms = 12, in_features = 3, out_features = 2, bias = false,
      single_grouped_weight = true }
    local weight, other = m:state_dict().weight, mc.ones(2, 3)
    for _, sd in ipairs {
      { weight = weight, weight7 = other }, -- any of the twelve names may be taken
      { weight, other, [11] = weight }, -- numbers are no stems: 1 and 10 would meet 11 and 0
      { w2 = weight }, -- w20 is expert 20 of w
    } do
      mc.save(path("names.h5"), sd, { layout = "per_expert" })
      assert_same(sd, mc.load(path("names.h5")))
    end
  end)

  it("stacks experts that are one tensor by their values", function()
    local m = layer { bias = false }
    local sd = m:state_dict()
    sd.weight1 = sd.weight0
    mc.save(path("t.h5"), sd)
    local back = mc.load(path("t.h5"))
    assert.are.equal(back.weight0, back.weight1)
    back.weight1 = back.weight1:clone()
    back.weight1.group = { base = back.weight0.group.base, index = 1, count = 3, role = "weight" }
    mc.save(path("u.h5"), back, { layout = "single" })
    local whole = mc.load(path("u.h5")).weight
    assert.is_true(mc.equal(whole, mc.stack({ sd.weight0, sd.weight0, sd.weight2 }, 1)))
    -- views of the right memory in the wrong place are no base either
    back.weight1 = back.weight2:detach()
    back.weight1.group = { base = back.weight0.group.base, index = 1, count = 3, role = "weight" }
    mc.save(path("u.h5"), back, { layout = "single" })
    whole = mc.load(path("u.h5")).weight
    assert.is_true(mc.equal(whole, mc.stack({ sd.weight0, sd.weight2, sd.weight2 }, 1)))
  end)

  it("stores an optimizer's arrays stacked in every layout", function()
    local state = require "mascon.checkpoint.state"
    local moment = mc.arange(60):view(3, 4, 5)
    local slots = { { name = "exp_avg.e.weight", tensor = moment, kind = "state",
      packed = { count = 3, role = "weight", layout = "per_expert" } } }
    local sd = state.state_dict(slots)
    assert.are.same({ "exp_avg.e.weight0", "exp_avg.e.weight1", "exp_avg.e.weight2" }, keys(sd))
    for _, layout in ipairs { "as_is", "single", "per_expert" } do
      mc.save(path("t.h5"), { optimizer = sd }, { layout = layout })
      local back = mc.load(path("t.h5"))
      assert.are.same({ "exp_avg.e.weight" }, keys(back.optimizer))
      assert.is_true(mc.equal(moment, back.optimizer["exp_avg.e.weight"]))
      mc.save(path("u.h5"), back, { layout = "per_expert" })
      assert.is_true(bytes_of("t.h5") == bytes_of("u.h5"))
    end
  end)

  it("gives the experts of a per-expert file as one block that can be adopted", function()
    local m = layer { G = 3 }
    mc.save(path("t.h5"), m:state_dict())
    local back = mc.load(path("t.h5"))
    assert.are.equal(back.weight0:storage_id(), back.weight2:storage_id())
    local target = layer { G = 3, layout = "single", first = 500 }
    local report = target:load_state_dict(back, { assign = "strict" })
    assert.are.same({}, report.warnings)
    assert.is_true(mc.equal(target.weight, m.weight))
    assert.are.equal(back.weight0:storage_id(), target.weight:storage_id())
  end)

  it("loads one key of the outermost table with only", function()
    mc.save(path("t.h5"), { model = { w = mc.ones(2) }, optimizer = { s = mc.zeros(2) }, step = 3 })
    assert.are.same({ "model" }, keys(mc.load(path("t.h5"), { only = "model" })))
    assert.are.same({ step = 3 }, mc.load(path("t.h5"), { only = "step" }))
    raises_with('t.h5: there is no "nothing" in it; there are: ', function()
      mc.load(path("t.h5"), { only = "nothing" })
    end)
  end)

  it("loads any plain HDF5 file as nested tables", function()
    local w = hdf5.create(path("f.h5"))
    w:tensor("/layers/0/weight", mc.ones(2, 3))
    w:tensor("/layers/#1/%41", mc.zeros(1))
    w:attr("/layers", "epoch", 3)
    w:attr("/layers", "0", "hidden by the group")
    w:commit()
    local back = mc.load(path("f.h5"))
    assert_same({ layers = { ["0"] = { weight = mc.ones(2, 3) }, ["#1"] = { ["%41"] = mc.zeros(1) }, epoch = 3 } },
      back)
  end)

  describe("that cannot be saved", function()
    local before

    before_each(function()
      clean()
      mc.save(path("old.h5"), { a = mc.ones(3) })
      before = bytes_of("old.h5")
    end)

    after_each(function()
      assert.are.same({ "old.h5" }, files())
      assert.is_true(before == bytes_of("old.h5"))
    end)

    it("names what is no value by its key, at the caller's line", function()
      local err = raises_with("save: model.hooks.1 is a function; wanted tensors, numbers, strings, booleans and "
        .. "tables of them", function() mc.save(path("old.h5"), { model = { hooks = { print } } }) end)
      assert.is_truthy(err:find("checkpoint_spec.lua:%d+: save"))
      raises_with("save: model has the key 1.5; wanted strings and integers", function()
        mc.save(path("old.h5"), { model = { [1.5] = 1 } })
      end)
      raises_with("save: the object has the key true", function() mc.save(path("old.h5"), { [true] = 1 }) end)
      local loop = { a = {} }
      loop.a.b = loop.a
      raises_with("save: a.b contains itself", function() mc.save(path("old.h5"), loop) end)
      raises_with("save: model is a module or optimizer; save its :state_dict()", function()
        mc.save(path("old.h5"), { model = layer {} })
      end)
      raises_with("save: wanted a table of what to save, got a tensor", function()
        mc.save(path("old.h5"), mc.ones(1))
      end)
      local freed = mc.ones(1)
      freed:free()
      raises_with("save: x: the tensor was freed by t:free()", function() mc.save(path("old.h5"), { x = freed }) end)
    end)

    it("rejects unknown options", function()
      raises_with("save: unknown option view; there are: async, layout, progress, views", function()
        mc.save(path("old.h5"), {}, { view = true })
      end)
      raises_with("save: option async is 1, wanted a boolean", function()
        mc.save(path("old.h5"), {}, { async = 1 })
      end)
      raises_with('save: option layout is "both", wanted one of "as_is", "single", "per_expert"', function()
        mc.save(path("old.h5"), {}, { layout = "both" })
      end)
    end)

    it("says why the folder takes no file", function()
      raises_with("none/x.h5: ", function() mc.save(path("none/x.h5"), {}) end)
      raises_with("No such file or directory", function() mc.save(path("none/x.h5"), {}) end)
      raises_with("Not a directory", function() mc.save(path("old.h5/x.h5"), {}) end)
      raises_with(": it is a folder", function() mc.save(folder, {}) end)
      raises_with("save: wanted a path, got 7", function() mc.save(7, {}) end)
      raises_with('save: wanted a path, got "a\\0b"', function() mc.save("a\0b", {}) end)
    end)

    it("says that a name is too long or too deep", function()
      local deep = { leaf = mc.ones(1) }
      for _ = 1, 31 do deep = { t = deep } end
      round_trip(deep)
      os.remove(path("t.h5"))
      raises_with("at most 32 are wanted", function() mc.save(path("old.h5"), { t = deep }) end)
      for _ = 1, 20000 do deep = { t = deep } end
      raises_with("t.t lies more than 32 tables deep", function() mc.save(path("old.h5"), deep) end)
      raises_with("at most 4095 are wanted", function() mc.save(path("old.h5"), { [("k"):rep(5000)] = mc.ones(1) }) end)
    end)

    it("leaves nothing behind when there is no space", function()
      local script = folder .. ".lua"
      local f = assert(io.open(script, "w"))
      f:write(([[
        local mc = require "mascon"
        local ok, err = pcall(mc.save, %q, { a = mc.zeros(100000), b = mc.ones(100000) })
        io.write(tostring(ok), " ", tostring(err))
      ]]):format(path("old.h5")))
      f:close()
      -- a limit on the size of files in place of a full disk; the signal that comes with it must not end us
      local command = ("ulimit -f 200; LUA_PATH=%q LUA_CPATH=%q luajit %s 2>&1"):format(package.path,
        package.cpath, script)
      local p = io.popen(command)
      local said = p:read("*a")
      p:close()
      os.remove(script)
      assert.is_truthy(said:find("^false "), said)
      assert.is_truthy(said:find("old.h5: ", 1, true), said)
      assert.is_truthy(said:find("File too large", 1, true), said)
    end)
  end)

  describe("that cannot be loaded", function()
    it("says so by the file and the reason", function()
      raises_with("none.h5: No such file or directory", function() mc.load(path("none.h5")) end)
      local f = assert(io.open(path("text.h5"), "w"))
      f:write(("no HDF5 "):rep(100))
      f:close()
      local err = raises_with("text.h5: not an HDF5 file", function() mc.load(path("text.h5")) end)
      assert.is_truthy(err:find("checkpoint_spec.lua:%d+: "))
      raises_with(": it is a folder", function() mc.load(folder) end)
      raises_with("load: wanted a path, got nil", function() mc.load() end)
      raises_with("load: unknown option lazzy", function() mc.load(path("text.h5"), { lazzy = true }) end)
    end)

    it("is refused at every truncation", function()
      mc.save(path("t.h5"), { a = mc.arange(5000), b = { c = 1 } })
      local whole = bytes_of("t.h5")
      for i = 0, 40 do
        local f = assert(io.open(path("cut.h5"), "wb"))
        f:write(whole:sub(1, math.floor((#whole - 1) * i / 40)))
        f:close()
        local err = raises(function() mc.load(path("cut.h5")) end)
        assert.is_truthy(err:find("cut.h5: ", 1, true), err)
      end
    end)

    it("is refused when it is of a later version", function()
      local w = hdf5.create(path("v2.h5"))
      w:attr("/", "format", "mascon")
      w:attr("/", "format_version", 2)
      w:attr("/", "mascon_version", "9.1")
      w:commit()
      raises_with("v2.h5: it has format version 2, written by mascon 9.1; this is mascon " .. mc.version
        .. ", which reads up to version 1", function() mc.load(path("v2.h5")) end)
    end)

    it("does not believe facts about a layer that its tensors do not bear out", function()
      for _, count in ipairs { 0, -1, 2.5, 2 ^ 40 } do
        local w = hdf5.create(path("odd.h5"))
        w:attr("/", "format", "mascon")
        w:attr("/", "format_version", 1)
        w:attr("/", "table", true)
        w:attr("/", "type", "GroupedLinear")
        w:attr("/", "num_gemms", count)
        w:attr("/", "weight_layout", "per_expert")
        w:tensor("/weight0", mc.ones(2, 3))
        w:tensor("/weight1", mc.zeros(2, 3))
        w:commit()
        assert_same({ weight0 = mc.ones(2, 3), weight1 = mc.zeros(2, 3) }, mc.load(path("odd.h5")))
      end
    end)

    it("is refused when its structure makes no sense", function()
      local function file(fn)
        local w = hdf5.create(path("odd.h5"))
        w:attr("/", "format", "mascon")
        w:attr("/", "format_version", 1)
        w:attr("/", "table", true)
        fn(w)
        w:commit()
      end
      file(function(w)
        w:bytes("/#values", "{ no json")
        w:attr("/#values", "kind", "json")
      end)
      raises_with("odd.h5: '/#values' is damaged", function() mc.load(path("odd.h5")) end)
      for _, text in ipairs { "[1, 2]", '{"a": [1]}', "7" } do
        file(function(w)
          w:bytes("/#values", text)
          w:attr("/#values", "kind", "json")
        end)
        raises_with("odd.h5: '/#values' is damaged: ", function() mc.load(path("odd.h5")) end)
      end
      file(function(w) w:tensor("/#x", mc.ones(1)) end)
      raises_with("odd.h5: '/#x' has a name that stands for no key", function() mc.load(path("odd.h5")) end)
      file(function(w)
        w:tensor("/a/b", mc.ones(1))
        w:tensor("/%a%2Eb", mc.ones(1))
      end)
      raises_with("is the second entry for the key 'a.b'", function() mc.load(path("odd.h5")) end)
    end)
  end)
end)
