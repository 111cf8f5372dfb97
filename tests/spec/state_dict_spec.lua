-- State dicts of real modules: names by layout, loads between layouts, adoption, atomicity.

local mc = require "mascon"

local function layer(opts)
  local value = opts.first or 0
  return mc.nn.GroupedLinear {
    num_gemms = opts.G or 3, in_features = opts.K or 5, out_features = opts.N or 4, bias = opts.bias ~= false,
    single_grouped_weight = opts.weight == "single", single_grouped_bias = opts.bias_layout == "single",
    params_dtype = opts.dtype or "float32",
    init_method = function(t)
      t:copy_(mc.arange(value, value + t:numel(), 1):view(t:shape()))
      value = value + t:numel()
    end,
  }
end

-- a layer whose biases are not all zero
local function filled(opts)
  local m = layer(opts)
  if m.bias then
    mc.no_grad(function() m.bias:copy_(mc.arange(0, m.bias:numel(), 1):view(m.bias:shape())) end)
  end
  return m
end

local function same_parameters(a, b)
  assert.is_true(mc.equal(a.weight, b.weight))
  if b.bias then assert.is_true(mc.equal(a.bias, b.bias)) end
end

local function keys(t)
  local list = {}
  for key in pairs(t) do list[#list + 1] = key end
  table.sort(list)
  return list
end

local function raises(fn)
  local ok, err = pcall(fn)
  assert.is_false(ok)
  return err
end

describe("a state dict", function()
  it("has the names of the present layout and shares the module's memory", function()
    local m = filled { G = 2 }
    local sd = m:state_dict()
    assert.are.same({ "bias0", "bias1", "weight0", "weight1" }, keys(sd))
    assert.are.same({ 4, 5 }, sd.weight1:shape())
    assert.are.equal(m.weight:storage_id(), sd.weight1:storage_id())
    assert.is_false(sd.weight1.requires_grad)
    m:set_layout { weight = "single" }
    assert.are.same({ "bias0", "bias1", "weight" }, keys(m:state_dict()))
    assert.are.same({ 2, 4, 5 }, m:state_dict().weight:shape())
  end)

  it("loads between all layouts of weight and bias, bit for bit, keeping the parameter objects", function()
    for _, G in ipairs { 1, 3, 11 } do
      for bits = 0, 15 do
        local function pick(bit) return math.floor(bits / bit) % 2 == 1 and "single" or "per_expert" end
        local source = filled { G = G, weight = pick(1), bias_layout = pick(2) }
        local target = layer { G = G, weight = pick(4), bias_layout = pick(8), first = 1000 }
        local weight, member = target.weight, target:expert(G - 1).weight
        local report = target:load_state_dict(source:state_dict())
        same_parameters(target, source)
        assert.are.equal(weight, target.weight)
        assert.are.equal(member, target:expert(G - 1).weight)
        assert.is_true(mc.equal(member, source:expert(G - 1).weight))
        assert.are.equal(pick(1) ~= pick(4), report.converted[1] ~= nil and report.converted[#report.converted]
          :find("weight") ~= nil)
        assert.are.same({}, report.missing)
        assert.are.same({}, report.unexpected)
        local again = target:load_state_dict(source:state_dict())
        assert.are.same(report, again)
      end
    end
  end)

  it("is never changed by a load, nested tables included", function()
    local source = filled { G = 2 }
    local sd = { fc = source:state_dict() }
    local before, copies = {}, {}
    for key, t in pairs(sd.fc) do before[key], copies[key] = t, t:clone() end
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self) self.fc = layer { G = 2, weight = "single", bias_layout = "single" } end
    local net = Net()
    net:load_state_dict(sd)
    assert.are.same({ "fc" }, keys(sd))
    assert.are.same(keys(before), keys(sd.fc))
    for key, t in pairs(before) do
      assert.are.equal(t, sd.fc[key])
      assert.is_true(mc.equal(t, copies[key]))
    end
    same_parameters(net.fc, source)
  end)

  it("is accepted nested, dotted and half of each", function()
    local source = filled { G = 2 }
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self) self.fc = layer { G = 2 } end
    local flat = source:state_dict()
    for _, sd in ipairs { { fc = flat }, { ["fc.weight0"] = flat.weight0, ["fc.weight1"] = flat.weight1,
      fc = { bias0 = flat.bias0, bias1 = flat.bias1 } } } do
      local net = Net()
      net:load_state_dict(sd)
      same_parameters(net.fc, source)
    end
    local err = raises(function() Net():load_state_dict { fc = flat, ["fc.bias0"] = flat.bias0 } end)
    assert.is_truthy(err:find("[conflict] fc.bias0: two entries have this name", 1, true))
  end)

  it("lists every problem in one error at the caller's line and changes nothing", function()
    local target = filled { G = 3 }
    local before = { target.weight:clone(), target.bias:clone() }
    local version = target.weight:version()
    local err = raises(function()
      target:load_state_dict { weight = mc.zeros(3, 4, 5), bias = mc.zeros(5, 4), extra = mc.zeros(1) }
    end)
    assert.is_truthy(err:find("^[^\n]*state_dict_spec.lua:%d+: [^\n]*GroupedLinear: cannot load, 2 problems"))
    assert.is_truthy(err:find("\n[count] bias: 5 experts in the checkpoint (shape [5, 4]), 3 in the module\n"
      .. "[unexpected] extra: not in the module", 1, true))
    assert.is_true(mc.equal(before[1], target.weight))
    assert.is_true(mc.equal(before[2], target.bias))
    assert.are.equal(version, target.weight:version())
  end)

  it("names the option where only one side has a bias", function()
    local err = raises(function() layer { bias = false }:load_state_dict(layer {}:state_dict()) end)
    assert.is_truthy(err:find("[unexpected] bias{0-2}: not in the module; the module was built with bias = false",
      1, true))
    err = raises(function() layer {}:load_state_dict(layer { bias = false }:state_dict()) end)
    assert.is_truthy(err:find("[missing] bias{0-2}: not in the checkpoint; the module was built with bias = true",
      1, true))
    local report = layer { bias = false }:load_state_dict(layer {}:state_dict(), { strict = false })
    assert.are.same({ "bias0", "bias1", "bias2" }, report.unexpected)
  end)

  it("refuses partial sets, and loads the given experts when told to", function()
    local source, target = filled { weight = "per_expert", bias = false }, layer { bias = false, first = 500 }
    local sd = source:state_dict()
    sd.weight1 = nil
    local err = raises(function() target:load_state_dict(sd, { strict = false }) end)
    assert.is_truthy(err:find("[partial] weight{0,2}: only 2 of 3 experts are in the checkpoint, missing 1", 1, true))
    local report = target:load_state_dict(sd, { allow_partial_experts = true })
    assert.are.same({ "weight1" }, report.missing)
    assert.is_true(mc.equal(target:expert(2).weight, source:expert(2).weight))
    assert.are.equal(520, target:expert(1).weight[1][1]:item())
  end)

  it("compares both layouts with verify_duplicates before it writes anything", function()
    local source, target = filled { bias = false }, layer { bias = false, first = 500 }
    local sd = source:state_dict()
    sd.weight = source.weight:detach():clone()
    target:load_state_dict(sd, { verify_duplicates = true })
    same_parameters(target, source)
    sd.weight[2][3][4]:fill_(7)
    target = layer { bias = false, first = 500 }
    local before = target.weight:clone()
    local err = raises(function() target:load_state_dict(sd, { verify_duplicates = true }) end)
    assert.is_truthy(err:find("[conflict] weight (expert 1) and weight1 differ, first at element 13 (0-based)",
      1, true))
    assert.is_true(mc.equal(before, target.weight))
    local report = target:load_state_dict(sd)
    assert.are.same({ "weight" }, report.ignored)
    same_parameters(target, source)
  end)

  it("casts with a warning and keeps the target's dtype", function()
    local source, target = filled { G = 2 }, layer { G = 2, dtype = "bfloat16", weight = "single" }
    local report = target:load_state_dict(source:state_dict())
    assert.are.equal("bfloat16", target.weight.dtype)
    assert.is_true(mc.equal(source.weight:detach():to("bfloat16"), target.weight:detach()))
    assert.are.same({ "weight{0,1}: float32 is rounded to bfloat16", "bias{0,1}: float32 is rounded to bfloat16" },
      report.warnings)
  end)

  it("takes biases in every form", function()
    local target = layer { G = 3, N = 4, bias_layout = "single" }
    local values = mc.arange(12)
    local weight = target:state_dict().weight0
    local base = { weight0 = weight, weight1 = weight, weight2 = weight }
    for _, form in ipairs { { 3, 4 }, { 3, 1, 4 }, { 12 } } do
      target = layer { G = 3, N = 4 }
      base.bias = values:view(form)
      target:load_state_dict(base)
      assert.is_true(mc.equal(target.bias:detach(), values:view(3, 4)))
    end
    base.bias = nil
    for _, form in ipairs { { 4 }, { 1, 4 }, { 4, 1 } } do
      target = layer { G = 3, N = 4, bias_layout = "single" }
      for i = 0, 2 do base["bias" .. i] = values:narrow(1, 4 * i + 1, 4):view(form) end
      target:load_state_dict(base)
      assert.is_true(mc.equal(target.bias:detach(), values:view(3, 4)))
    end
  end)

  it("adopts memory that fits and copies what does not, with assign", function()
    local target = layer { G = 2, bias = false }
    local weight, member = target.weight, target:expert(1).weight
    local given = mc.arange(40):view(2, 4, 5)
    local report = target:load_state_dict({ weight = given }, { assign = true })
    assert.are.same({}, report.warnings)
    assert.are.equal(weight, target.weight)
    assert.are.equal(given:storage_id(), target.weight:storage_id())
    assert.are.equal(given:storage_id(), member:storage_id())
    assert.are.equal(20, target:expert(1).weight[1][1]:item())
    assert.is_true(target.weight.requires_grad)
    -- the members of another layer are one block
    local source = filled { G = 2, bias = false }
    target:load_state_dict(source:state_dict(), { assign = "strict" })
    assert.are.equal(source.weight:storage_id(), target.weight:storage_id())
    local separate = { weight0 = mc.ones(4, 5), weight1 = mc.zeros(4, 5) }
    report = target:load_state_dict(separate, { assign = true })
    assert.are.same({ "weight{0,1}: its experts lie in separate storages; copied, not adopted" }, report.warnings)
    local err = raises(function() target:load_state_dict(separate, { assign = "strict" }) end)
    assert.is_truthy(err:find('[adopt] weight{0,1}: its experts lie in separate storages; copying is forbidden by '
      .. 'assign = "strict"', 1, true))
    report = target:load_state_dict(target:state_dict(), { assign = true })
    assert.are.same({ "weight{0,1}: it is memory of the module itself; copied, not adopted" }, report.warnings)
  end)

  it("may hold views of the module itself, in another order", function()
    local target = filled { G = 3, bias = false }
    local copies = {}
    for i = 0, 2 do copies[i] = target:expert(i).weight:clone() end
    local sd = target:state_dict()
    target:load_state_dict(sd)
    assert.is_true(mc.equal(copies[2], target:expert(2).weight))
    target:load_state_dict { weight0 = sd.weight2, weight1 = sd.weight0, weight2 = sd.weight1 }
    for i = 0, 2 do assert.is_true(mc.equal(copies[(i + 2) % 3], target:expert(i).weight)) end
  end)

  it("takes tensors of any strides", function()
    local target = layer { G = 2, bias = false }
    local given = mc.arange(40):view(2, 5, 4):transpose(2, 3)
    target:load_state_dict { weight = given }
    assert.is_true(mc.equal(given:contiguous(), target.weight:detach()))
  end)

  it("loads tied parameters once and keeps them tied", function()
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self)
      self.a = mc.nn.Parameter(mc.zeros(3))
      self.b = self.a
    end
    local net = Net()
    net:load_state_dict { b = mc.arange(3) }
    assert.are.same({ 0, 1, 2 }, net.a:totable())
    assert.are.equal(net.a, net.b)
    local err = raises(function() net:load_state_dict { a = mc.arange(3), b = mc.ones(3) } end)
    assert.is_truthy(err:find("[conflict] a and b are one tied parameter, but the values of a and b differ, first "
      .. "at element 0 (0-based)", 1, true))
    assert.are.same({ 0, 1, 2 }, net.a:totable())
  end)

  it("rejects what is no table of tensors, and unknown options", function()
    local m = layer {}
    assert.is_truthy(raises(function() m:load_state_dict("x") end):find('wanted a table of tensors, got "x"', 1, true))
    assert.is_truthy(raises(function() m:load_state_dict({}, { stict = false }) end)
      :find("load_state_dict: unknown option stict", 1, true))
    assert.is_truthy(raises(function() m:load_state_dict({}, { assign = "yes" }) end)
      :find('option assign is "yes", wanted true, false or "strict"', 1, true))
    local sd = m:state_dict()
    sd.bias1, sd.note = "text", true
    local err = raises(function() m:load_state_dict(sd) end)
    assert.is_truthy(err:find("[file] bias1: a string, not a tensor\n[unexpected] note: not in the module", 1, true))
    local loop = {}
    loop.loop = loop
    assert.is_truthy(raises(function() m:load_state_dict(loop) end):find("contains itself at loop", 1, true))
  end)

  it("marks a module whose load failed half-way, until a full load", function()
    local Net = mc.nn.Module:extend "Net"
    function Net.init(self) self.w = mc.nn.Parameter(mc.zeros(3)) end
    function Net.forward() return 7 end
    local net = Net()
    assert.are.equal(7, net())
    require("mascon.checkpoint.state").set_invalid(net, "a load failed half-way: the disk is gone")
    local err = raises(function() net() end)
    assert.is_truthy(err:find("the module is invalid: a load failed half-way: the disk is gone", 1, true))
    net:load_state_dict({}, { strict = false })
    assert.is_false(pcall(net))
    net:load_state_dict { w = mc.ones(3) }
    assert.are.equal(7, net())
  end)
end)
