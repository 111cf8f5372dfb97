-- Loads the layers that write_with_h5py.py has put into FILE..., in every storage and layout, into layers of both
-- layouts: `plain.lua FILE...`
local mc = require "mascon"

local weight = mc.arange(12 * 5 * 6):view(12, 5, 6)
local bias = mc.arange(12 * 5):view(12, 5) / 4

local function layer(single)
  return mc.nn.GroupedLinear { num_gemms = 12, in_features = 6, out_features = 5, single_grouped_weight = single,
    single_grouped_bias = single }
end

local Around = mc.nn.Module:extend "Around" -- a module with one child
function Around:init(o) self[o.name] = o.child end

local function check(target, where)
  assert(mc.equal(target.weight:detach(), weight), where .. ": the weights differ")
  assert(mc.equal(target.bias:detach(), bias), where .. ": the biases differ")
end

for _, file in ipairs(arg) do
  local whole = mc.load(file)
  for _, storage in ipairs { "plain", "chunked", "gzip" } do
    for _, order in ipairs { "little", "big" } do
      for _, stored in ipairs { "single", "per_expert" } do
        for _, single in ipairs { true, false } do
          local where = ("%s: %s/%s/%s"):format(file, storage, order, stored)
          local target = layer(single)
          target:load_state_dict(whole[storage][order][stored])
          check(target, where)
          target = layer(single)
          mc.checkpoint.load_into(file, { [storage] = Around { name = order, child = Around { name = stored,
            child = target } } }, { strict = false })
          check(target, where .. ", streamed")
        end
      end
    end
  end
end
