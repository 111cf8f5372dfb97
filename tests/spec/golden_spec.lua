-- Files of format version 1, written once and never again: they load into either layout, value by value.
package.path = "tests/faults/?.lua;" .. package.path
local content = require "golden_content"
local mc = require "mascon"

local function at(t, value, name)
  local flat = t:to("float64"):contiguous():view(-1):totable()
  for i, v in ipairs(flat) do assert.equal(value(i - 1), v, ("%s element %d"):format(name, i - 1)) end
end

for _, stored in ipairs { "per_expert", "single" } do
  local path = ("tests/golden/v1_%s.h5"):format(stored)
  describe("the golden file " .. path, function()
    it("still verifies", function()
      local report = mc.checkpoint.verify(path)
      assert.is_true(report.ok)
      assert.is_true(report.checked > 20)
    end)

    for _, layout in ipairs { "per_expert", "single" } do
      it("loads into a model and optimizer of the layout " .. layout, function()
        local model, optimizer = content.model(layout)
        local report = mc.checkpoint.load_into(path, { model = model, optimizer = optimizer })
        assert.same({}, report.missing)
        local n = 0
        content.each(model, optimizer, function(name, t, value)
          n = n + 1
          at(t:detach(), value, name)
        end)
        assert.equal(9, n)
        assert.equal(7, optimizer.step_count:item())
        assert.equal(0.25, optimizer:get_lr())
      end)
    end

    it("gives back its plain values and a tensor of every dtype", function()
      local object = mc.load(path)
      assert.same({ 7, "golden", true, 0.125 }, { object.step, object.name, object.done, object.rate })
      assert.same({ ["1"] = "text", [2] = { deep = -3 } }, object.nested)
      assert.same({ 0, 3 }, object.empty:shape())
      assert.equal(2.5, object.scalar:item())
      for _, dtype in ipairs(content.DTYPES) do
        assert.equal(dtype, object.dtypes[dtype].dtype)
        assert.same(content.numbers(dtype), object.dtypes[dtype]:totable())
      end
    end)
  end)
end

describe("the golden file tests/golden/v1_views.h5", function()
  local path = "tests/golden/v1_views.h5"

  -- expert * 16 + row * 4 + column of the weights, expert * 16 + row of the biases
  local function weight(i) return math.floor(i / 12) * 16 + i % 12 end
  local function bias(i) return math.floor(i / 3) * 16 + i % 3 end

  it("still verifies, views and all", function()
    local report = mc.checkpoint.verify(path)
    assert.is_true(report.ok, tostring(report))
    assert.equal(40, report.checked)
    local file = require("mascon.checkpoint.hdf5").open(path)
    local views = 0
    for _, entry in ipairs(file.entries) do
      assert.is_nil(entry.problem)
      if entry.view then
        views = views + 1
        assert.equal("view", entry.attrs.kind)
      end
    end
    file:close()
    assert.is_true(file.own)
    assert.equal(2 * (1 + 12), views)
  end)

  for _, layout in ipairs { "per_expert", "single" } do
    it("loads its layers of 16-bit floats into the layout " .. layout, function()
      for _, dtype in ipairs { "bfloat16", "float16" } do
        local single = layout == "single"
        local layer = mc.nn.GroupedLinear { num_gemms = 12, in_features = 4, out_features = 3, params_dtype = dtype,
          single_grouped_weight = single, single_grouped_bias = single }
        local report = mc.checkpoint.load_into(path, { [dtype] = layer })
        assert.same({}, report.missing)
        assert.same({}, report.unexpected)
        at(layer.weight:detach(), weight, dtype .. ".weight")
        at(layer.bias:detach(), bias, dtype .. ".bias")
      end
    end)
  end

  it("gives back escaped keys, many values, a text, NaN payloads, tied tensors and the random numbers", function()
    local ffi = require "ffi"
    local object = mc.load(path)
    local keys = {}
    for key, t in pairs(object.keys) do keys[key] = type(t) == "string" and t or t:item() end
    assert.same({ ["a/b"] = 1, [""] = 2, ["#x"] = 3, ["%y"] = 4, ["m.weight"] = 5, ["m.weight.weight"] = 6,
      ["\195\188 \1"] = 7, [12] = 8, ["12"] = 9, ["a..b"] = "x", type = "y" }, keys)
    local many, n = object.many, 0
    for _ in pairs(many) do n = n + 1 end
    assert.equal(40, n)
    for i = 1, 33 do assert.equal(i / 8, many["v" .. i]) end
    assert.same({ math.huge, -math.huge, 2 ^ 53, true, "of \"many\"\n", -math.huge },
      { many.inf, many.ninf, many.large, many.yes, many.text, 1 / many.minus_zero })
    assert.is_true(many.nan ~= many.nan)
    assert.equal(("0123456789"):rep(300), object.long)
    local wanted = { 0x7f800001, 0xffdeadbf, 0x80000000, 0xff800000 }
    local bits = ffi.cast("uint32_t *", object.payloads:cpu():data())
    for i = 1, 4 do assert.equal(wanted[i], bits[i - 1]) end
    assert.equal(object.tied.a:storage_id(), object.tied.b:storage_id())
    assert.same({ { 0, 1, 2 }, { 3, 4, 5 } }, object.tied.b:totable())
    local on_cpu = { device = "cpu" } -- whose generator was saved
    mc.manual_seed(5)
    mc.rand(7, on_cpu)
    local next_numbers = mc.rand(5, on_cpu)
    mc.set_rng_state(object.rng)
    assert.is_true(mc.equal(next_numbers, mc.rand(5, on_cpu)))
  end)
end)

describe("equal content", function()
  it("gives equal files, whenever it is saved", function()
    local tools = require "tools"
    local folder = tools.new_folder()
    for _, layout in ipairs { "per_expert", "single" } do
      mc.save(folder .. "/" .. layout, content.object(layout), { views = true })
    end
    tools.sleep(1.01) -- HDF5's times are whole seconds
    for _, layout in ipairs { "per_expert", "single" } do
      mc.save(folder .. "/again", content.object(layout), { views = true })
      assert.is_true(tools.slurp(folder .. "/" .. layout) == tools.slurp(folder .. "/again"), layout)
    end
    tools.remove_folder(folder)
  end)
end)
