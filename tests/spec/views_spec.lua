-- Views: which other names a file gets, that they are no content, what they cost. That other people's tools read true
-- values through them is tests/interop's.

local lfs = require "lfs"
local mc = require "mascon"
local hdf5 = require "mascon.checkpoint.hdf5"
local helper = require "helper"

local folder = os.tmpname()
os.remove(folder)
lfs.mkdir(folder)

local function path(name) return folder .. "/" .. name end

local function layer(opts)
  local value = 0
  return mc.nn.GroupedLinear {
    num_gemms = opts.G or 11, in_features = 5, out_features = 4, bias = opts.bias ~= false,
    single_grouped_weight = opts.weight == "single", single_grouped_bias = opts.bias == "single",
    init_method = function(t)
      t:copy_(mc.arange(value, value + t:numel(), 1):view(t:shape()))
      value = value + t:numel()
    end,
  }
end

-- "path dtype shape" of the views of a file, in its order; their own problems are errors
local function views(name)
  local list = {}
  for _, entry in ipairs(hdf5.open(path(name)).entries) do
    if entry.view then
      assert(entry.problem == nil, entry.problem)
      assert.are.equal("view", entry.attrs.kind)
      assert.is_nil(entry.attrs.digest)
      list[#list + 1] = ("%s %s %s"):format(entry.path, entry.attrs.dtype, table.concat(entry.shape, "x"))
    end
  end
  return list
end

local function members(prefix, n, rest)
  local list = {}
  for i = 0, n - 1 do list[#list + 1] = prefix .. i .. rest end
  table.sort(list)
  return list
end

local function sorted(list)
  table.sort(list)
  return list
end

local function assert_same(a, b)
  for key, value in pairs(a) do
    if mc.is_tensor(value) then
      assert.is_true(mc.equal(value, b[key]), key)
      if value.group and b[key].group then assert.are.equal(value.group.index, b[key].group.index) end
    elseif type(value) == "table" then
      assert_same(value, b[key])
    else
      assert.are.equal(value, b[key])
    end
  end
  for key in pairs(b) do assert(a[key] ~= nil, ("the key %s is new"):format(key)) end
end

describe("a file with views", function()
  teardown(function()
    for name in lfs.dir(folder) do os.remove(path(name)) end
    lfs.rmdir(folder)
  end)

  it("has the stacked name beside experts that are stored one by one", function()
    mc.save(path("t.h5"), { model = { ["a.experts"] = layer { bias = "per_expert" }:state_dict() } }, { views = true })
    assert.are.same({ "/model/a/experts/bias float32 11x4", "/model/a/experts/weight float32 11x4x5" },
      sorted(views("t.h5")))
  end)

  it("has the experts' names beside a stacked tensor, at the root too", function()
    mc.save(path("t.h5"), layer { weight = "single", bias = false }:to { dtype = "bfloat16" }:state_dict(),
      { views = true })
    assert.are.same(members("/weight", 11, " bfloat16 4x5"), sorted(views("t.h5")))
  end)

  it("takes the views of weights and biases from the layout of each", function()
    local sd = layer { weight = "single", bias = "per_expert" }:state_dict()
    mc.save(path("t.h5"), { ["m.0"] = sd }, { views = true })
    local wanted = members("/m/0/weight", 11, " float32 4x5")
    table.insert(wanted, "/m/0/bias float32 11x4")
    assert.are.same(sorted(wanted), sorted(views("t.h5")))
    mc.save(path("t.h5"), { ["m.0"] = sd }, { views = true, layout = "single" })
    wanted = members("/m/0/weight", 11, " float32 4x5")
    for _, line in ipairs(members("/m/0/bias", 11, " float32 4")) do table.insert(wanted, line) end
    assert.are.same(sorted(wanted), sorted(views("t.h5")))
  end)

  it("has none without views, nor of what is not packed, nor of optimizer arrays", function()
    local m = layer { bias = "per_expert" }
    mc.save(path("t.h5"), m:state_dict())
    assert.are.same({}, views("t.h5"))
    local opt = mc.optim.AdamW { params = m, lr = 0.1 }
    m(mc.ones(11, 5), { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 }):sum():backward()
    opt:step()
    mc.save(path("t.h5"), { optimizer = opt:state_dict(), other = { weight0 = mc.ones(2), weight1 = mc.ones(2) } },
      { views = true })
    assert.are.same({}, views("t.h5"))
  end)

  it("gives no view a name that is taken, and shows no incomplete or uneven set as a whole", function()
    local stacked = layer { weight = "single", bias = false, G = 3 }:state_dict()
    stacked.weight1 = mc.ones(7)
    mc.save(path("t.h5"), stacked, { views = true })
    assert.are.same({ "/weight0 float32 4x5", "/weight2 float32 4x5" }, sorted(views("t.h5")))
    assert_same(stacked, mc.load(path("t.h5")))
    local sd = layer { bias = false, G = 3 }:state_dict()
    sd.weight = mc.ones(7)
    mc.save(path("t.h5"), sd, { views = true })
    assert.are.same({}, views("t.h5"))
    sd.weight, sd.weight2 = nil, nil
    mc.save(path("t.h5"), sd, { views = true })
    assert.are.same({}, views("t.h5"))
    sd = layer { bias = false, G = 3 }:state_dict()
    local group = sd.weight1.group
    sd.weight1 = sd.weight1:to("float64")
    sd.weight1.group = group
    mc.save(path("t.h5"), sd, { views = true })
    assert.are.same({}, views("t.h5"))
  end)

  it("shows experts that are one tensor, which is stored once", function()
    local sd = layer { bias = false, G = 3 }:state_dict()
    local group = sd.weight1.group
    sd.weight1 = sd.weight0:detach()
    sd.weight1.group = group
    mc.save(path("t.h5"), sd, { views = true })
    assert.are.same({ "/weight float32 3x4x5" }, views("t.h5"))
    assert.is_true(mc.checkpoint.verify(path("t.h5")).ok)
  end)

  it("loads as one without, in every way, and is saved again as one", function()
    for _, own in ipairs { "single", "per_expert" } do
      local m = layer { weight = own, bias = own }
      local object = { model = m:state_dict(), step = 3 }
      mc.save(path("plain.h5"), object)
      mc.save(path("t.h5"), object, { views = true })
      assert_same(mc.load(path("plain.h5")), mc.load(path("t.h5")))
      assert.is_true(mc.checkpoint.diff(path("plain.h5"), path("t.h5"), { layout_aware = false }).ok)
      for _, other in ipairs { "single", "per_expert" } do
        local target = layer { weight = other, bias = other }
        target.weight:detach():fill_(-1)
        local report = mc.checkpoint.load_into(path("t.h5"), { model = target })
        assert.is_true(mc.equal(m.weight, target.weight))
        assert.is_true(mc.equal(m.bias, target.bias))
        assert.are.same({}, report.unexpected)
      end
      mc.save(path("again.h5"), mc.load(path("t.h5")), { views = true })
      local function bytes(name)
        local f = assert(io.open(path(name), "rb"))
        local text = f:read("*a")
        f:close()
        return text
      end
      assert.is_true(bytes("t.h5") == bytes("again.h5"))
    end
  end)

  it("lists them when it is looked into, and shows them folded", function()
    mc.save(path("t.h5"), { m = layer { weight = "single", bias = "per_expert" }:state_dict() }, { views = true })
    local report = mc.checkpoint.inspect(path("t.h5"))
    assert.are.equal(12, #report.views)
    assert.are.same({ name = "m.bias", dtype = "float32", shape = { 11, 4 } }, report.views[1])
    assert.are.same({ name = "m.weight10", dtype = "float32", shape = { 4, 5 } }, report.views[12])
    assert.are.equal(12, #report.tensors)
    local text = tostring(report)
    assert.is_truthy(text:find("weight{0%-10} +11 x float32%[4, 5%] +view\n"), text)
    assert.is_truthy(text:find("bias +float32%[11, 4%] +view\n"), text)
    assert.is_truthy(text:find("bias{0%-10} +11 x float32%[4%] +176 bytes  per_expert\n"), text)
    local verified = mc.checkpoint.verify(path("t.h5"))
    assert.is_true(verified.ok)
    assert.are.equal(12, verified.checked)
    assert.are.same({}, verified.unverified)
  end)

  it("has no views of experts without elements", function()
    local sd = layer { bias = false, G = 2 }:state_dict()
    for i = 0, 1 do
      local group = sd["weight" .. i].group
      sd["weight" .. i] = mc.zeros(0, 5)
      sd["weight" .. i].group = group
    end
    mc.save(path("t.h5"), sd, { views = true })
    assert.are.same({}, views("t.h5"))
  end)

  it("costs less than a hundredth at 64 experts of a megabyte", function()
    local m = mc.nn.GroupedLinear { num_gemms = 64, in_features = 1024, out_features = 512, bias = false,
      params_dtype = "bfloat16", init_method = function(t) t:fill_(1) end }
    for _, layout in ipairs { "single", "per_expert" } do
      local size = {}
      for i, with in ipairs { false, true } do
        mc.save(path("t.h5"), m:state_dict(), { layout = layout, views = with })
        size[i] = lfs.attributes(path("t.h5"), "size")
      end
      assert.is_true(size[1] >= 64 * 2 ^ 20)
      assert.is_true(size[2] < 1.01 * size[1], ("%s: %d and %d bytes"):format(layout, size[1], size[2]))
    end
  end)

  it("is asked for with a boolean", function()
    helper.raises('save: option views is "yes", wanted a boolean', mc.save, path("t.h5"), {}, { views = "yes" })
  end)
end)
