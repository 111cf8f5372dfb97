-- mc.checkpoint: loading files straight into modules, dry runs, inspection, verification.

local lfs = require "lfs"
local hdf5 = require "mascon.checkpoint.hdf5"
local mc = require "mascon"

local folder = os.tmpname()
os.remove(folder)
lfs.mkdir(folder)

local function path(name) return folder .. "/" .. name end

local function raises_with(text, fn)
  local ok, err = pcall(fn)
  assert.is_false(ok)
  assert.is_truthy(err:find(text, 1, true), err)
  return err
end

local function layer(opts)
  local value = opts.first or 1
  local m = mc.nn.GroupedLinear {
    num_gemms = opts.G or 3, in_features = 5, out_features = 4, bias = opts.bias ~= false,
    single_grouped_weight = opts.layout == "single",
    single_grouped_bias = opts.layout == "single" and opts.bias ~= false,
    params_dtype = opts.dtype or "float32",
    init_method = function(t)
      t:copy_(mc.arange(value, value + t:numel(), 1):view(t:shape()))
      value = value + t:numel()
    end,
  }
  if m.bias then mc.no_grad(function() m.bias:fill_(value) end) end
  return m
end

-- changes one byte of a tensor of a file
local function damage(name, tensor_name, at, byte)
  local offset
  for _, t in ipairs(mc.checkpoint.inspect(path(name)).tensors) do
    if t.name == tensor_name then offset = t.offset end
  end
  local f = assert(io.open(path(name), "r+b"))
  f:seek("set", offset + at)
  f:write(string.char(byte))
  f:close()
end

local function same_parameters(a, b)
  assert.is_true(mc.equal(a.weight, b.weight))
  if b.bias then assert.is_true(mc.equal(a.bias, b.bias)) end
end

describe("mc.checkpoint", function()
  teardown(function()
    for name in lfs.dir(folder) do os.remove(path(name)) end
    lfs.rmdir(folder)
  end)

  it("loads a file into a module in every pair of layouts, keeping the parameter objects", function()
    for _, G in ipairs { 1, 3, 11 } do
      for _, stored in ipairs { "single", "per_expert" } do
        for _, own in ipairs { "single", "per_expert" } do
          local source, target = layer { G = G }, layer { G = G, layout = own, first = 500 }
          mc.save(path("t.h5"), { model = source:state_dict(), step = 7 }, { layout = stored })
          local weight, storage = target.weight, target.weight:storage_id()
          local report = mc.checkpoint.load_into(path("t.h5"), { model = target })
          same_parameters(target, source)
          assert.are.equal(weight, target.weight)
          assert.are.equal(storage, weight:storage_id())
          assert.are.same({ step = 7 }, report.rest)
          local list = stored == own and report.loaded or report.converted
          assert.are.equal(stored == "single" and 2 or 2 * G, #list)
          assert.are.equal("model.", list[1]:sub(1, 6))
        end
      end
    end
  end)

  it("loads several targets by one plan and returns everything else", function()
    local a, b = layer {}, layer { first = 100 }
    local rng = mc.get_rng_state()
    mc.save(path("t.h5"), { a = a:state_dict(), b = { inner = b:state_dict() }, rng = rng, mine = { x = { 1, 2 } },
      w = mc.ones(2) })
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self) self.inner = layer { layout = "single", first = 900 } end
    local first, second = layer { first = 900 }, Net()
    local report = mc.checkpoint.load_into(path("t.h5"), { a = first, b = second })
    same_parameters(first, a)
    same_parameters(second.inner, b)
    assert.are.same({ 1, 2 }, report.rest.mine.x)
    assert.is_true(mc.equal(rng, report.rest.rng))
    assert.is_nil(report.rest.a)
    assert.are.equal(6, #report.loaded)
    assert.are.equal(6, #report.converted)
  end)

  it("resumes training bit for bit, with the optimizer, in another layout", function()
    local function run(m, opt, n)
      for i = 1, n do
        local y = m(mc.full({ 6, 5 }, i / 7), { 1, 2, 3 })
        y:mul(y):sum():backward()
        opt:step()
        opt:zero_grad()
      end
    end
    for _, layouts in ipairs { { "per_expert", "single" }, { "single", "per_expert" } } do
      local m = layer { layout = layouts[1] }
      local opt = mc.optim.AdamW { params = m, lr = 0.01 }
      run(m, opt, 3)
      mc.save(path("t.h5"), { model = m:state_dict(), optimizer = opt:state_dict(), step = 3 })
      local other = layer { layout = layouts[2], first = 70 }
      local other_opt = mc.optim.AdamW { params = other, lr = 0.5 }
      local report = mc.checkpoint.load_into(path("t.h5"), { model = other, optimizer = other_opt })
      assert.are.same({ step = 3 }, report.rest)
      run(m, opt, 2)
      run(other, other_opt, 2)
      same_parameters(other, m)
      mc.save(path("t.h5"), { model = m:state_dict(), optimizer = opt:state_dict() }, { layout = "single" })
      mc.save(path("u.h5"), { model = other:state_dict(), optimizer = other_opt:state_dict() }, { layout = "single" })
      local a, b = assert(io.open(path("t.h5"), "rb")), assert(io.open(path("u.h5"), "rb"))
      assert.is_true(a:read("*a") == b:read("*a"))
      a:close()
      b:close()
    end
  end)

  it("restores the random numbers only when asked to", function()
    mc.manual_seed(5)
    mc.save(path("t.h5"), { model = layer {}:state_dict(), rng = mc.get_rng_state() })
    mc.manual_seed(6)
    local other = mc.get_rng_state()
    mc.checkpoint.load_into(path("t.h5"), { model = layer {} })
    assert.is_true(mc.equal(other, mc.get_rng_state()))
    mc.checkpoint.load_into(path("t.h5"), { model = layer {} }, { rng = true })
    assert.is_false(mc.equal(other, mc.get_rng_state()))
    mc.save(path("t.h5"), { model = layer {}:state_dict() })
    raises_with("there is no rng state in it", function()
      mc.checkpoint.load_into(path("t.h5"), { model = layer {} }, { rng = true })
    end)
  end)

  it("finds out that the random numbers' state is none before it changes anything", function()
    local m, target = layer { first = 1 }, layer { first = 100 }
    local before = target.weight:detach():clone()
    mc.save(path("t.h5"), { model = m:state_dict(), rng = mc.ones(3) })
    raises_with("t.h5: rng: wanted the uint8 tensor of mc.get_rng_state(), got float32 [3]", function()
      mc.checkpoint.load_into(path("t.h5"), { model = target }, { rng = true })
    end)
    assert.is_true(mc.equal(before, target.weight:detach()))
  end)

  it("leaves out of the rest, with a warning, what nobody asked for and it cannot read", function()
    local m, target = layer { first = 1 }, layer { first = 100 }
    mc.save(path("t.h5"), { model = m:state_dict(), notes = { good = mc.ones(2), odd = mc.ones(2) }, step = 3 })
    local open = hdf5.open
    finally(function() hdf5.open = open end)
    hdf5.open = function(name)
      local file = open(name)
      for _, entry in ipairs(file.entries) do
        if entry.path == "/notes/odd" then entry.problem = "of a kind not known here" end
      end
      return file
    end
    local report = mc.checkpoint.load_into(path("t.h5"), { model = target })
    assert.are.equal(3, report.rest.step)
    assert.is_truthy(report.rest.notes.good)
    assert.is_nil(report.rest.notes.odd)
    same_parameters(target, m)
    assert.are.same({ "/notes/odd is left out: of a kind not known here" }, report.warnings)
    raises_with("[file] /notes/odd: of a kind not known here", function() mc.load(path("t.h5")) end)
  end)

  it("hands a table to targets that have no slots", function()
    mc.save(path("t.h5"), { model = layer {}:state_dict(), loader = { epoch = 3, order = mc.arange(4) } })
    local got
    local loader = { load_state_dict = function(_, sd) got = sd end }
    mc.checkpoint.load_into(path("t.h5"), { model = layer {}, loader = loader })
    assert.are.equal(3, got.epoch)
    assert.are.same({ 0, 1, 2, 3 }, got.order:totable())
  end)

  it("casts on the way, in pieces", function()
    local source = layer { bias = false }
    mc.save(path("t.h5"), { model = source:state_dict() })
    local target = layer { bias = false, dtype = "bfloat16", layout = "single" }
    local report = mc.checkpoint.load_into(path("t.h5"), { model = target })
    assert.is_true(mc.equal(source.weight:detach():to("bfloat16"), target.weight:detach()))
    assert.are.same({ "model.weight{0-2}: float32 is rounded to bfloat16" }, report.warnings)
    -- more elements than one piece has
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self, n, dtype) self.w = mc.nn.Parameter(mc.zeros(n, { dtype = dtype })) end
    local n = 2 ^ 22 + 5
    local wide = Net(n, "float32")
    mc.no_grad(function() wide.w:copy_(mc.arange(n)) end)
    mc.save(path("t.h5"), { m = wide:state_dict() })
    local narrow = Net(n, "float64")
    mc.checkpoint.load_into(path("t.h5"), { m = narrow })
    assert.is_true(mc.equal(wide.w:detach():to("float64"), narrow.w:detach()))
  end)

  it("lists all problems of all targets under the file's name and changes nothing", function()
    mc.save(path("t.h5"), { a = layer { G = 4 }:state_dict(), b = layer { bias = false }:state_dict() })
    local a, b = layer { first = 50 }, layer { first = 50 }
    local before = { a.weight:clone(), b.weight:clone(), b.bias:clone() }
    local err = raises_with("t.h5: cannot load, 4 problems; nothing was changed\n"
      .. "[count] a.weight{0-3}: 4 experts in the checkpoint, 3 in the module\n"
      .. "[count] a.bias{0-3}: 4 experts in the checkpoint, 3 in the module\n"
      .. "[missing] b.bias{0-2}: not in the checkpoint; the module was built with bias = true\n"
      .. "[missing] c: the file has no such table; it has: a, b", function()
      mc.checkpoint.load_into(path("t.h5"), { a = a, b = b, c = layer {} })
    end)
    assert.is_truthy(err:find("checkpoint_into_spec.lua:%d+: "))
    assert.is_true(mc.equal(before[1], a.weight))
    assert.is_true(mc.equal(before[2], b.weight))
    assert.is_true(mc.equal(before[3], b.bias))
  end)

  it("reports values that stand where a tensor is wanted", function()
    local sd = layer { G = 1 }:state_dict()
    sd.bias0 = ("text "):rep(1000)
    mc.save(path("t.h5"), { model = sd })
    raises_with("[file] model.bias0: a text, not a tensor", function()
      mc.checkpoint.load_into(path("t.h5"), { model = layer { G = 1 } })
    end)
  end)

  it("refuses to adopt from a file under assign = \"strict\" and copies under assign = true", function()
    mc.save(path("t.h5"), { model = layer { bias = false }:state_dict() })
    raises_with("[adopt] model.weight{0-2}: the source is not a tensor in memory", function()
      mc.checkpoint.load_into(path("t.h5"), { model = layer { bias = false } }, { assign = "strict" })
    end)
    local report = mc.checkpoint.load_into(path("t.h5"), { model = layer { bias = false } }, { assign = true })
    assert.are.equal(1, #report.warnings)
  end)

  it("compares duplicates in the file before any copy", function()
    local source = layer { bias = false }
    local sd = source:state_dict()
    sd.weight = source.weight:detach():clone()
    mc.save(path("t.h5"), { m = sd })
    mc.checkpoint.load_into(path("t.h5"), { m = layer { bias = false } }, { verify_duplicates = true })
    sd.weight[3][1][2]:fill_(-1)
    mc.save(path("t.h5"), { m = sd })
    local target = layer { bias = false, first = 70 }
    local before = target.weight:clone()
    local text = "[conflict] m.weight (expert 2) and m.weight2 differ, first at element 1 (0-based)"
    raises_with(text, function()
      mc.checkpoint.load_into(path("t.h5"), { m = target }, { verify_duplicates = true })
    end)
    assert.is_true(mc.equal(before, target.weight))
    local plan = mc.checkpoint.plan(path("t.h5"), { m = target }, { verify_duplicates = true })
    assert.is_false(plan.ok)
    assert.is_truthy(plan.error_text:find(text, 1, true))
  end)

  it("plans without touching anything, printable, and raises only when the file cannot be read", function()
    mc.save(path("t.h5"), { model = layer { G = 11, bias = false }:state_dict() })
    local target = layer { G = 11, bias = false, layout = "single", first = 90 }
    local before = target.weight:clone()
    local plan = mc.checkpoint.plan(path("t.h5"), { model = target })
    assert.is_true(plan.ok)
    assert.are.equal(11, #plan.converted)
    assert.are.equal(("%s: fits, 1 tensor to load, 880 bytes to copy\n  model.weight  [11, 4, 5] float32  <- "
      .. "model.weight{0-10}  (per_expert -> single)"):format(path("t.h5")), tostring(plan))
    assert.is_true(mc.equal(before, target.weight))
    plan = mc.checkpoint.plan(path("t.h5"), { model = layer {} })
    assert.is_false(plan.ok)
    assert.are.equal("count", plan.errors[1].code)
    raises_with("none.h5: No such file", function() mc.checkpoint.plan(path("none.h5"), { model = target }) end)
    raises_with("checkpoint.plan: model is 7; wanted an object with load_state_dict", function()
      mc.checkpoint.plan(path("t.h5"), { model = 7 })
    end)
    raises_with("load_into: wanted a table of targets, as {model = model}", function()
      mc.checkpoint.load_into(path("t.h5"), target)
    end)
  end)

  it("reads all digests first with verify = true", function()
    mc.save(path("t.h5"), { model = layer { bias = false }:state_dict() })
    damage("t.h5", "model.weight1", 5, 77)
    local target = layer { bias = false, first = 40 }
    local before = target.weight:clone()
    raises_with("t.h5: cannot load, 1 problem; nothing was changed\n[file] model.weight1: damaged: its bytes do not "
      .. "match their digest", function()
      mc.checkpoint.load_into(path("t.h5"), { model = target }, { verify = true })
    end)
    assert.is_true(mc.equal(before, target.weight))
  end)

  it("marks a module invalid when a copy fails half-way, until a full load succeeds", function()
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self, v)
      self.w = mc.nn.Parameter(mc.full({ 3 }, v))
      self:register_buffer("mask", mc.tensor { true, false })
    end
    function Net.forward() return 1 end
    mc.save(path("t.h5"), { net = Net(1):state_dict() })
    mc.save(path("good.h5"), { net = Net(2):state_dict() })
    damage("t.h5", "net.mask", 1, 9)
    local net = Net(3)
    raises_with("holds 9 as a bool at position 1 (0-based); what was to be loaded is half written, and invalid until a "
      .. "full load", function() mc.checkpoint.load_into(path("t.h5"), { net = net }) end)
    raises_with("the module is invalid: a load failed half-way: ", function() net() end)
    mc.checkpoint.load_into(path("good.h5"), { net = net })
    assert.are.equal(1, net())
    assert.are.same({ 2, 2, 2 }, net.w:totable())
  end)

  it("marks everything inside an invalid module too, and a full load of it or around it heals that", function()
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self, v) self:register_buffer("mask", mc.full({ 2 }, v, { dtype = "bool" })) end
    function Net.forward() return 1 end
    local outer = mc.nn.Sequential(Net(1), Net(0))
    mc.save(path("good.h5"), { net = outer:state_dict() })
    mc.save(path("t.h5"), { net = outer:state_dict() })
    damage("t.h5", "net.1.mask", 1, 9)
    raises_with("holds 9 as a bool", function() mc.checkpoint.load_into(path("t.h5"), { net = outer }) end)
    raises_with("the module is invalid: ", function() outer() end)
    raises_with("the module is invalid: ", function() outer[2]() end)
    local _, err = pcall(function() mc.save(path("never.h5"), { net = outer:state_dict() }) end)
    assert.is_truthy(err and err:find("the module is invalid: ", 1, true), "half a load must not become a checkpoint")
    mc.checkpoint.load_into(path("good.h5"), { net = outer })
    assert.are.equal(1, outer[2]())
    assert.are.equal(1, outer())
    mc.save(path("t.h5"), { net = outer[2]:state_dict() })
    damage("t.h5", "net.mask", 1, 9)
    raises_with("holds 9 as a bool", function() mc.checkpoint.load_into(path("t.h5"), { net = outer[2] }) end)
    raises_with("the module is invalid: ", function() outer() end)
    mc.checkpoint.load_into(path("good.h5"), { net = outer })
    assert.are.equal(1, outer())
  end)

  it("inspects a file without reading tensors", function()
    local shared = mc.ones(10)
    mc.save(path("t.h5"), { model = layer { G = 11 }:state_dict(), a = shared, b = shared, step = 5,
      list = { "x", ("y"):rep(2000) } })
    local info = mc.checkpoint.inspect(path("t.h5"))
    assert.is_true(info.ok)
    assert.are.equal("mascon", info.format)
    assert.are.equal(1, info.format_version)
    assert.are.equal(11 * 24 * 4 + 40, info.bytes)
    assert.are.equal(24, #info.tensors)
    local names = {}
    for i, t in ipairs(info.tensors) do names[i] = t.name end
    assert.are.same({ "a", "b", "model.bias0", "model.bias1", "model.bias2" }, { unpack(names, 1, 5) })
    assert.are.equal("model.weight10", names[24])
    local weight = info.tensors[24]
    assert.are.same({ 4, 5 }, weight.shape)
    assert.are.equal("float32", weight.dtype)
    assert.are.equal(80, weight.bytes)
    assert.are.equal(32, #weight.digest)
    assert.are.equal(11, weight.layer.num_gemms)
    assert.are.same({ { name = "list.1", value = "x" }, { name = "list.2", bytes = 2000 },
      { name = "step", value = 5 } }, info.values)
    raises_with("none.h5: No such file", function() mc.checkpoint.inspect(path("none.h5")) end)
  end)

  it("inspects tables of many thousand entries", function()
    local many = {}
    for i = 1, 9000 do many[i] = i end
    mc.save(path("t.h5"), { many = many })
    local values = mc.checkpoint.inspect(path("t.h5")).values
    assert.are.same({ name = "many.9000", value = 9000 }, values[9000])
  end)

  it("verifies every byte against the digests", function()
    mc.save(path("t.h5"), { a = mc.arange(5000), b = mc.zeros(0), note = ("n"):rep(5000) })
    local report = mc.checkpoint.verify(path("t.h5"))
    assert.is_true(report.ok)
    assert.are.equal(3, report.checked)
    damage("t.h5", "a", 12345, 1)
    report = mc.checkpoint.verify(path("t.h5"))
    assert.is_false(report.ok)
    assert.are.equal(1, #report.damaged)
    assert.are.equal("/a", report.damaged[1].name)
    assert.is_truthy(report.damaged[1].message:find("^its bytes have the digest %x+, written was %x+$"))
  end)
end)
