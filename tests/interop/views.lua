-- The files of views_test.sh: `views.lua write FOLDER`, and `views.lua same A B`: whether two files load as one object.
local mc = require "mascon"

-- Small integers, exact in every dtype: those of expert g begin at another place.
local function fill(t, g)
  local list = {}
  for i = 1, t:numel() do list[i] = (g * 7 + i - 1) % 251 - 125 end
  t:copy_(mc.tensor(list):view(t:shape()):to(t.dtype))
end

local function model(dtype, single)
  local layer = mc.nn.GroupedLinear { num_gemms = 12, in_features = 6, out_features = 4, params_dtype = dtype,
    single_grouped_weight = single, single_grouped_bias = single }
  mc.no_grad(function()
    for g = 0, 11 do
      fill(layer:expert(g).weight:detach(), g)
      fill(layer:expert(g).bias:detach(), g)
    end
  end)
  return layer
end

-- Everything that a file may hold beside: odd keys, many values, texts, tied, empty and scalar tensors.
local function object(dtype, single)
  local many, t = {}, mc.arange(20)
  for i = 1, 40 do many["v" .. i] = i / 7 end
  return { model = { ["layers.0.experts"] = model(dtype, single):state_dict(), tied = t }, tied = t, many = many,
    ["a/b"] = mc.ones(2), [3] = mc.zeros(4), scalar = mc.tensor(7), text = ("long "):rep(500), step = 100, ok = true,
    list = { 1, "two", { mc.ones(1, { dtype = "bool" }) } }, fp8 = mc.ones(8, { dtype = "float8_e4m3fn" }) }
end

local function same(a, b, where)
  assert(type(a) == type(b), where)
  if mc.is_tensor(a) then
    assert(mc.equal(a, b), where)
  elseif type(a) == "table" then
    for key, value in pairs(a) do same(value, b[key], where .. "." .. tostring(key)) end
    for key in pairs(b) do assert(a[key] ~= nil, where .. " has a new key " .. tostring(key)) end
  else
    assert(a == b, where)
  end
end

if arg[1] == "write" then
  for _, dtype in ipairs { "float32", "bfloat16" } do
    for _, layout in ipairs { "single", "per_expert" } do
      mc.save(("%s/%s_%s.h5"):format(arg[2], dtype, layout), object(dtype, layout == "single"), { views = true })
    end
    mc.save(("%s/root_%s"):format(arg[2], dtype), { model = model(dtype, false):state_dict() })
  end
  mc.save(arg[2] .. "/empty", { none = mc.zeros(0, 4), n = 1 })
else
  same(mc.load(arg[2]), mc.load(arg[3]), arg[3])
end
