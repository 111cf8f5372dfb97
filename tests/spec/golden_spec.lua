-- Files of format version 1, written once and never again: they load into either layout, value by value.
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
