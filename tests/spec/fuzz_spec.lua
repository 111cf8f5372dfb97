--- Random calls with random arguments, the same in every run: each gives a result or an error of ours, at the
-- caller's line; none crashes, and none fails inside the library.
local mc = require "mascon"
local tensor = require "mascon.tensor"

local CALLS = 20000
local DTYPES = { "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "bool", "float8_e4m3fn" }
local ODD = { 0 / 0, 1e300, -1e300, 1e18, 2 ^ 53, -2 ^ 63, math.huge, -math.huge, 0.5, -0.0, 2 ^ 31 }
local WORDS = { "", "x", "float32", "cpu", "mean" }
local random = math.random

local function sorted_functions(room)
  local names = {}
  for name, fn in pairs(room) do
    if type(fn) == "function" then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

local layer, freed

local function a_tensor()
  local kind = random(12)
  if kind == 1 then return freed end
  if kind == 2 then return layer:expert(random(2) - 1).weight end
  local shape = {}
  for i = 1, random(0, 3) do shape[i] = random(0, 4) end
  local t = mc.zeros(shape, { dtype = DTYPES[random(#DTYPES)] })
  if random(2) == 1 then pcall(t.requires_grad_, t) end
  if random(4) == 1 and t:dim() >= 2 then t = t:transpose(1, 2) end
  return t
end

local VALUES = {
  function() return nil end,
  function() return random(-3, 4) end,
  function() return ODD[random(#ODD)] end,
  function() return WORDS[random(#WORDS)] end,
  function() return random(2) == 1 end,
  function() return { random(-2, 3), random(-2, 3) } end,
  function() return { a_tensor(), a_tensor() } end,
  function() return {} end,
  function() return { dtype = "float64" } end,
  function() return type end,
  function() return layer end,
  function() return 5LL end,
  function() return io.stdout end,
}
local function a_value()
  if random(3) > 1 then return a_tensor() end
  return VALUES[random(#VALUES)]()
end

-- Everything public that takes values; what changes the process or the disk stays out.
local OUT = {
  set_num_threads = true, collect_garbage = true, scope = true, no_grad = true, collect = true,
  save = true, load = true,
}
local function everything()
  local list = {}
  local function add(what, room)
    for _, name in ipairs(sorted_functions(room)) do
      if not OUT[name] and name:sub(1, 1) ~= "_" then list[#list + 1] = { what .. name, room[name] } end
    end
  end
  add("t:", tensor.methods)
  add("mc.", mc)
  add("functional.", mc.nn.functional)
  add("autograd.", mc.autograd)
  add("schedule.", mc.optim.schedule)
  list[#list + 1] = { "t.grad =", function(t, g) if mc.is_tensor(t) then t.grad = g end end }
  list[#list + 1] = { "t[k]", function(t, k) if mc.is_tensor(t) then return t[k] end end }
  list[#list + 1] = { "tostring", function(t) return tostring(t) end }
  list[#list + 1] = { "clip_grad_norm_", mc.optim.clip_grad_norm_ }
  list[#list + 1] = { "GroupedTensor", mc.GroupedTensor }
  for _, name in ipairs { "SGD", "AdamW" } do list[#list + 1] = { name, mc.optim[name] } end
  for _, name in ipairs { "Linear", "GroupedLinear", "Router", "MoE", "Sequential" } do
    list[#list + 1] = { name, mc.nn[name] }
  end
  return list
end

describe("whatever is called with whatever", function()
  it("gives a result or an error of ours", function()
    math.randomseed(7)
    freed = mc.ones(2)
    freed:free()
    layer = mc.nn.GroupedLinear { num_gemms = 2, in_features = 3, out_features = 4 }
    local functions, fine = everything(), 0
    for _ = 1, CALLS do
      local f, args, n = functions[random(#functions)], {}, random(0, 4)
      for i = 1, n do args[i] = a_value() end
      local ok, err = pcall(f[2], unpack(args, 1, n))
      if ok then
        fine = fine + 1
      else
        local raw = type(err) ~= "string" or err:find("lua/mascon/", 1, true) or err:find("attempt to", 1, true)
          or err:find("bad argument", 1, true)
        assert.is_falsy(raw, f[1] .. ": " .. tostring(err))
      end
    end
    assert.is_true(fine > CALLS / 20, fine .. " calls went well")
  end)
end)
