--- Random fills and dropout on a device against the CPU's: the same seed gives the same numbers.
local assert = require "luassert"
local H = require "device_helper"
local helper = require "helper"
local mc = require "mascon"
local lib = require "mascon.lib"

local C, check = lib.C, lib.check
local BELOW = 2 ^ 53
local STATES = { { 0, 0 }, { 1234567890123, 7 }, { 3, 2 ^ 32 - 3 }, { BELOW - 1, 2 ^ 40 } }
local COUNTS = { 0, 1, 3, 4, 5, 8, 1023, 1024, 1027, 4100 }
local EPSILON = { float64 = 2 ^ -52, float32 = 2 ^ -23, float16 = 2 ^ -10, bfloat16 = 2 ^ -7 }

-- Runs fn(state, device) on both, and hands what it returned, the states as well, to see(got, want, what).
local function both(seed, fn, see)
  local results = {}
  for i, device in ipairs { H.device, "cpu" } do
    local state = mc.tensor(seed, { dtype = "int64" }):to(device)
    results[i] = { fn(state, device) }
    results[i][#results[i] + 1] = state
  end
  for k, want in ipairs(results[2]) do
    local got = results[1][k]
    assert.equal(H.device, got.device)
    if k == #results[2] then
      helper.same(got:to("cpu"), want, "the state")
    else
      see(got:to("cpu"), want, ("result %d of {%d, %d}"):format(k, seed[1], seed[2]))
    end
  end
end

-- Within `ulps` last places of the larger of two numbers, 0 and tiny results included.
local function within(ulps)
  return function(got, want, what)
    local a, b = got:to("float64"), want:to("float64")
    local scale = b:abs():maximum(2 ^ -14) * (ulps * EPSILON[want.dtype])
    local fits = a:numel() == 0 or ((a - b):abs() - scale):max():item() <= 0
    assert.is_true(fits, what .. ": more than " .. ulps .. " ulp")
  end
end

local function filled(call, dtype, n, a, b)
  return function(state, device)
    local t = mc.zeros(n, { dtype = dtype, device = device })
    check(call(t.h, state.h, a, b))
    return t
  end
end

describe("random numbers on a device", function()
  it("have the CPU's bits when they are uniform", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs(COUNTS) do
        both(STATES[n % #STATES + 1], filled(C.mc_random_uniform, dtype, n, 0, 1), helper.same)
      end
      for _, seed in ipairs(STATES) do
        for _, range in ipairs { { -3, 5.7 }, { 0.1, 0.1 }, { 1, 1.001 }, { -1e-3, 0 }, { 1000, 1000.3 } } do
          both(seed, filled(C.mc_random_uniform, dtype, 517, range[1], range[2]), helper.same)
        end
      end
    end
  end)

  it("have the CPU's bits when they are integers", function()
    for _, dtype in ipairs { "int64", "int32", "uint8", "bool", "float64", "float32", "float16", "bfloat16" } do
      local ranges = { { 0, 2 }, { 0, 1 } }
      if dtype ~= "bool" then ranges[3] = { 3, 250 } end
      if dtype ~= "bool" and dtype ~= "uint8" then ranges[4] = { -2 ^ 31, 2 ^ 31 - 1 } end
      if dtype == "int64" or dtype:match "float" then ranges[5] = { 2 ^ 40, 2 ^ 40 + 2 ^ 32 } end
      for i, range in ipairs(ranges) do
        local fill = filled(C.mc_random_integers, dtype, 300 + i, range[1], range[2])
        both(STATES[i % #STATES + 1], fill, helper.same)
      end
      for _, n in ipairs(COUNTS) do
        both(STATES[2], filled(C.mc_random_integers, dtype, n, 0, 2), helper.same)
      end
    end
  end)

  it("are within 2 ulp of the CPU's when they are normal", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs(COUNTS) do
        both(STATES[n % #STATES + 1], filled(C.mc_random_normal, dtype, n, 0, 1), within(2))
      end
      both(STATES[2], filled(C.mc_random_normal, dtype, 1000, 0, 0.023), within(2))
      both(STATES[3], filled(C.mc_random_normal, dtype, 1000, 100, 2), within(2))
      both(STATES[4], filled(C.mc_random_normal, dtype, 100, 2, 0), helper.same)
    end
  end)

  it("stand in row-major order in views", function()
    local views = {
      function(b) return b:transpose(1, 2) end, function(b) return b:narrow(2, 2, 7) end,
      function(b) return b:view(-1):narrow(1, 2, 50) end,
    }
    for _, dtype in ipairs { "float64", "float32", "bfloat16" } do
      for _, view in ipairs(views) do
        both(STATES[2], function(state, device)
          local base = mc.zeros(9, 12, { dtype = dtype, device = device })
          check(C.mc_random_uniform(view(base).h, state.h, 0, 1))
          return base
        end, helper.same)
      end
    end
  end)

  it("go on where the last call ended", function()
    both({ 5, 1 }, function(state, device)
      local list = {}
      for i, n in ipairs { 5, 0, 4, 1, 1030, 2 } do
        list[i] = mc.zeros(n, { device = device })
        check(C.mc_random_uniform(list[i].h, state.h, 0, 1))
      end
      return unpack(list)
    end, helper.same)
  end)

  it("take a state whose two numbers lie apart", function()
    for _, device in ipairs { H.device, "cpu" } do
      local base = mc.tensor({ 5, 99, 17, 98 }, { dtype = "int64" }):to(device)
      local t = mc.zeros(10, { device = device })
      check(C.mc_random_uniform(t.h, base:view(2, 2):select(2, 1).h, 0, 1))
      assert.same({ 5, 99, 20, 98 }, base:to("cpu"):totable())
    end
  end)

  it("follow mc.manual_seed", function()
    mc.manual_seed(42)
    local a = mc.rand(33, { device = H.device })
    local b = mc.randint(0, 1000, { 9 }, { device = H.device })
    mc.manual_seed(42)
    helper.same(a:to("cpu"), mc.rand(33))
    helper.same(b:to("cpu"), mc.randint(0, 1000, { 9 }))
  end)
end)

describe("dropout on a device", function()
  local function dropped(x, p, view)
    return function(state, device)
      local input = x:to(device)
      local y = mc.zeros(x:shape(), { dtype = x.dtype, device = device })
      local keep = mc.zeros(x:shape(), { dtype = "uint8", device = device })
      if view then input, y, keep = view(input), view(y), view(keep) end
      check(C.mc_dropout(y.h, keep.h, input.h, state.h, p))
      local dx = mc.zeros(y:shape(), { dtype = x.dtype, device = device })
      check(C.mc_dropout_backward(dx.h, y.h, keep.h, p))
      return y, keep, dx
    end
  end

  it("keeps what the CPU keeps", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 0, 1, 3, 4, 6, 1025, 2048, 4096, 4099, 8200 } do
        both(STATES[n % #STATES + 1], dropped(mc.randn(n, { dtype = dtype }), 0.3), helper.same)
      end
      local x = mc.randn(500, { dtype = dtype })
      for _, p in ipairs { 0, 2 ^ -24, 0.1, 0.5, 1 - 2 ^ -24, 1 - 2 ^ -30, 1 } do
        both(STATES[2], dropped(x, p), helper.same)
      end
    end
    local many = mc.randn(100003, { dtype = "bfloat16" }) -- a block takes several tiles
    for _, p in ipairs { 0, 0.3, 1 } do both(STATES[1], dropped(many, p), helper.same) end
  end)

  it("takes views", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16" } do
      local x = mc.randn(33, 64, { dtype = dtype })
      for _, view in ipairs {
        function(b) return b:transpose(1, 2) end, function(b) return b:narrow(2, 17, 32) end,
        function(b) return b:view(-1):narrow(1, 2, 2049) end,
      } do
        both(STATES[3], dropped(x, 0.4, view), helper.same)
      end
    end
  end)
end)
